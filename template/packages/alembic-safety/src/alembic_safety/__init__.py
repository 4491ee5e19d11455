"""Safe Alembic migrations on PostgreSQL."""
