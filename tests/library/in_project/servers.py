"""A second server, and ports that lead to one server or another."""

import shutil
import socket
import socketserver
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import psycopg
import pytest

from alembic_safety import embedded
from alembic_safety.database.url import DatabaseURL
from alembic_safety.errors import EmbeddedPostgresError


@contextmanager
def another_server(home: Path, database: str) -> Iterator[DatabaseURL]:
    """Run a server of the wheel; yield the URL of its database. Skip the test without a wheel."""
    try:
        url = DatabaseURL.parse(embedded.start(home, database))
    except EmbeddedPostgresError as error:
        pytest.skip(str(error))
    try:
        yield url
    finally:
        embedded.stop(home)
        shutil.rmtree(home)


@contextmanager
def proxy(choose: Callable[[bytes], DatabaseURL]) -> Iterator[int]:
    """Listen on a port of 127.0.0.1; yield the port.

    Args:
        choose: returns the server for a connection, given the first message of the client.
    """

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            first = self.request.recv(65536)
            if not first:
                return
            with _connect(choose(first)) as server:
                server.sendall(first)
                back = Thread(target=_pass_on, args=(server, self.request))
                back.start()
                _pass_on(self.request, server)
                back.join()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as listener:
        Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield listener.server_address[1]
        finally:
            listener.shutdown()


def _connect(url: DatabaseURL) -> socket.socket:
    with psycopg.connect(url.libpq) as connection:
        host, port = connection.info.host, connection.info.port
    if not host.startswith("/"):
        return socket.create_connection((host, port))
    connected = socket.socket(socket.AF_UNIX)
    connected.connect(f"{host}/.s.PGSQL.{port}")
    return connected


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
