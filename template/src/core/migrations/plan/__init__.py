"""Plans: pending revisions are rehearsed on a scratch copy, and checked for hazards."""
