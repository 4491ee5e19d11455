"""Kept until 3.0 for revisions that import `core.migrations.batches`."""
