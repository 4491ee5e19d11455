"""Loading of the models' metadata from `module:name`."""

import importlib

from sqlalchemy import MetaData


def load_metadata(place: str) -> list[MetaData]:
    """Import `module:name` and return its metadata.

    Args:
        place: `module:name`. The name may be dotted, and is that of a MetaData, of a list or tuple
            of them, or of a function that returns either.
    """
    module, _, path = place.partition(":")
    found: object = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    if callable(found):
        found = found()
    return list(found) if isinstance(found, list | tuple) else [found]  # type: ignore[list-item]
