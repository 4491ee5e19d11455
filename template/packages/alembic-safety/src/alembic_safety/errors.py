"""Errors that a person can act on. Their messages are complete: they are shown by themselves."""


class MigrationError(Exception):
    """A migration can't go on. The message says why, and what to do."""


class AlembicConfigError(MigrationError):
    """The configuration is wrong. Each line of the message names a key and what is expected."""


class DatabaseUnavailableError(MigrationError):
    """No connection could be made. The message says why, without the password."""


class ClientProgramError(MigrationError):
    """A client program of PostgreSQL is missing, too old, or failed. The message says which."""


class EmbeddedPostgresError(MigrationError):
    """The embedded server can't run here. The message is one line and says what to do."""


class NotConfirmedError(MigrationError):
    """A person did not confirm; nothing was changed."""
