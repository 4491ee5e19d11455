"""The project's sources: revisions as files, other branches, and the models of other commits."""
