"""Running revisions: one runner at a time, retried, resumed, recorded."""
