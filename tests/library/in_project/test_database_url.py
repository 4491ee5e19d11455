"""The spellings of a database's URL, each of which means one server to every client."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import asyncpg
import psycopg
import pytest
from tests.inside.servers import another_server, proxy

from alembic_safety.backup.clients import find_client, libpq_environment
from alembic_safety.database.url import DatabaseURL

VARIABLES = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGUSER", "PGDATABASE", "PGSERVICE", "PGSERVICEFILE")
QUERY = (
    "SELECT current_setting('data_directory') || ' ' || current_user || ' ' || current_database()"
)


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "libpq"),
    [
        ("postgres://u:p@db/app", "postgresql://u:p@db:5432/app"),
        ("postgresql+asyncpg://u:p@db:6543/app", "postgresql://u:p@db:6543/app"),
        ("postgresql://u:p@[2001:db8::1]:6543/app", "postgresql://u:p@[2001:db8::1]:6543/app"),
        ("postgresql://u@/app?host=2001:db8::1", "postgresql://u@[2001:db8::1]:5432/app"),
        ("postgresql://u@/app?host=/run/pg", "postgresql://u@/app?host=/run/pg&port=5432"),
        ("postgresql://u@%2Frun%2Fpg/app", "postgresql://u@/app?host=/run/pg&port=5432"),
        ("postgresql://u@a:1,b:2/app", "postgresql://u@a:1,b:2/app"),
        ("postgresql://u@a:1,b/app?port=1,2", "postgresql://u@a:1,b:2/app"),
        ("postgresql://u@:7/app?host=a,b", "postgresql://u@a:7,b:7/app"),
        ("postgresql://u@a/app?host=a&user=u&dbname=app", "postgresql://u@a:5432/app"),
        ("postgresql:///?host=a&user=u&dbname=app", "postgresql://u@a:5432/app"),
        ("postgresql://u:p@db/app?ssl=require", "postgresql://u:p@db:5432/app?sslmode=require"),
        ("postgresql://u:p@ss@db/app", "postgresql://u:p%40ss@db:5432/app"),
    ],
)
def test_every_spelling_becomes_one(text: str, libpq: str) -> None:
    url = DatabaseURL.parse(text)
    assert url.libpq == libpq
    assert DatabaseURL.parse(libpq) == url


def test_settings_of_the_session_reach_libpq_as_options() -> None:
    url = DatabaseURL.parse("postgresql://u@db/app?search_path=a b&options=-c x=1&sslmode=require")
    assert url.libpq == (
        "postgresql://u@db:5432/app"
        "?sslmode=require&options=-c%20x%3D1%20-c%20search_path%3Da%5C%20b"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("postgresql://u@a:1/app?host=/run/b", "has two hosts, a and /run/b;"),
        ("postgresql://u@a,b/app?host=b,a", "has two hosts, a,b and b,a;"),
        ("postgresql://u@/app?host=a&host=b", "has two hosts, a and b;"),
        ("postgresql://u@a:1/app?port=2", "has two ports, 1 and 2;"),
        ("postgresql://u@a:1,b/app?port=2", "has two ports, 1 and 2;"),
        ("postgresql://u@a/app?user=v", "has two users, u and v;"),
        ("postgresql://u@a/app?dbname=shop", "has two databases, app and shop;"),
        ("postgresql://u@a/app?database=shop", "has two databases, app and shop;"),
        ("postgresql://u:secret@a/app?password=secret2", "has two passwords;"),
        ("postgresql://u@a,b,c/app?port=1,2", "has 2 ports for 3 hosts"),
        ("postgresql://u@a,/app", "has an empty host in its list"),
        ("postgresql://u@a/app?hostaddr=10.0.0.1", "has the parameter hostaddr; "),
        ("postgresql://u@a/app?service=shop", "has the parameter service; "),
    ],
)
def test_parts_that_contradict_each_other_are_refused_by_name(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        DatabaseURL.parse(text)
    assert str(error.value).startswith(says)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def leads_to(url: DatabaseURL) -> Callable[[bytes], DatabaseURL]:
    return lambda _first: url


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """Two servers: the folders of their sockets, their ports on 127.0.0.1, a service of `b`."""
    folder = tmp_path_factory.mktemp("servers")
    found: dict[str, object] = {}
    with ExitStack() as stack:
        for name in ("a", "b"):
            url = stack.enter_context(another_server(folder / name, "app"))
            port = stack.enter_context(proxy(leads_to(url)))
            with psycopg.connect(url.libpq) as connection:
                socket = connection.info.host
            found |= {f"{name}_socket": socket, f"{name}_port": port}
            found |= {f"{name}_quoted": socket.replace("/", "%2F"), f"{name}_data": folder / name}
        service = folder / "services.conf"
        service.write_text(f"[b]\nhost={found['b_socket']}\n")
        yield {**found, "service": service}


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("postgresql://postgres@127.0.0.1:{a_port}/app", ""),
        ("postgresql://postgres@127.0.0.1/app?port={a_port}", ""),
        ("postgresql://postgres@:{a_port}/app?host=127.0.0.1", ""),
        ("postgresql:///app?host=127.0.0.1&port={a_port}&user=postgres", ""),
        ("postgresql://postgres@127.0.0.1:{a_port}/?dbname=app", ""),
        ("postgresql://postgres@/app?host=127.0.0.1:{a_port}", ""),
        ("postgresql://postgres@/app?host={a_socket}", ""),
        ("postgresql://postgres@{a_quoted}/app", ""),
        ("postgresql://postgres@{a_quoted}:5432/app?host={a_socket}", ""),
        ("postgresql://postgres@127.0.0.1:1,127.0.0.1:{a_port}/app", ""),
        ("postgresql://postgres@127.0.0.1,127.0.0.1/app?port=1,{a_port}", ""),
        ("postgresql://postgres@/app?host=/nowhere,{a_socket}&port=1,5432", ""),
        ("postgresql://postgres@/app?host=127.0.0.1,{a_socket}&port=1,5432", ""),
        ("postgresql://postgres@/app", "PGHOST={a_socket}"),
        ("postgresql://postgres@/app", "PGHOST=127.0.0.1 PGPORT={a_port}"),
        ("postgresql://postgres@:{a_port}/app", "PGHOST=127.0.0.1 PGPORT={b_port}"),
        ("postgresql://postgres@/app?host={a_socket}", "PGHOST={b_socket}"),
        ("postgresql://postgres@127.0.0.1:1,127.0.0.1/app", "PGPORT={a_port}"),
        ("postgresql:///app?host={a_socket}", "PGUSER=postgres"),
        ("postgresql://postgres@/app?host={a_socket}", "PGUSER=nobody PGDATABASE=postgres"),
        ("postgresql://postgres@/app?host={a_socket}", "PGHOSTADDR=127.0.0.1"),
        ("postgresql://postgres@/app", "PGHOST={a_socket} PGSERVICE=b PGSERVICEFILE={service}"),
    ],
)
async def test_asyncpg_and_libpq_reach_the_same_server(
    text: str, variables: str, places: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in variables.format(**places).split():
        monkeypatch.setenv(*variable.split("=", 1))
    url = DatabaseURL.parse(text.format(**places))
    expected = f"{places['a_data']}/data postgres app"
    connection = await asyncpg.connect(**url.asyncpg_arguments())
    try:
        assert await connection.fetchval(QUERY) == expected
    finally:
        await connection.close()
    assert ask_psql(url) == expected


def ask_psql(url: DatabaseURL) -> str:
    command = [find_client("psql", url), "-XAtqw", "-d", url.without_password, "-c", QUERY]
    environment = libpq_environment(url)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


async def test_without_a_host_both_look_for_a_socket_in_the_same_folders() -> None:
    url = DatabaseURL.parse("postgresql://u@/app")
    folders = ["/var/run/postgresql", "/tmp", "localhost"]  # noqa: S108
    assert url.asyncpg_arguments()["host"] == folders
    assert url.libpq == f"postgresql://u@/app?host={','.join(folders)}&port=5432"


def test_a_wrong_port_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "postgres")
    with pytest.raises(ValueError, match=r"PGPORT\) that is not a number"):
        DatabaseURL.parse("postgresql://u@db/app")
    assert DatabaseURL.parse("postgresql://u@db:1/app").hosts == (("db", 1),)


def test_the_user_s_name_is_the_same_to_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "somebody")  # libpq would take the name of the process's user
    url = DatabaseURL.parse("postgresql://db/app")
    assert url.asyncpg_arguments()["user"] == "somebody"
    assert url.libpq == "postgresql://somebody@db:5432/app"


@pytest.mark.parametrize("password", ["p@ss", "a:b/c?d#e", "100%", "ünïcode", "p%40", " "])
def test_a_password_arrives_as_it_is(password: str) -> None:
    quoted = "".join(f"%{byte:02X}" for byte in password.encode())
    url = DatabaseURL.parse(f"postgresql://u:{quoted}@db/app")
    assert url.password == password
    assert DatabaseURL.parse(url.libpq) == url


def test_what_only_libpq_knows_does_not_reach_asyncpg() -> None:
    url = DatabaseURL.parse(
        "postgresql://u@db/app?sslmode=require&channel_binding=require&keepalives=1"
        "&connect_timeout=7"
    )
    assert url.asyncpg_arguments() == {
        "host": ["db"],
        "port": [5432],
        "user": "u",
        "password": None,
        "database": "app",
        "dsn": "postgresql:///?sslmode=require",
        "timeout": 7.0,
    }
    assert "channel_binding=require" in url.libpq


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mysql://u:secret@db/app", "scheme 'mysql'"),
        ("sqlite:///file.db", "scheme 'sqlite'"),
        ("postgresql+pg8000://u:secret@db/app", "scheme 'postgresql+pg8000'"),
        ("secret", "not a URL"),
        ("postgresql://u:secret@db", "names no database"),
        ("postgresql://u:secret@db:port/app", "port"),
        ("postgresql://u:se/cret@db/app", "%2F"),
        ("postgresql://u:secret@db:99999/app", "port"),
        ("postgresql://u:sec#ret@db/app", "%23"),
        ("postgresql://u:/secret@db/app", "%2F"),
        ("postgresql://u:12/secret@db/app", "%2F"),
        ("postgresql://u:secret@db/app?sslmode=bogus", "expected one of prefer"),
        ("postgresql://u:secret@db/app?port=abc", "port"),
        ("postgresql://u:sec[ret@db/app", "percent-encode"),
    ],
)
def test_what_is_refused_is_said_without_the_password(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        DatabaseURL.parse(text)
    assert says in str(error.value)
    assert "secret" not in str(error.value)
    assert "ret@" not in str(error.value)


def test_no_text_form_shows_the_password() -> None:
    url = DatabaseURL.parse("postgresql://u:secret@db/app?sslpassword=secret&sslmode=require")
    other = DatabaseURL.parse("postgresql://u@db/app?password=secret")
    assert other.password == "secret"  # noqa: S105
    assert "secret" not in f"{other} {other!r}"
    assert "secret" not in f"{url} {url!r} {url.without_password}"
    misspelled = DatabaseURL.parse("postgresql://u@db/app?passwort=secret&search_path=tenant")
    assert str(misspelled) == "postgresql://u@db:5432/app?passwort=***&search_path=tenant"
    assert "secret" not in repr(misspelled)
    assert "secret" in misspelled.libpq


@pytest.mark.parametrize(
    ("scheme", "driver"),
    [
        ("postgres", "asyncpg"),
        ("postgresql", "asyncpg"),
        ("postgresql+asyncpg", "asyncpg"),
        ("postgresql+psycopg", "psycopg"),
        ("postgresql+psycopg_async", "psycopg"),
        ("postgresql+psycopg2", "psycopg2"),
    ],
)
def test_the_scheme_names_the_driver_of_revisions(scheme: str, driver: str) -> None:
    url = DatabaseURL.parse(f"{scheme}://u@db/app")
    assert url.driver == driver
    assert url.with_database("other").driver == driver
    assert url.libpq == "postgresql://u@db:5432/app"
