"""Backups by pg_dump and restores by pg_restore."""
