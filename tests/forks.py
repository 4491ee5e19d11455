"""Python programs in forks of one process that has imported Alembic: a fortieth of the time.

Run as a program, it reads a request a line and answers each with a line, both JSON.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Forks:
    """The process, and a way to have it run code."""

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def run(
        self, code: str, arguments: Sequence[str], folder: Path, variables: Mapping[str, str]
    ) -> tuple[int, str, str]:
        """Return the exit code, what was printed, and the errors."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {
            "code": code,
            "arguments": [*arguments],
            "folder": str(folder),
            "variables": {**variables},
        }
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        said, out, errors = json.loads(self.process.stdout.readline())
        return said, out, errors


def run_here(request: dict[str, Any]) -> int:
    """Run the code as `python -c` does, but for the empty path; return the exit code."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["variables"])
    sys.dont_write_bytecode = True
    sys.argv = ["-c", *request["arguments"]]
    added = filter(None, request["variables"].get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [*added, *sys.path[1:]]
    try:
        exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        return 1
    return 0


def answer(request: dict[str, Any]) -> tuple[int, str, str]:
    """Run a request in a fork."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            code = run_here(request)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        errors.seek(0)
        return code, out.read().decode(), errors.read().decode()


PRELOADED = [
    "alembic.autogenerate",
    "alembic.config",
    "alembic.script",
    "mako.template",
    "sqlalchemy.dialects.mysql",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.ext.asyncio",
]

if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
