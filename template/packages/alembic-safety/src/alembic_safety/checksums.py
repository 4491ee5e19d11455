"""Checksums of the files of a vendored copy of this library.

    python -m alembic_safety.checksums packages/alembic-safety

Print the files that differ from `SHA256SUMS`, and exit with 1 if there are any. `--write` writes
`SHA256SUMS` instead, in the format of sha256sum. This module imports nothing of the library, so
that `make check` can run it by its path where an edit broke another module.
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

CHECKSUM_FILE = "SHA256SUMS"


def compute(folder: Path) -> dict[str, str]:
    """Return the checksum of each file in `folder`, by relative path."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and file.name != CHECKSUM_FILE
        and not _is_generated(file.relative_to(folder))
    }


def differences(folder: Path) -> list[str]:
    """Return one line per file that was edited, deleted or added."""
    if not (folder / CHECKSUM_FILE).exists():
        return [f"{CHECKSUM_FILE}: deleted"]
    lines = (folder / CHECKSUM_FILE).read_text(encoding="utf-8").splitlines()
    listed = {path: digest for digest, _, path in (line.partition("  ") for line in lines)}
    found = compute(folder)
    edited = [f"{path}: edited" for path in listed if path in found and found[path] != listed[path]]
    deleted = [f"{path}: deleted" for path in listed if path not in found]
    return [*edited, *deleted, *(f"{path}: added" for path in found if path not in listed)]


def main(arguments: Sequence[str]) -> int:
    """Run the program; return its exit code."""
    match arguments:
        case ["--write", name]:
            folder = Path(name)
            lines = [f"{digest}  {path}\n" for path, digest in compute(folder).items()]
            (folder / CHECKSUM_FILE).write_text("".join(lines), encoding="utf-8")
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
            f"{name} was changed by hand, and updates overwrite it. Undo the changes "
            f"(git checkout <commit> -- {name}), or install the library from another source "
            "([tool.uv.sources] in pyproject.toml).",
            file=sys.stderr,
        )
    return 1 if found else 0


def _is_generated(path: Path) -> bool:
    """Return whether running, building or checking the library generates the file."""
    generated = {"__pycache__", "build", "dist"}
    return any(part in generated or part.startswith(".") for part in path.parts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
