"""An Alembic project, as its migrations/env.py describes it."""

import os
import tomllib
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
from alembic_safety.config import AlembicConfig, make_config, toml_file
from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import AlembicConfigError, MigrationError
from alembic_safety.metadata import load_metadata
from alembic_safety.options import SafetyOptions

_RECEIVER = "alembic_safety_receiver"
"""The attribute by which a command asks env.py for its project, instead of having it run."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The database that is migrated, and what the project knows about it."""

    url: DatabaseURL
    plan_url: DatabaseURL | None = None
    """A database on the server where the plan makes its copy; by default the migrated one's."""
    production: bool = False
    """Whether downgrades have to be confirmed, and backups are full by default."""
    application: str = "alembic"
    """The application's name; sessions of migrations are named after it."""
    code_version: str = ""
    """What the history says of the code that ran."""
    scratch_server: Callable[[], DatabaseURL] | None = None
    """Starts another server, for copies that can't be made on the first."""
    start_tracing: Callable[[], None] = lambda: None
    """Called before revisions run."""


class Project:
    """The configuration, options and target of an Alembic project, each read when it is needed.

    Args:
        config: Alembic's.
        load_config: reads `[tool.alembic]`.
        get_target: returns the target.
        readable: the project's exceptions whose messages are complete.
        x_arguments: `key=value` of the command line's `-x`.
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
        self._x_arguments = tuple(x_arguments)
        self._attributes = dict(config.attributes)

    @classmethod
    def load(cls, config: Config) -> "Project":
        """Return the project that env.py of `config` describes, with its options and target.

        Raises:
            MigrationError: env.py can't be run or does not call `run_migrations`, or an option or a
                setting is wrong.
        """
        found: list[Project] = []

        def receive(project: Project) -> None:
            project.options, project.target  # noqa: B018 - they may use Alembic's context
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
                f"{script.env_py_location}: does not call alembic_safety.run_migrations"
            )
        return found[0]

    def hand_over(self) -> bool:
        """Give this project to the command that asked env.py for it; return whether one did."""
        receive = self._config.attributes.get(_RECEIVER)
        if receive is not None:
            receive(self)
        return receive is not None

    @cached_property
    def toml_file(self) -> Path:
        """The pyproject.toml."""
        return toml_file(self._config)

    @property
    def root(self) -> Path:
        """The folder of pyproject.toml."""
        return self.toml_file.parent

    @cached_property
    def config(self) -> AlembicConfig:
        """`[tool.alembic]`.

        Raises:
            AlembicConfigError: it can't be read, or a key is wrong.
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
        """The options, those of the environment and the command line included.

        Raises:
            AlembicConfigError: one of them is wrong.
        """
        return self.config.safety.overridden(
            environment=os.environ, x_arguments=self._x_arguments, attributes=self._attributes
        )

    @cached_property
    def target(self) -> Target:
        """The database that is migrated.

        Raises:
            MigrationError: a setting is wrong; the message is the project's.
        """
        with self._readable_errors():
            return self._get_target()

    def load_metadata(self) -> list[MetaData]:
        """Return the metadata of the models.

        Raises:
            MigrationError: the models can't be imported, or nobody says where they are.
        """
        place = self.options.metadata
        if not place:
            raise AlembicConfigError(
                f"{self.toml_file}: [tool.alembic.safety]: metadata: missing; where the models are, "
                'such as "shop.models:Base.metadata"'
            )
        with self._readable_errors():
            return load_metadata(place)

    def make_config(self, **attributes: object) -> Config:
        """Return a new configuration of Alembic for this project, with these attributes only."""
        made = make_config(self.toml_file.parent, **attributes)
        for name in ("version_locations", "path_separator"):
            value = self._config.get_main_option(name)
            if value is not None and value != made.get_main_option(name):
                made.set_main_option(name, value)
        return made

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except self._readable as error:
            raise MigrationError(str(error)) from error
