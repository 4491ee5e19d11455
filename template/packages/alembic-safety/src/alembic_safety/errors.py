"""Errors with complete messages, which are shown to people without a traceback."""


class MigrationError(Exception):
    """A migration can't continue. The message has the cause and what to do."""


class AlembicConfigError(MigrationError):
    """The configuration is invalid. Each line of the message names a key and the expected value."""


class DatabaseUnavailableError(MigrationError):
    """Connecting failed. The message has the cause, without the password."""


class ClientProgramError(MigrationError):
    """A client program of PostgreSQL is missing, is too old, or failed."""


class EmbeddedPostgresError(MigrationError):
    """The embedded server can't run here. The message is one line, with what to do."""


class NotConfirmedError(MigrationError):
    """The confirmation was refused or missing. Nothing was changed."""
