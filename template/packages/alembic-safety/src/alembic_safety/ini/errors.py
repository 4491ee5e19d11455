"""Errors of a conversion."""


class ConversionError(Exception):
    """The project cannot be converted, and nothing was changed.

    The message has the file and line, the reason, and what to do.
    """
