"""Backups by pg_dump, and restoring them."""
