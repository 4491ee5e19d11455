"""What stands behind `migrations/env.py`: plain Alembic commands get all of it."""
