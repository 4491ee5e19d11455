"""Connections to PostgreSQL, and what every session on it shares: lock, history, statements."""
