"""The project's own PostgreSQL, which still runs when the project is updated."""

import stat

import psycopg
from tests.releases import Copies, find_releases

from alembic_safety import embedded

RELEASE = [release for release in find_releases() if release.version < (2, 0, 0)][-1]


def test_a_server_of_release_1_goes_on_until_it_is_stopped(copies: Copies) -> None:
    project = copies.copy("project", RELEASE.tag)
    home = project.path / ".postgres"
    try:
        project.make("migrate-up")
        pid = (home / "data" / "postmaster.pid").read_text().split()[0]
        copies.update(project)
        assert "The database is at head" in project.make("migrate-status").stdout
        with psycopg.connect(embedded.start(home, "postgres"), autocommit=True) as connection:
            connection.execute("CHECKPOINT")  # the server opens its files again
        assert "The database is at head" in project.make("migrate-status").stdout
        assert (home / "data" / "postmaster.pid").read_text().split()[0] == pid
        assert "stopped" in project.make("db-stop").stdout
        assert "The database is at head" in project.make("migrate-status").stdout
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
    finally:
        embedded.stop(home)
