"""Kept until 3.0: revisions of release 1 import `in_batches` from here."""

from alembic_safety import in_batches

__all__ = ["in_batches"]
