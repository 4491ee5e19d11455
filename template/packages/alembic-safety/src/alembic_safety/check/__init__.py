"""The gate for CI: whether the revisions of a branch may be merged."""
