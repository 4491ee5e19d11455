"""What squawk, a linter of SQL, finds in a revision: for a comparison with `make migrate-plan`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

NOT_OF_SAFETY = frozenset(
    {
        # Which type a new column should have. No type that was chosen blocks or breaks anything.
        "ban-char-field",
        "prefer-bigint-over-int",
        "prefer-bigint-over-smallint",
        "prefer-identity",
        "prefer-text-field",
        "prefer-timestamp-tz",
        # How things are called, and where a value of an enum stands.
        "identifier-too-long",
        "require-enum-value-ordering",
        "require-table-schema",
        # IF NOT EXISTS, for a migration that failed halfway: Alembic runs it in a transaction.
        "prefer-robust-stmts",
        # BEGIN and COMMIT are Alembic's, and are printed around each revision.
        "ban-uncommitted-transaction",
        "transaction-nesting",
        # The runner sets the timeouts; a revision has nothing to do with them.
        "require-lock-timeout",
        "require-statement-timeout",
        "require-timeout-settings",
        # squawk's own: its comments, and SQL that it can't read. The server could.
        "syntax-error",
        "unused-ignore",
    }
)
"""Rules that say nothing of locks, lost data or broken code; all others of the default ones count.

So do the two that `make migrate-plan` does not share: `ban-drop-not-null`, for code that does not
expect NULL, and `require-concurrent-index-deletion`, for a lock that is short.
"""

ASKED_FOR = (
    "ban-alter-generated-expression",
    "ban-alter-row-level-security",
    "ban-detach-inheritance",
    "ban-disable-trigger",
)
"""Rules that squawk has to be asked for, chosen in its favour.

Each finds something unsafe in the corpus that nothing else of it does, and calls no safe way unsafe.
The others find nothing more there, or, as `ban-add-column` and `ban-new-write-restriction`, call
more than thirty of the safe ways unsafe for the five operations that they find.
"""

_FOUND_SOMETHING = 1


def squawk_finds(sql: str, version: int) -> set[str]:
    """Return the rules that squawk says `sql` breaks, but for those of style.

    Args:
        sql: all of one revision as `alembic upgrade --sql` prints it, with BEGIN and COMMIT: where
            a transaction ends tells squawk what may run CONCURRENTLY.
        version: the major version of PostgreSQL that it is for.

    Raises:
        RuntimeError: squawk did not run. Its message says why.
    """
    folder = str(Path(sys.executable).parent)
    program = shutil.which("squawk", path=folder) or shutil.which("squawk") or "squawk"
    command = [program, "--reporter=json", f"--pg-version={version}"]
    command += [f"--include={rule}" for rule in ASKED_FOR]
    done = subprocess.run(command, input=sql, capture_output=True, text=True, check=False)
    # It ends with 1 for a finding, and for files it can't read; with 2 for wrong options.
    if done.returncode not in {0, _FOUND_SOMETHING} or not done.stdout:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr}")
    return {found["rule_name"] for found in json.loads(done.stdout)} - NOT_OF_SAFETY
