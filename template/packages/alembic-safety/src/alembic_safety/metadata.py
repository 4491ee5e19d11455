"""The models' metadata, found by `module:name`."""

import importlib

from sqlalchemy import MetaData


def load_metadata(place: str) -> list[MetaData]:
    """Return the metadata that `module:name` leads to.

    The name, with dots, is of a MetaData or a list of them, or of a function that returns one.
    """
    module, _, path = place.partition(":")
    found: object = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    if callable(found):
        found = found()
    return list(found) if isinstance(found, list | tuple) else [found]  # type: ignore[list-item]
