"""Say whether the version in pyproject.toml is new (`release.py`), and what is new in it (`--notes`)."""

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "template/packages/alembic-safety/pyproject.toml"
_SECTION = re.compile(
    r"^## \[?(?P<version>\d+\.\d+\.\d+\w*)\]?(?: - (?P<date>\d{4}-\d\d-\d\d))?$", re.MULTILINE
)


class ReleaseError(Exception):
    """The version can't be released. The message says what to change."""


def read_version() -> str:
    """Return the version of the template and of its library.

    Raises:
        ReleaseError: they differ.
    """
    versions = [
        tomllib.loads((ROOT / file).read_text("utf-8"))["project"]["version"]
        for file in ("pyproject.toml", LIBRARY)
    ]
    if len(set(versions)) > 1:
        raise ReleaseError(
            f"{LIBRARY}: version is {versions[1]}; set it to {versions[0]}, as in pyproject.toml"
        )
    return str(versions[0])


def read_notes(version: str) -> str:
    """Return what CHANGELOG.md says of a version.

    Raises:
        ReleaseError: it says nothing, or no date.
    """
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    found = list(_SECTION.finditer(text))
    for section, following in zip(found, [*found[1:], None], strict=True):
        if section["version"] != version:
            continue
        notes = text[section.end() : following.start() if following else None].strip()
        if not notes or not section["date"]:
            break
        return notes
    raise ReleaseError(
        f"CHANGELOG.md: there is no section `## {version} - YYYY-MM-DD` that says something, and "
        f"pyproject.toml has that version"
    )


def is_tagged(version: str) -> bool:
    """Return whether the version was released."""
    done = subprocess.run(
        ["git", "tag", "--list", f"v{version}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout != ""


def main() -> int:
    """Print `version=` and `new=`, or the notes; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--notes", action="store_true", help="print the notes of the version")
    given = parser.parse_args()
    try:
        version = read_version()
        notes = read_notes(version)
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 1
    if given.notes:
        print(notes)
    else:
        print(f"version={version}\nnew={'false' if is_tagged(version) else 'true'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
