"""The gate: checks that revisions have to pass before they are merged."""
