"""Checksums of this library's files, which a vendored copy is compared with.

    python -m alembic_safety.checksums packages/alembic-safety

prints the files that differ from `SHA256SUMS`, and exits with 1 if there are any. With `--write` it
writes that file instead, in the format of sha256sum. This module imports nothing of the library, so
that `make check` can run it by its path where an edit broke another module.
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

NAME = "SHA256SUMS"


def compute(folder: Path) -> dict[str, str]:
    """Return the checksum of each file below `folder`, by its relative path."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != NAME and not _is_made(file.relative_to(folder))
    }


def differences(folder: Path) -> list[str]:
    """Return a line for each file that was edited, added or deleted."""
    if not (folder / NAME).exists():
        return [f"{NAME}: deleted"]
    lines = (folder / NAME).read_text(encoding="utf-8").splitlines()
    listed = {path: digest for digest, _, path in (line.partition("  ") for line in lines)}
    here = compute(folder)
    changed = [f"{path}: edited" for path in listed if path in here and here[path] != listed[path]]
    deleted = [f"{path}: deleted" for path in listed if path not in here]
    return [*changed, *deleted, *(f"{path}: added" for path in here if path not in listed)]


def main(arguments: Sequence[str]) -> int:
    """Run the program; return its exit code."""
    match arguments:
        case ["--write", name]:
            folder = Path(name)
            lines = [f"{digest}  {path}\n" for path, digest in compute(folder).items()]
            (folder / NAME).write_text("".join(lines), encoding="utf-8")
            return 0
        case [name]:
            found = differences(Path(name))
        case _:
            print("usage: python -m alembic_safety.checksums [--write] FOLDER", file=sys.stderr)
            return 2
    for line in found:
        print(f"{name}/{line}", file=sys.stderr)
    if found:
        print(
            f"{name} is the template's, and updates overwrite it: undo these changes "
            f"(git checkout <commit> -- {name}), or take the library from elsewhere "
            "([tool.uv.sources] of pyproject.toml)",
            file=sys.stderr,
        )
    return 1 if found else 0


def _is_made(path: Path) -> bool:
    """Return whether a file is made by running, building or checking the library."""
    made = {"__pycache__", "build", "dist"}
    return any(part in made or part.startswith(".") for part in path.parts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
