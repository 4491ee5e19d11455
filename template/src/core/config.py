"""Settings, from environment variables and, in development, from `.env`."""

import os
from enum import StrEnum
from functools import cache, cached_property
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, InstanceOf, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import EmbeddedPostgresError
from core.project import ROOT, load_project


def start_own_server(database: str = "postgres") -> DatabaseURL:
    """Start the project's own PostgreSQL and return the URL of its database.

    Raises:
        EmbeddedPostgresError: it can't run here; the message says what to do.
    """
    from alembic_safety import embedded  # noqa: PLC0415 - production never imports it

    try:
        return DatabaseURL.parse(embedded.start(ROOT / ".postgres", database))
    except EmbeddedPostgresError as error:
        raise EmbeddedPostgresError(
            f"{str(error).removesuffix('.')}. To use another server, set "
            "DATABASE_URL=postgresql://user:password@host:5432/database, in .env for example."
        ) from None


class Environment(StrEnum):
    """Environment that the service runs in."""

    DEV = "dev"
    TEST = "test"
    PROD = "prod"


class Pooler(StrEnum):
    """Connection pooler between the service and PostgreSQL."""

    NONE = "none"
    """No pooler, or one in session mode."""
    TRANSACTION = "transaction"
    """PgBouncer or a similar pooler in transaction mode."""


class SettingsError(Exception):
    """A setting is invalid. The message has one line per setting and no secrets."""


def _parse_url(value: object) -> object:
    if isinstance(value, str):
        return DatabaseURL.parse(value) if value.strip() else None
    return value


PostgresURL = Annotated[InstanceOf[DatabaseURL], NoDecode]
OptionalPostgresURL = Annotated[PostgresURL | None, NoDecode, BeforeValidator(_parse_url)]


class AnySettings(BaseSettings):
    """Base of the service's settings and of an app's own; see `read_settings`."""

    model_config = SettingsConfigDict(
        extra="ignore", frozen=True, env_ignore_empty=True, hide_input_in_errors=True
    )


class Settings(AnySettings):
    """Settings of the service. The environment variables are the names in upper case."""

    environment: Environment = Environment.DEV
    database_url: OptionalPostgresURL = None
    sqlalchemy_database_uri: OptionalPostgresURL = None
    """Alias of `database_url`."""
    migration_database_url: OptionalPostgresURL = None
    """URL for migrations, if they need to bypass the pooler or use another role."""
    plan_database_url: OptionalPostgresURL = None
    """URL of the server on which `make migrate-plan` creates its copy."""
    database_pooler: Pooler = Pooler.NONE
    database_pool_size: Annotated[int, Field(ge=1, le=1000)] = 15
    database_max_overflow: Annotated[int, Field(ge=0, le=1000)] = 0
    """Additional connections under load; each is closed after one use."""
    database_pool_timeout: Annotated[float, Field(gt=0)] = 5.0
    """Seconds that a request waits for a free connection before it fails with 503."""
    metrics: bool = True
    """Serve metrics for Prometheus."""
    metrics_port: Annotated[int | None, Field(ge=1, le=65535)] = None
    """Separate port for metrics; None serves them at /metrics of the service."""
    metrics_host: str = "127.0.0.1"
    """Address that `metrics_port` listens on."""
    database_command_timeout: Annotated[float, Field(gt=0)] = 30.0
    """Seconds that a statement of a request may take before the request fails with 503."""
    api_docs: bool | None = None
    """Serve /docs, /redoc and /openapi.json; by default not in prod."""
    max_body_size: Annotated[int, Field(ge=1)] = 1_048_576
    """Bytes that the body of a request may have; a route may set another `max_body_size`."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="after")
    def _one_database(self) -> Self:
        names = (self.database_url, self.sqlalchemy_database_uri)
        if None not in names and names[0] != names[1]:
            raise ValueError(
                "DATABASE_URL and SQLALCHEMY_DATABASE_URI are both set and differ; set one of them"
            )
        if names == (None, None) and self.environment is Environment.PROD:
            raise ValueError(
                "DATABASE_URL is not set; ENVIRONMENT=prod needs it "
                "(postgresql://user:password@host:5432/database)"
            )
        if names == (None, None) and self.migration_database_url is not None:
            raise ValueError("MIGRATION_DATABASE_URL is set and DATABASE_URL is not; set both")
        return self

    @property
    def serves_api_docs(self) -> bool:
        """True if the documentation of the API is served."""
        return self.environment is not Environment.PROD if self.api_docs is None else self.api_docs

    @property
    def uses_own_server(self) -> bool:
        """True if no URL is set, so that the project's own PostgreSQL is used."""
        return self.database_url is None and self.sqlalchemy_database_uri is None

    @cached_property
    def url(self) -> DatabaseURL:
        """The database to use.

        Where none is set (dev and test only) it is one of the project's own server, which is
        started now if it isn't running.

        Raises:
            EmbeddedPostgresError: that server can't run here; the message says what to do.
        """
        configured = self.database_url or self.sqlalchemy_database_uri
        if configured is not None:
            return configured
        name = load_project().name
        return start_own_server(f"{name}-test" if self.environment is Environment.TEST else name)

    @property
    def migration_url(self) -> DatabaseURL:
        """URL of the database for migrations, backups and psql."""
        return self.migration_database_url or self.url


T = TypeVar("T", bound=AnySettings)


@cache
def get_settings() -> Settings:
    """Return the settings, which are read once.

    Raises:
        SettingsError: one line per wrong setting.
    """
    settings = read_settings(Settings)
    if _in_dev() and settings.environment is not Environment.DEV:
        raise SettingsError(
            f"ENVIRONMENT: .env says {settings.environment}, but .env is read in dev only; "
            "set ENVIRONMENT in the process's environment instead"
        )
    return settings


def read_settings(kind: type[T]) -> T:
    """Read settings, such as an app's own, from the same sources as the service's.

    Raises:
        SettingsError: one line per wrong setting.
    """
    if os.environ.get("ENVIRONMENT") == "":
        raise SettingsError("ENVIRONMENT: is empty; set dev, test or prod")
    try:
        return kind(_env_file=ROOT / ".env" if _in_dev() else None)
    except ValidationError as error:
        raise SettingsError(_describe(error)) from None
    except UnicodeDecodeError:
        raise SettingsError(f"{ROOT / '.env'}: is not UTF-8 text") from None


def _in_dev() -> bool:
    return os.environ.get("ENVIRONMENT", Environment.DEV) == Environment.DEV


def _describe(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        name = str(problem["loc"][0]).upper() + ": " if problem["loc"] else ""
        lines.append(name + problem["msg"].removeprefix("Value error, "))
    return "\n".join(lines)
