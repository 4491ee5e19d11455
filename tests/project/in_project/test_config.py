"""Settings, right and wrong."""

from collections.abc import Iterator

import pytest

from core import config
from core.config import AnySettings, SettingsError, get_settings, read_settings
from main import create_app

URL = "postgresql://u:secret@db:5432/app"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in config.Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def settings(monkeypatch: pytest.MonkeyPatch, **variables: str) -> config.Settings:
    for name, value in {"ENVIRONMENT": "test", **variables}.items():
        monkeypatch.setenv(name, value)
    return get_settings()


@pytest.mark.parametrize("name", ["DATABASE_URL", "SQLALCHEMY_DATABASE_URI"])
def test_both_names_of_the_url_do(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert settings(monkeypatch, **{name: URL}).url.libpq == URL


def test_both_names_may_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    other = URL.replace("postgresql", "postgresql+asyncpg")
    both = settings(monkeypatch, DATABASE_URL=URL, SQLALCHEMY_DATABASE_URI=other)
    assert both.url.libpq == URL


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"DATABASE_URL": URL, "SQLALCHEMY_DATABASE_URI": URL + "2"}, "differ"),
        ({"ENVIRONMENT": "prod"}, "DATABASE_URL is not set"),
        ({"ENVIRONMENT": "staging"}, "ENVIRONMENT: "),
        ({"DATABASE_URL": "mysql://u:secret@db/app"}, "DATABASE_URL: has the scheme 'mysql'"),
        ({"DATABASE_POOL_SIZE": "many"}, "DATABASE_POOL_SIZE: "),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says: str
) -> None:
    with pytest.raises(SettingsError) as error:
        settings(monkeypatch, **variables)
    assert says in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert "secret" not in str(error.value)


def test_each_wrong_setting_has_its_line_and_the_application_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_POOL_SIZE", "0")
    monkeypatch.setenv("LOG_LEVEL", "LOUD")
    monkeypatch.setenv("ENVIRONMENT", "test")
    with pytest.raises(SystemExit) as error:
        create_app()
    lines = str(error.value.code).splitlines()
    assert [line.split(":")[0] for line in lines] == ["DATABASE_POOL_SIZE", "LOG_LEVEL"]


def test_dotenv_is_read_in_dev_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / ".env").write_text(f"DATABASE_URL={URL}\nDATABASE_POOL_SIZE=7\n", encoding="utf-8")
    monkeypatch.setattr(config, "ROOT", root)
    assert get_settings().database_pool_size == 7
    get_settings.cache_clear()
    assert settings(monkeypatch, ENVIRONMENT="test").database_pool_size == 15


def test_dotenv_can_not_make_it_prod(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / ".env").write_text(f"ENVIRONMENT=prod\nDATABASE_URL={URL}\n", encoding="utf-8")
    monkeypatch.setattr(config, "ROOT", root)
    with pytest.raises(SettingsError, match=r"^ENVIRONMENT: \.env says prod"):
        get_settings()


class OwnSettings(AnySettings):
    orders_per_page: int = 20


def test_an_app_s_own_settings_are_read_and_refused_like_the_service_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert read_settings(OwnSettings).orders_per_page == 20
    monkeypatch.setenv("ORDERS_PER_PAGE", "50")
    assert read_settings(OwnSettings).orders_per_page == 50
    monkeypatch.setenv("ORDERS_PER_PAGE", "many")
    with pytest.raises(SettingsError, match=r"^ORDERS_PER_PAGE: Input should be a valid integer"):
        read_settings(OwnSettings)


def test_an_empty_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "")
    get_settings.cache_clear()
    with pytest.raises(SettingsError, match="ENVIRONMENT: is empty; set dev, test or prod"):
        get_settings()
    get_settings.cache_clear()
