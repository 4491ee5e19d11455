"""Conversion of a project from alembic.ini to `[tool.alembic]` of pyproject.toml, and back.

Alembic's own options and hooks become `[tool.alembic]`, the logging sections become
`[tool.alembic.logging]`, and other sections and options that env.py reads become
`[tool.alembic.sections]`. The URL and other secrets move to the environment. env.py is edited where
it depends on the file, so that it works with either.

Each conversion runs in a copy of the project first. Unless Alembic reads the same options there and
`heads`, `history` and `upgrade base:heads --sql` print the same as before, nothing is changed.
"""
