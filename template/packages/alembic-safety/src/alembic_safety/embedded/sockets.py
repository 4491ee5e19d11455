"""The Unix socket of a server: where it is, its URL, and whether the server answers."""

import hashlib
import os
import socket
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from alembic_safety.embedded.account import Account
from alembic_safety.embedded.errors import EmbeddedPostgresError

PORT = 5432  # names the socket file; nothing listens on TCP
SUPERUSER = "postgres"
# The shortest limit of the supported systems: sun_path of macOS holds 104 bytes with the NUL.
_LONGEST_PATH = 103
_ANSWER_TIMEOUT = 3.0
# Every server answers an SSLRequest with one byte, and asks for no password before.
_SSL_REQUEST = struct.pack("!II", 8, 80877103)


def make_folder(data: Path, account: Account) -> Path:
    """Make the socket's folder, which has a short path and is closed to other users; return it."""
    remove_folder(data, account.owner)
    folder = _folder_of(data, account.owner)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise EmbeddedPostgresError(f"{folder} belongs to something else; delete it") from None
    account.close(folder)
    return folder


def remove_folder(data: Path, owner: int) -> None:
    """Delete the socket's folder, and what a server that was killed left in it."""
    folder = _folder_of(data, owner)
    # Others may make files in /tmp, links to other servers' folders among them.
    if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != owner:
        return
    for left in (_socket(folder), Path(f"{_socket(folder)}.lock")):
        left.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _folder_of(data: Path, owner: int) -> Path:
    digest = hashlib.sha256(os.fsencode(data) + f":{owner}".encode()).hexdigest()[:12]
    name = f"postgres-{digest}"
    folder = Path(tempfile.gettempdir()).resolve() / name
    if len(os.fsencode(_socket(folder))) > _LONGEST_PATH:
        return Path("/tmp") / name  # noqa: S108
    return folder


def answers(folder: Path) -> bool:
    """Return whether a server behind the socket in `folder` takes connections.

    Raises:
        TimeoutError: there is one, and it gave no answer in 3 seconds.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_ANSWER_TIMEOUT)
        try:
            client.connect(str(_socket(folder)))
            client.sendall(_SSL_REQUEST)
            return client.recv(1) in {b"N", b"S"}
        except (TimeoutError, BlockingIOError):
            raise TimeoutError from None
        except OSError:
            return False


def url_of(database: str, folder: Path) -> str:
    """Return the URL of a database of the server."""
    host = quote(os.fsencode(folder), safe="/")
    return f"postgresql://{SUPERUSER}@/{quote(database, safe='')}?host={host}&port={PORT}"


def _socket(folder: Path) -> Path:
    return folder / f".s.PGSQL.{PORT}"
