"""Single steps: revisions applied and reverted one by one, as by separate commands."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationStep
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text

from alembic_safety.plan.fingerprint import Fingerprint, FingerprintReader
from alembic_safety.plan.guard import ServerGuard
from alembic_safety.plan.locks import read_locked_oids
from alembic_safety.project import Project


class Step(NamedTuple):
    """A revision to apply or revert, whatever branches and merges surround it."""

    revision: str
    up: bool


class StepRunner(ServerGuard):
    """Runs steps on a connection, and reads the schema after each."""

    def __init__(self, connection: Connection, project: Project, *, shared: bool) -> None:
        super().__init__(connection, shared=shared)
        self._project = project
        self.fingerprints: list[Fingerprint] = []
        """Fingerprints of the schema before the first step, and after each that succeeded."""
        self._schema = FingerprintReader(connection)
        self._outside = False
        """Whether the revision has run a statement outside its transaction."""

    def run(self, steps: Sequence[Step]) -> str:
        """Run the steps until one fails; return its error, or an empty string."""
        database = self._connection.scalar(text("SELECT current_database()"))
        config = self._project.make_config(
            connection=self._connection, observer=self, confirm=database
        )
        self._schema.read()
        self._connection.rollback()
        self.fingerprints.append(self._schema.fingerprint)
        script = ScriptDirectory.from_config(config)
        try:
            with self.watching():
                for step in steps:
                    _run_alone(step, config, script)
        except CommandError as error:
            return str(error)
        return ""

    def begin(self, revision: str) -> None:
        """Begin a revision."""
        super().begin(revision)
        self._outside = False

    def end(self) -> None:
        """End the revision."""
        super().end()
        self._schema.read(None if self._outside else read_locked_oids(self._connection))
        self.fingerprints.append(self._schema.fingerprint)

    def _before(self, connection: Connection, cursor: Any, sql: str, *rest: Any) -> None:
        super()._before(connection, cursor, sql, *rest)
        if self._in_revision:
            options = connection.get_execution_options()
            self._outside = self._outside or options.get("isolation_level") == "AUTOCOMMIT"


def _run_alone(step: Step, config: Config, script: ScriptDirectory) -> None:
    """Run a step in a separate MigrationContext, as a command would.

    The context remembers which named types it has created. In the context of an earlier step, a
    type that was dropped since would not be created again.
    """
    make = MigrationStep.upgrade_from_script if step.up else MigrationStep.downgrade_from_script
    alone = make(script.revision_map, script.get_revision(step.revision))
    with EnvironmentContext(config, script, fn=lambda *_: [alone], destination_rev="heads"):
        script.run_env()
