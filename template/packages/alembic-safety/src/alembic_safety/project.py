"""Alembic project as described by its migrations/env.py."""

import os
import tomllib
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData

from alembic_safety.boundary import migration_errors
from alembic_safety.cancellation import interruptible
from alembic_safety.config import AlembicConfig, toml_file
from alembic_safety.database.url import DatabaseURL, DatabaseURLError
from alembic_safety.errors import AlembicConfigError, MigrationError
from alembic_safety.metadata import load_metadata
from alembic_safety.options import SafetyOptions

_RECEIVER = "alembic_safety_receiver"
"""Config attribute with a callback that receives the project, instead of a command being run."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The database to migrate, and its role in the project."""

    url: DatabaseURL
    plan_url: DatabaseURL | None = None
    """URL of the server for the plan's scratch copy; None means the server of `url`."""
    production: bool = False
    """True if downgrades need confirmation and backups are full by default."""
    application: str = "alembic"
    """Name of the application; `application_name` of a migration session begins with it."""
    code_version: str = ""
    """Version of the code, for the migration history."""
    scratch_server: Callable[[], DatabaseURL] | None = None
    """Start a server and return its URL, for copies that the server of `url` can't hold."""
    start_tracing: Callable[[], None] = lambda: None
    """Set up tracing; called before revisions run."""


class Project:
    """Configuration, options and target of an Alembic project, each read on first use.

    Args:
        config: configuration of Alembic.
        load_config: returns `[tool.alembic]`.
        get_target: returns the database to migrate.
        readable: exceptions of the project whose messages are shown without a traceback.
        x_arguments: `key=value` arguments of `-x` on the command line.
    """

    def __init__(
        self,
        config: Config,
        load_config: Callable[[], AlembicConfig],
        get_target: Callable[[], Target],
        readable: Sequence[type[Exception]] = (),
        x_arguments: Sequence[str] = (),
    ) -> None:
        self._config = config
        self._load_config = load_config
        self._get_target = get_target
        self._readable = tuple(readable)
        self._x_arguments = list(x_arguments)
        self._attributes = dict(config.attributes)

    @classmethod
    def load(cls, config: Config) -> "Project":
        """Run the env.py of `config` and return its project, with options and target read.

        Raises:
            MigrationError: env.py fails or does not call `run_migrations`, or an option or a
                setting is invalid.
        """
        found: list[Project] = []

        def receive(project: Project) -> None:
            project.options, project.target  # noqa: B018 - both may need Alembic's context
            found.append(project)

        config.attributes[_RECEIVER] = receive
        try:
            with migration_errors():
                script = ScriptDirectory.from_config(config)
                with EnvironmentContext(config, script):
                    script.run_env()
        except tomllib.TOMLDecodeError as error:  # Alembic reads the file before env.py does
            raise AlembicConfigError(f"{toml_file(config)}: not valid TOML: {error}") from None
        finally:
            del config.attributes[_RECEIVER]
        if not found:
            raise MigrationError(
                f"{script.env_py_location}: call alembic_safety.run_migrations() there"
            )
        return found[0]

    def hand_over(self) -> bool:
        """Pass this project to `load`, if that runs env.py; return whether it does."""
        receive = self._config.attributes.get(_RECEIVER)
        if receive is not None:
            receive(self)
        return receive is not None

    @cached_property
    def toml_file(self) -> Path:
        """Path of pyproject.toml."""
        return toml_file(self._config)

    @property
    def root(self) -> Path:
        """The folder of pyproject.toml."""
        return self.toml_file.parent

    @cached_property
    def config(self) -> AlembicConfig:
        """`[tool.alembic]`.

        Raises:
            AlembicConfigError: the file can't be read, or a key is invalid.
        """
        try:
            return self._load_config()
        except tomllib.TOMLDecodeError as error:
            raise AlembicConfigError(f"{self.toml_file}: not valid TOML: {error}") from None
        except OSError as error:
            raise AlembicConfigError(f"{self.toml_file}: {error.strerror}") from None
        except AlembicConfigError as error:
            lines = [f"{self.toml_file}: {line}" for line in str(error).splitlines()]
            raise AlembicConfigError("\n".join(lines)) from None

    @cached_property
    def options(self) -> SafetyOptions:
        """The options, overridden by the environment, the command line and attributes.

        Raises:
            AlembicConfigError: an option is invalid.
        """
        return self.config.safety.overridden(
            environment=os.environ, x_arguments=self._x_arguments, attributes=self._attributes
        )

    @cached_property
    def target(self) -> Target:
        """The database to migrate.

        Raises:
            MigrationError: a setting is invalid; the message comes from the project.
        """
        try:
            with self._readable_errors():
                return self._get_target()
        except DatabaseURLError as error:
            raise MigrationError(f"the database URL {error}") from None

    def load_metadata(self) -> list[MetaData]:
        """Return the metadata of the models.

        Raises:
            MigrationError: the models can't be imported, or the option `metadata` is missing.
        """
        place = self.options.metadata
        if not place:
            raise AlembicConfigError(
                f"{self.toml_file}: [tool.alembic.safety]: metadata: missing; set the module:name of "
                'the models\' metadata, such as "shop.models:Base.metadata"'
            )
        with self._readable_errors(), interruptible():
            return load_metadata(place)

    def make_config(self, **attributes: object) -> Config:
        """Return a new configuration of Alembic for this project, with only these attributes."""
        ini = self._config.config_file_name and Path(self._config.config_file_name).absolute()
        config = Config(
            ini if ini and ini.exists() else None,
            toml_file=self.toml_file,
            ini_section=self._config.config_ini_section,
            # Not the program's own options: an error is raised, not printed.
            cmd_opts=Namespace(x=self._x_arguments, raiseerr=True),
            attributes=attributes,
        )
        for name in ("version_locations", "path_separator"):
            value = self._config.get_main_option(name)
            if value is not None and value != config.get_main_option(name):
                config.set_main_option(name, value)
        return config

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except self._readable as error:
            raise MigrationError(str(error)) from error
