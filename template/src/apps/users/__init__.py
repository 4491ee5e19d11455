"""Example app. To remove it, delete this folder and `tests/apps/users`.

Then `make migrate-create MSG="Drop users"` writes the revision that drops its table.
"""
