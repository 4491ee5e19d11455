"""The spellings of a database's address."""

import pytest

from alembic_safety.database.url import DatabaseURL


@pytest.mark.parametrize(
    ("text", "libpq"),
    [
        ("postgres://u:p@db/app", "postgresql://u:p@db/app"),
        ("postgresql+asyncpg://u:p@db:6543/app", "postgresql://u:p@db:6543/app"),
        ("postgresql://u:p@[2001:db8::1]:6543/app", "postgresql://u:p@[2001:db8::1]:6543/app"),
        ("postgresql:///app?host=/run/pg", "postgresql:///app?host=/run/pg"),
        ("postgresql://u@%2Frun%2Fpg/app", "postgresql://u@%2Frun%2Fpg/app"),
        ("postgresql://a:1,b:2/app", "postgresql://a:1,b:2/app"),
        ("postgresql://u:p@db/app?ssl=require", "postgresql://u:p@db/app?sslmode=require"),
        ("postgresql://u:p@ss@db/app", "postgresql://u:p%40ss@db/app"),
    ],
)
def test_every_spelling_becomes_one(text: str, libpq: str) -> None:
    assert DatabaseURL.parse(text).libpq == libpq


def test_settings_of_the_session_reach_libpq_as_options() -> None:
    url = DatabaseURL.parse("postgresql://db/app?search_path=a b&options=-c x=1&sslmode=require")
    assert url.libpq == (
        "postgresql://db/app?sslmode=require&options=-c%20x%3D1%20-c%20search_path%3Da%5C%20b"
    )


def test_a_second_database_s_name_is_refused() -> None:
    with pytest.raises(ValueError, match="has a parameter dbname"):
        DatabaseURL.parse("postgresql://db/app?dbname=another")


@pytest.mark.parametrize("password", ["p@ss", "a:b/c?d#e", "100%", "ünïcode", "p%40", " "])
def test_a_password_arrives_as_it_is(password: str) -> None:
    quoted = "".join(f"%{byte:02X}" for byte in password.encode())
    url = DatabaseURL.parse(f"postgresql://u:{quoted}@db/app")
    assert url.password == password
    assert DatabaseURL.parse(url.libpq) == url


def test_what_only_libpq_knows_does_not_reach_asyncpg() -> None:
    url = DatabaseURL.parse(
        "postgresql://db/app?sslmode=require&channel_binding=require&keepalives=1&connect_timeout=7"
    )
    assert url.asyncpg_arguments() == {
        "dsn": "postgresql://db/app?sslmode=require",
        "timeout": 7.0,
    }
    assert "channel_binding=require" in url.libpq


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mysql://u:secret@db/app", "scheme 'mysql'"),
        ("sqlite:///file.db", "scheme 'sqlite'"),
        ("postgresql+psycopg2://u:secret@db/app", "scheme 'postgresql+psycopg2'"),
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
