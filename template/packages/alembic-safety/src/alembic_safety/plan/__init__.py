"""What a migration would do: rehearsed on a copy of the schema, and read from the server."""
