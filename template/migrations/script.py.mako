<%!
def in_docstring(text):
    return text.replace("\\", "\\\\").replace('"', '\\"')
%>\
"""${message | in_docstring}

Revision ID: ${up_revision}
Revises: ${", ".join([down_revision] if isinstance(down_revision, str) else down_revision or ["nothing"])}
Create Date: ${create_date}
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision: str = ${repr(up_revision)}
down_revision: str | Sequence[str] | None = ${repr(down_revision)}
branch_labels: str | Sequence[str] | None = ${repr(branch_labels)}
depends_on: str | Sequence[str] | None = ${repr(depends_on)}


def upgrade() -> None:
    """Bring the schema to this revision."""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Bring the schema back to the revision before."""
    ${downgrades if downgrades else "pass"}
