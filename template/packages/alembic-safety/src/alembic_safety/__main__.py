"""`python -m alembic_safety`."""

from alembic_safety.cli import run

run()
