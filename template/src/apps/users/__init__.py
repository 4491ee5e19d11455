"""The example app. To do without it, delete this folder and `tests/apps/users`."""
