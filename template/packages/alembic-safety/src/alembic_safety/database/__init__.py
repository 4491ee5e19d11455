"""PostgreSQL connections, the migration lock, the migration history and statement hooks."""
