"""Revisions as files, in this checkout and in git."""
