"""Execution of revisions: locking, retries, resumption and the history."""
