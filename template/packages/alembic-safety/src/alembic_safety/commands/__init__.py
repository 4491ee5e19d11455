"""Commands of the program. Each prints its result and returns an exit code."""
