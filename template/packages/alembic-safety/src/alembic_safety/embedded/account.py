"""The OS user that the server runs as."""

import os
import pwd
import shutil
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alembic_safety.embedded.errors import EmbeddedPostgresError

_CLOSED = 0o700


@dataclass(frozen=True, kw_only=True)
class Account:
    """The OS user of a server, and how to run a program as that user."""

    uid: int
    gid: int
    owner: int
    """User who owns the folders that no other user may enter: `.postgres` and the socket's."""
    command: Sequence[str] = ()
    """What to put before a program's own command."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `subprocess` functions."""
    hint: str = ""
    """What to add to the message of a program that failed."""

    def close(self, folder: Path) -> None:
        """Let nobody but the owner into `folder`."""
        found = folder.stat()
        if found.st_uid != self.owner:
            os.chown(folder, self.owner, -1)
        if stat.S_IMODE(found.st_mode) != _CLOSED:
            folder.chmod(_CLOSED)


def find_account(data: Path) -> Account:
    """Return the account for a server of `data`.

    Raises:
        EmbeddedPostgresError: PostgreSQL can't run as this user.
    """
    if os.geteuid() != 0:
        try:
            pwd.getpwuid(os.geteuid())
        except KeyError:
            raise EmbeddedPostgresError(
                f"PostgreSQL needs an OS user with a name, and the user {os.geteuid()} has none; "
                "run as another user"
            ) from None
        return Account(uid=os.geteuid(), gid=os.getegid(), owner=os.geteuid())
    project = data.parent.parent
    user = _user_for_root(data, project)
    setpriv = shutil.which("setpriv")
    if user.pw_uid == project.stat().st_uid or setpriv is None:
        # The server of a user whose project root is in; or macOS, or an image without util-linux.
        wanted = "" if setpriv else "; setpriv, of util-linux, would let it into closed folders"
        return Account(
            uid=user.pw_uid,
            gid=user.pw_gid,
            owner=user.pw_uid,
            options={"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []},
            hint=f" (root's PostgreSQL runs as the user {user.pw_name}{wanted})",
        )
    # CAP_DAC_OVERRIDE passes closed folders as root does, and Docker's root has it, too, unlike
    # CAP_DAC_READ_SEARCH and mount or user namespaces. Other processes of the user can't make use
    # of it: root owns the folders of data and socket, and the kernel does not let them trace the
    # server. Without no_setuid_fixup access(2), by which PostgreSQL looks for its own files,
    # ignores capabilities.
    command = [
        setpriv,
        f"--reuid={user.pw_uid}",
        f"--regid={user.pw_gid}",
        "--clear-groups",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
        "--securebits=+no_setuid_fixup",
        "--",
    ]
    return Account(uid=user.pw_uid, gid=user.pw_gid, owner=0, command=command)


def _user_for_root(data: Path, project: Path) -> pwd.struct_passwd:
    """Return the owner of the data or the project, else the user postgres or nobody."""
    for folder in (data, project):
        if folder.exists() and (uid := folder.stat().st_uid) != 0:
            with suppress(KeyError):
                return pwd.getpwuid(uid)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise EmbeddedPostgresError(
        "PostgreSQL does not run as root, and there is no OS user postgres or nobody; "
        "run as another user"
    )
