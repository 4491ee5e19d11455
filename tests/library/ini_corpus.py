"""alembic.ini files in the forms that public projects use, and the expected result of each.

The files were written for this suite.
"""

from dataclasses import dataclass, field
from typing import Any

URL = "sqlalchemy.url = postgresql://me:s3cret@db.example.com/app"
LOGGING = """
[loggers]
keys = root,sqlalchemy,alembic

[handlers]
keys = console

[formatters]
keys = generic

[logger_root]
level = WARN
handlers = console
qualname =

[logger_sqlalchemy]
level = WARN
handlers =
qualname = sqlalchemy.engine

[logger_alembic]
level = INFO
handlers =
qualname = alembic

[handler_console]
class = StreamHandler
args = (sys.stderr,)
level = NOTSET
formatter = generic

[formatter_generic]
format = %(levelname)-5.5s [%(name)s] %(message)s
datefmt = %H:%M:%S
"""
OFFLINE_AND_ONLINE = """

def run_migrations_offline():
    context.configure(url={url}, literal_binds=True, dialect_opts={{"paramstyle": "named"}})
    with context.begin_transaction():
        context.run_migrations()


def run_migrations_online():
    connectable = {engine}
    with connectable.connect() as connection:
        context.configure(connection=connection)
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    run_migrations_offline()
else:
    run_migrations_online()
"""


def env(
    head: str,
    url: str = 'config.get_main_option("sqlalchemy.url")',
    engine: str = 'engine_from_config(config.get_section(config.config_ini_section), prefix="sqlalchemy.")',
) -> str:
    """Return the text of an env.py.

    Args:
        head: the code after the imports.
        url: the expression for the URL of offline runs.
        engine: the expression for the engine of online runs.
    """
    imports = "import os\nfrom logging.config import fileConfig\n\nfrom alembic import context\n"
    imports += "from sqlalchemy import create_engine, engine_from_config, pool\n\n"
    return imports + head + OFFLINE_AND_ONLINE.format(url=url, engine=engine)


CONFIG = "config = context.config\n"
FILE_CONFIG = f"{CONFIG}fileConfig(config.config_file_name)\n"


@dataclass(frozen=True)
class Case:
    """An ini, its project, and the expected result."""

    name: str
    ini: str
    """The text after `[alembic]`; a text that begins with `[` is the whole file."""
    table: dict[str, Any]
    """The expected `[tool.alembic]`, without `logging`."""
    env: str = "generic"
    """The name of a template of `alembic init`, or the text of env.py."""
    location: str = "migrations"
    versions: tuple[str, ...] = ()
    """The folders of the revisions, used in turn; by default `versions` in `location`."""
    files: dict[str, str] = field(default_factory=dict)
    logging: bool = True
    says: tuple[str, ...] = ()
    """Expected parts of the output."""
    never: tuple[str, ...] = ("s3cret",)
    """Secrets that only the old file may hold."""
    arguments: tuple[str, ...] = ()


HERE = {"script_location": "%(here)s/migrations"}
PLAIN = {"script_location": "migrations"}

CASES = [
    # --- Files of `alembic init`
    # Alembic 1.16 and later.
    Case(
        "init-1.16",
        f"script_location = %(here)s/migrations\nprepend_sys_path = .\npath_separator = os\n{URL}\n[post_write_hooks]\n",
        {**HERE, "prepend_sys_path": ["."]},
        says=("set DATABASE_URL=postgresql://me:***@db.example.com/app",),
    ),
    # Alembic 1.8 to 1.15: no %(here)s; version_path_separator without version_locations.
    Case(
        "init-1.8",
        f"script_location = migrations\nprepend_sys_path = .\nversion_path_separator = os\n{URL}\n[post_write_hooks]\n",
        {**PLAIN, "prepend_sys_path": ["."]},
    ),
    # Alembic 1.7 wrote a comment after the value, which becomes part of the value.
    Case(
        "init-1.7-comment-in-the-separator",
        f"script_location = migrations\nprepend_sys_path = .\nversion_path_separator = os  # Use os.pathsep. Default configuration used for new projects.\n{URL}\n",
        {**PLAIN, "prepend_sys_path": ["."]},
    ),
    # Alembic before 1.5: neither prepend_sys_path nor hooks; the folder is `alembic`.
    Case(
        "init-1.0",
        f"script_location = alembic\n{URL}\n",
        {"script_location": "alembic"},
        location="alembic",
    ),
    # `alembic init -t async`.
    Case(
        "init-async",
        "script_location = %(here)s/migrations\nprepend_sys_path = .\npath_separator = os\nsqlalchemy.url = postgresql+asyncpg://me:s3cret@db/app\n",
        {**HERE, "prepend_sys_path": ["."]},
        env="async",
        says=("set DATABASE_URL=postgresql+asyncpg://me:***@db/app",),
    ),
    # `alembic init -t multidb`: a URL and a file of SQL for each database.
    Case(
        "init-multidb",
        "script_location = migrations\nprepend_sys_path = .\ndatabases = engine1, engine2\n[engine1]\nsqlalchemy.url = postgresql://me:s3cret@db/one\n[engine2]\nsqlalchemy.url = sqlite:///two.db\n",
        {**PLAIN, "prepend_sys_path": ["."], "databases": "engine1, engine2"},
        env="multidb",
        says=(
            "set ENGINE1_DATABASE_URL=postgresql://me:***@db/one",
            "set ENGINE2_DATABASE_URL=sqlite:///two.db",
        ),
    ),
    # A database's section with an option next to the URL.
    Case(
        "multidb-with-options",
        "script_location = migrations\ndatabases = main,archive\n[main]\nsqlalchemy.url = postgresql://me:s3cret@db/one\nsqlalchemy.echo = false\n[archive]\nsqlalchemy.url = sqlite://\n",
        {**PLAIN, "databases": "main,archive", "sections": {"main": {"sqlalchemy.echo": "false"}}},
        env="multidb",
    ),
    # `alembic init -t pyproject`: the ini has only the URL and the logging.
    Case(
        "init-pyproject",
        f"{URL}\n",
        {"script_location": "%(here)s/migrations", "prepend_sys_path": ["."]},
        env="pyproject",
        files={
            "pyproject.toml": '[tool.alembic]\nscript_location = "%(here)s/migrations"\nprepend_sys_path = ["."]\n'
        },
    ),
    # `alembic init -t pyproject_async`; of an option in both files, the ini's value counts.
    Case(
        "both-files-have-a-key",
        "timezone = Europe/Paris\nsqlalchemy.url = postgresql+asyncpg://me:s3cret@db/app\n",
        {
            "script_location": "%(here)s/migrations",
            "timezone": "Europe/Paris",
            "truncate_slug_length": 30,
        },
        env="pyproject_async",
        files={
            "pyproject.toml": '[tool.alembic]\nscript_location = "%(here)s/migrations" # where\ntimezone = "UTC"\ntruncate_slug_length = 30\n'
        },
    ),
    # --- script_location
    # env.py deep in a package below src: FastAPI services laid out by layers.
    Case(
        "deep-location",
        f"script_location = src/app/db/migrations\nprepend_sys_path = src\n{URL}\n",
        {"script_location": "src/app/db/migrations", "prepend_sys_path": ["src"]},
        location="src/app/db/migrations",
    ),
    # A package's resource: libraries that ship their migrations.
    Case(
        "package-resource",
        f"script_location = shop:migrations\nprepend_sys_path = .\n{URL}\n",
        {"script_location": "shop:migrations", "prepend_sys_path": ["."]},
        location="shop/migrations",
        files={"shop/__init__.py": ""},
    ),
    # A dotted package below src.
    Case(
        "package-resource-in-src",
        f"script_location = shop.db:migrations\nprepend_sys_path = src\n{URL}\n",
        {"script_location": "shop.db:migrations", "prepend_sys_path": ["src"]},
        location="src/shop/db/migrations",
        files={"src/shop/__init__.py": "", "src/shop/db/__init__.py": ""},
    ),
    # A leading ./ and a trailing /.
    Case(
        "dot-slash",
        f"script_location = ./migrations/\n{URL}\n",
        {"script_location": "./migrations/"},
    ),
    # %(here)s in the middle of a path.
    Case(
        "here-and-up",
        f"script_location = %(here)s/app/../migrations\n{URL}\n",
        {"script_location": "%(here)s/app/../migrations"},
        files={"app/__init__.py": ""},
    ),
    # Interpolation from the section and from [DEFAULT].
    Case(
        "interpolation",
        f"[DEFAULT]\nbase = %(here)s/db\n[alembic]\nscript_location = %(base)s/%(folder)s\nfolder = migrations\n{URL}\n",
        {"script_location": "%(here)s/db/migrations"},
        location="db/migrations",
        says=(
            "alembic.ini:5: folder is not imported: env.py does not read it",
            "alembic.ini:2: base is not imported",
        ),
    ),
    # Spaces in a path.
    Case(
        "spaces",
        f"script_location = %(here)s/my migrations\npath_separator = os\nprepend_sys_path = my code\n{URL}\n",
        {"script_location": "%(here)s/my migrations", "prepend_sys_path": ["my code"]},
        location="my migrations",
    ),
    # Not ASCII.
    Case(
        "unicode",
        f"# Миграции\nscript_location = %(here)s/миграции\n{URL}\n",
        {"script_location": "%(here)s/миграции"},
        location="миграции",
    ),
    # --- version_locations and prepend_sys_path, with each separator
    Case(
        "locations-colon",
        f"script_location = migrations\npath_separator = :\nversion_locations = %(here)s/a:%(here)s/b\n{URL}\n",
        {**PLAIN, "version_locations": ["%(here)s/a", "%(here)s/b"]},
        versions=("a", "b"),
    ),
    Case(
        "locations-semicolon",
        f"script_location = migrations\npath_separator = ;\nversion_locations = %(here)s/a; %(here)s/b\n{URL}\n",
        {**PLAIN, "version_locations": ["%(here)s/a", "%(here)s/b"]},
        versions=("a", "b"),
    ),
    Case(
        "locations-space",
        f"script_location = migrations\npath_separator = space\nversion_locations = %(here)s/a %(here)s/b\n{URL}\n",
        {**PLAIN, "version_locations": ["%(here)s/a", "%(here)s/b"]},
        versions=("a", "b"),
    ),
    Case(
        "locations-newline",
        f"script_location = migrations\npath_separator = newline\nversion_locations =\n    %(here)s/a\n    %(here)s/b c\n{URL}\n",
        {**PLAIN, "version_locations": ["%(here)s/a", "%(here)s/b c"]},
        versions=("a", "b c"),
    ),
    Case(
        "locations-os",
        f"script_location = migrations\npath_separator = os\nversion_locations = a:b:migrations/versions\nprepend_sys_path = .:src\n{URL}\n",
        {
            **PLAIN,
            "version_locations": ["a", "b", "migrations/versions"],
            "prepend_sys_path": [".", "src"],
        },
        versions=("a", "b", "migrations/versions"),
    ),
    # The separator's name before Alembic 1.16; it does not apply to prepend_sys_path.
    Case(
        "old-separator-colon",
        f"script_location = migrations\nversion_path_separator = :\nversion_locations = a:b\nprepend_sys_path = . src,lib:more\n{URL}\n",
        {**PLAIN, "version_locations": ["a", "b"], "prepend_sys_path": [".", "src", "lib", "more"]},
        versions=("a", "b"),
    ),
    Case(
        "old-separator-space",
        f"script_location = migrations\nversion_path_separator = space\nversion_locations = a b\n{URL}\n",
        {**PLAIN, "version_locations": ["a", "b"]},
        versions=("a", "b"),
    ),
    # Both names: the newer one counts.
    Case(
        "both-separators",
        f"script_location = migrations\nversion_path_separator = space\npath_separator = ;\nversion_locations = a;b\n{URL}\n",
        {**PLAIN, "version_locations": ["a", "b"]},
        versions=("a", "b"),
    ),
    # No separator: commas and spaces, as before 1.7 (Neutron and other OpenStack projects).
    Case(
        "no-separator",
        f"script_location = migrations\nversion_locations = a, b migrations/versions\n{URL}\n",
        {**PLAIN, "version_locations": ["a", "b", "migrations/versions"]},
        versions=("a", "b", "migrations/versions"),
    ),
    # A package's resource among the locations.
    Case(
        "location-of-a-package",
        f"script_location = migrations\npath_separator = space\nversion_locations = plugin:versions migrations/versions\nprepend_sys_path = .\n{URL}\n",
        {
            **PLAIN,
            "version_locations": ["plugin:versions", "migrations/versions"],
            "prepend_sys_path": ["."],
        },
        versions=("plugin/versions", "migrations/versions"),
        files={"plugin/__init__.py": ""},
    ),
    # Two import paths separated by spaces (legacy).
    Case(
        "paths-by-spaces",
        f"script_location = migrations\nprepend_sys_path = . ./src\n{URL}\n",
        {**PLAIN, "prepend_sys_path": [".", "./src"]},
    ),
    # Revisions in one folder per year.
    Case(
        "recursive",
        f"script_location = migrations\nrecursive_version_locations = true\nfile_template = %%(year)d/%%(month).2d/%%(rev)s_%%(slug)s\n{URL}\n",
        {
            **PLAIN,
            "recursive_version_locations": True,
            "file_template": "%%(year)d/%%(month).2d/%%(rev)s_%%(slug)s",
        },
        versions=("migrations/versions/2024/01", "migrations/versions/2025/02"),
    ),
    # --- Options
    # The most popular templates of file names.
    Case(
        "file-template-date",
        f"script_location = migrations\nfile_template = %%(year)d-%%(month).2d-%%(day).2d_%%(hour).2d%%(minute).2d-%%(rev)s_%%(slug)s\n{URL}\n",
        {
            **PLAIN,
            "file_template": "%%(year)d-%%(month).2d-%%(day).2d_%%(hour).2d%%(minute).2d-%%(rev)s_%%(slug)s",
        },
    ),
    Case(
        "file-template-epoch",
        f"script_location = migrations\nfile_template = %%(epoch)s_%%(rev)s\n{URL}\n",
        {**PLAIN, "file_template": "%%(epoch)s_%%(rev)s"},
    ),
    # A literal percent sign.
    Case(
        "file-template-percent",
        f"script_location = migrations\nfile_template = 100%%%%_%%(rev)s\n{URL}\n",
        {**PLAIN, "file_template": "100%%%%_%%(rev)s"},
    ),
    Case(
        "timezone",
        f"script_location = migrations\ntimezone = UTC\ntruncate_slug_length = 60\noutput_encoding = latin-1\n{URL}\n",
        {**PLAIN, "timezone": "UTC", "truncate_slug_length": 60, "output_encoding": "latin-1"},
    ),
    # `timezone =`, a commented line of the stock file without its comment sign.
    Case(
        "timezone-empty",
        f"script_location = migrations\ntimezone =\nversion_locations =\n{URL}\n",
        {**PLAIN, "timezone": ""},
    ),
    Case(
        "booleans",
        f"script_location = migrations\nsourceless = false\nrevision_environment = true\n{URL}\n",
        {**PLAIN, "sourceless": False, "revision_environment": True},
    ),
    # Alembic accepts only `true` for two of them and many spellings for the third.
    Case(
        "booleans-odd",
        f"script_location = migrations\nsourceless = True\nrevision_environment = yes\nrecursive_version_locations = 1\n{URL}\n",
        {
            **PLAIN,
            "sourceless": False,
            "revision_environment": True,
            "recursive_version_locations": False,
        },
        says=(
            "alembic.ini:3: sourceless = True: Alembic reads the value as false",
            "alembic.ini:5: recursive_version_locations = 1: Alembic reads the value as false",
        ),
    ),
    # Capital letters, colons, no spaces, both kinds of comments.
    Case(
        "ini-syntax",
        f"; a comment\nScript_Location:migrations\nTIMEZONE=UTC\n# another\n{URL}\n",
        {**PLAIN, "timezone": "UTC"},
    ),
    # Windows line endings.
    Case(
        "crlf",
        f"script_location = migrations\r\ntimezone = UTC\r\n{URL}\r\n",
        {**PLAIN, "timezone": "UTC"},
    ),
    # --- Hooks
    Case(
        "hook-console-scripts",
        f"script_location = migrations\n{URL}\n[post_write_hooks]\nhooks = black\nblack.type = console_scripts\nblack.entrypoint = black\nblack.options = -l 79 REVISION_SCRIPT_FILENAME\n",
        {
            **PLAIN,
            "post_write_hooks": [
                {
                    "name": "black",
                    "type": "console_scripts",
                    "entrypoint": "black",
                    "options": "-l 79 REVISION_SCRIPT_FILENAME",
                }
            ],
        },
    ),
    Case(
        "hook-exec",
        f"script_location = migrations\n{URL}\n[post_write_hooks]\nhooks = ruff\nruff.type = exec\nruff.executable = %(here)s/.venv/bin/ruff\nruff.options = check --fix REVISION_SCRIPT_FILENAME\n",
        {
            **PLAIN,
            "post_write_hooks": [
                {
                    "name": "ruff",
                    "type": "exec",
                    "executable": "%(here)s/.venv/bin/ruff",
                    "options": "check --fix REVISION_SCRIPT_FILENAME",
                }
            ],
        },
    ),
    Case(
        "hook-module",
        f"script_location = migrations\n{URL}\n[post_write_hooks]\nhooks = ruff\nruff.type = module\nruff.module = ruff\nruff.options = format REVISION_SCRIPT_FILENAME\n",
        {
            **PLAIN,
            "post_write_hooks": [
                {
                    "name": "ruff",
                    "type": "module",
                    "module": "ruff",
                    "options": "format REVISION_SCRIPT_FILENAME",
                }
            ],
        },
    ),
    # Several, separated by comma and by space, in order; one with a working directory.
    Case(
        "hooks-several",
        f"script_location = migrations\n{URL}\n[post_write_hooks]\nhooks = isort, black ruff\nisort.type = console_scripts\nisort.entrypoint = isort\nblack.type = console_scripts\nblack.entrypoint = black\nruff.type = exec\nruff.executable = ruff\nruff.cwd = %(here)s\n",
        {
            **PLAIN,
            "post_write_hooks": [
                {"name": "isort", "type": "console_scripts", "entrypoint": "isort"},
                {"name": "black", "type": "console_scripts", "entrypoint": "black"},
                {"name": "ruff", "type": "exec", "executable": "ruff", "cwd": "%(here)s"},
            ],
        },
    ),
    # A custom type, with a percent sign in an option.
    Case(
        "hook-of-ones-own",
        f"script_location = migrations\nrevision_environment = true\n{URL}\n[post_write_hooks]\nhooks = spaces\nspaces.type = spaces_to_tabs\nspaces.share = 100%%\n",
        {
            **PLAIN,
            "revision_environment": True,
            "post_write_hooks": [{"name": "spaces", "type": "spaces_to_tabs", "share": "100%%"}],
        },
    ),
    # Listed without options: Alembic rejects the hook when it writes a revision.
    Case(
        "hook-without-type",
        f"script_location = migrations\n{URL}\n[post_write_hooks]\nhooks = black\n",
        {**PLAIN, "post_write_hooks": [{"name": "black"}]},
        says=("alembic.ini:5: hook black has no black.type",),
    ),
    # Not listed: the hook does not run.
    Case(
        "hook-not-named",
        f"script_location = migrations\n{URL}\n[post_write_hooks]\nblack.type = console_scripts\nblack.entrypoint = black\n",
        PLAIN,
    ),
    # --- The URL
    # A percent-encoded password.
    Case(
        "url-percent",
        "script_location = migrations\nsqlalchemy.url = postgresql://me:s3cret%%40x@db/app\n",
        PLAIN,
        says=("postgresql://me:***@db/app",),
        never=("s3cret",),
    ),
    # SQLite, with a path relative to the ini.
    Case(
        "url-sqlite-here",
        "script_location = migrations\nsqlalchemy.url = sqlite:///%(here)s/app.db\n",
        PLAIN,
        says=("DATABASE_URL=sqlite:////",),
    ),
    Case(
        "url-sqlite",
        "script_location = migrations\nsqlalchemy.url = sqlite:///./app.db\n",
        PLAIN,
        says=("DATABASE_URL=sqlite:///./app.db",),
    ),
    # The URL of the stock file: --sql fails before and after.
    Case(
        "url-placeholder",
        "script_location = migrations\nsqlalchemy.url = driver://user:pass@localhost/dbname\n",
        PLAIN,
        says=("fails with the same error before and after", "sqlalchemy.dialects:driver"),
    ),
    # Engine options next to the URL.
    Case(
        "engine-options",
        f"script_location = migrations\n{URL}\nsqlalchemy.echo = true\nsqlalchemy.pool_size = 5\n",
        {
            **PLAIN,
            "sections": {"alembic": {"sqlalchemy.echo": "true", "sqlalchemy.pool_size": "5"}},
        },
    ),
    # Placeholders that env.py fills in, as in FastAPI boilerplates.
    Case(
        "url-filled-in",
        "script_location = migrations\nsqlalchemy.url = postgresql://%(DB_USER)s:%(DB_PASS)s@%(DB_HOST)s/app\n",
        PLAIN,
        env=env(
            f'{FILE_CONFIG}section = config.config_ini_section\nfor name in ("DB_USER", "DB_PASS", "DB_HOST"):\n    config.set_section_option(section, name, os.environ.get(name, "x"))\n'
        ),
        says=("alembic.ini:3: sqlalchemy.url moves to env.py, which fills in its placeholders",),
    ),
    # Placeholders for str.format.
    Case(
        "url-braces",
        "script_location = migrations\nsqlalchemy.url = postgresql://{DB_USER}:{DB_PASS}@db/app\n",
        PLAIN,
        env=env(
            FILE_CONFIG,
            url='config.get_main_option("sqlalchemy.url").format(DB_USER="a", DB_PASS="b")',
        ),
    ),
    # env.py sets the URL from the application's settings and never reads the ini's.
    Case(
        "url-from-settings",
        "script_location = migrations\nsqlalchemy.url = driver://user:pass@localhost/dbname\n",
        PLAIN,
        env=env(
            f'{CONFIG}config.set_main_option("sqlalchemy.url", os.environ.get("APP_DB", "postgresql://a@b/c"))\nif config.config_file_name is not None:\n    fileConfig(config.config_file_name)\n'
        ),
        says=("sqlalchemy.url is not imported: env.py sets the URL itself",),
    ),
    # env.py sets the URL if a variable is set, and else uses the ini's.
    Case(
        "url-from-settings-or-ini",
        f"script_location = migrations\n{URL}\n",
        PLAIN,
        env=env(
            f'{FILE_CONFIG}if os.environ.get("APP_DB"):\n    config.set_main_option("sqlalchemy.url", os.environ["APP_DB"])\n'
        ),
    ),
    # full-stack-fastapi-template: env.py adds a URL to the section, which has none.
    Case(
        "url-into-the-section",
        "script_location = migrations\n",
        PLAIN,
        env=env(
            f'{FILE_CONFIG}\n\ndef get_url():\n    return "postgresql://a@b/c"\n\n\ndef section():\n    configuration = config.get_section(config.config_ini_section)\n    configuration["sqlalchemy.url"] = get_url()\n    return configuration\n',
            url="get_url()",
            engine='engine_from_config(section(), prefix="sqlalchemy.", poolclass=pool.NullPool)',
        ),
    ),
    # An environment variable with the ini's URL as the default.
    Case(
        "url-as-a-default",
        f"script_location = migrations\n{URL}\n",
        PLAIN,
        env=env(
            FILE_CONFIG,
            url='os.getenv("APP_DB", config.get_main_option("sqlalchemy.url"))',
            engine='create_engine(os.getenv("APP_DB") or config.get_main_option("sqlalchemy.url"))',
        ),
    ),
    # Empty in the ini; env.py has a fallback.
    Case(
        "url-empty",
        "script_location = migrations\nsqlalchemy.url =\n",
        PLAIN,
        env=env(
            FILE_CONFIG, url='config.get_main_option("sqlalchemy.url") or "postgresql://a@b/c"'
        ),
    ),
    # No URL; the call has a default.
    Case(
        "url-default-in-the-call",
        "script_location = migrations\n",
        PLAIN,
        env=env(FILE_CONFIG, url='config.get_main_option("sqlalchemy.url", "postgresql://a@b/c")'),
    ),
    # The application's engine.
    Case(
        "url-unused",
        f"script_location = migrations\n{URL}\n",
        PLAIN,
        env=env(
            FILE_CONFIG, url='"postgresql://a@b/c"', engine='create_engine("postgresql://a@b/c")'
        ),
        says=(
            "sqlalchemy.url (postgresql://me:***@db.example.com/app) is not imported: env.py does not read it",
        ),
    ),
    # The URL as a keyword argument of the engine.
    Case(
        "url-by-name",
        "script_location = migrations\n",
        PLAIN,
        env=env(
            f'{FILE_CONFIG}url = "postgresql://a@b/c"\n',
            url="url",
            engine='engine_from_config(config.get_section(config.config_ini_section), prefix="sqlalchemy.", url=url)',
        ),
    ),
    # --- Custom options
    # Read by name.
    Case(
        "own-option",
        f"script_location = migrations\nversion_table = my_versions\nschema = app\n{URL}\n",
        {**PLAIN, "schema": "app"},
        env=env(f'{FILE_CONFIG}schema = config.get_main_option("schema", "public")\n'),
        says=("alembic.ini:3: version_table is not imported: env.py does not read it",),
    ),
    # A section with tables to exclude, as in GeoAlchemy projects.
    Case(
        "exclude-tables",
        f"script_location = migrations\n{URL}\n[alembic:exclude]\ntables = spatial_ref_sys,topology\n",
        {**PLAIN, "sections": {"alembic:exclude": {"tables": "spatial_ref_sys,topology"}}},
        env=env(
            f'{FILE_CONFIG}exclude = config.get_section("alembic:exclude", {{}}).get("tables", "").split(",")\nassert exclude == ["spatial_ref_sys", "topology"]\n'
        ),
    ),
    # The same section, not read by env.py.
    Case(
        "exclude-tables-unread",
        f"script_location = migrations\n{URL}\n[alembic:exclude]\ntables = spatial_ref_sys\n",
        PLAIN,
        says=("alembic.ini:4: [alembic:exclude] is not imported",),
    ),
    # A section read by option; one option is a secret.
    Case(
        "own-section-with-a-secret",
        f"script_location = migrations\n{URL}\n[vault]\naddress = 100%% local\ntoken = s3cret-token\n",
        {**PLAIN, "sections": {"vault": {"address": "100%% local"}}},
        env=env(
            f'{FILE_CONFIG}assert config.get_section_option("vault", "address") == "100% local"\nassert config.get_section_option("vault", "token") == "s3cret" + "-token"\n'
        ),
        says=("set VAULT_TOKEN=",),
        never=("s3cret-token",),
    ),
    # A second environment, for `alembic -n`.
    Case(
        "two-environments",
        f"script_location = migrations\n{URL}\n[testing]\nscript_location = migrations\nsqlalchemy.url = sqlite://\n",
        PLAIN,
        says=("alembic.ini:4: [testing] is not imported: [tool.alembic] is one table",),
    ),
    # No [alembic]: one section per schema of a multi-tenant service.
    Case(
        "other-name",
        f"[public]\nscript_location = migrations\nprepend_sys_path = .\n{URL}\n[org]\nscript_location = org_migrations\n",
        {**PLAIN, "prepend_sys_path": ["."]},
        arguments=("--name", "public"),
        says=("alembic.ini:5: [org] is not imported",),
    ),
    # --- Variants of env.py
    # Another name for the configuration; fileConfig called on its module.
    Case(
        "env-other-names",
        f"script_location = migrations\n{URL}\n",
        PLAIN,
        env=env(
            "import logging.config\n\nalembic_config = context.config\nlogging.config.fileConfig(\n    alembic_config.config_file_name,\n    disable_existing_loggers=False,\n)\n",
            url='alembic_config.get_main_option("sqlalchemy.url")',
            engine='engine_from_config(alembic_config.get_section("alembic"), prefix="sqlalchemy.")',
        ),
    ),
    # No name for the configuration.
    Case(
        "env-no-name",
        f"script_location = migrations\n{URL}\n",
        PLAIN,
        env=env(
            "fileConfig(context.config.config_file_name)\n",
            url='context.config.get_main_option("sqlalchemy.url")',
            engine='engine_from_config(context.config.get_section(context.config.config_ini_section), prefix="sqlalchemy.")',
        ),
    ),
    # The file's name in a variable; an annotation; tabs.
    Case(
        "env-variable",
        f"script_location = migrations\n{URL}\n",
        PLAIN,
        env=env(
            "from alembic.config import Config\n\nconfig: Config = context.config\nini = config.config_file_name\nif ini:\n\tfileConfig(ini)\n"
        ),
    ),
    # Windows line endings in env.py.
    Case(
        "env-crlf",
        f"script_location = migrations\n{URL}\n",
        PLAIN,
        env=env(FILE_CONFIG).replace("\n", "\r\n"),
    ),
    # The option read in a helper function.
    Case(
        "env-helper",
        f"script_location = migrations\n{URL}\n",
        PLAIN,
        env=env(
            f"{FILE_CONFIG}\n\ndef option(name):\n    return config.get_section(config.config_ini_section)[name]\n",
            url='option("sqlalchemy.url")',
        ),
    ),
    # Use of the parser itself.
    Case(
        "env-file-config",
        f"script_location = migrations\n{URL}\n[mine]\nkey = value\n",
        {**PLAIN, "sections": {"mine": {"key": "value"}}},
        env=env(
            f'{FILE_CONFIG}assert config.file_config["mine"]["key"] == "value"\n',
            url='config.file_config["alembic"]["sqlalchemy.url"]',
        ),
    ),
    # fileConfig only if the file exists.
    Case(
        "env-guarded",
        f"script_location = migrations\n{URL}\n",
        PLAIN,
        env=env(
            f"{CONFIG}if config.config_file_name is not None and os.path.exists('migrations'):\n    fileConfig(config.config_file_name, disable_existing_loggers=False)\n"
        ),
    ),
    # Another use of the file's name.
    Case(
        "env-folder-of-the-ini",
        f"script_location = migrations\n{URL}\n",
        PLAIN,
        env=env(f"{FILE_CONFIG}root = os.path.dirname(os.path.abspath(config.config_file_name))\n"),
        says=("migrations/env.py:9: config_file_name names a file that no longer exists",),
    ),
    # --- Logging
    # No logging sections and no fileConfig.
    Case(
        "no-logging",
        f"script_location = migrations\n{URL}\n",
        PLAIN,
        env=env(CONFIG),
        logging=False,
    ),
    # Logging sections without fileConfig: structlog and loguru projects.
    Case(
        "logging-unread",
        f"script_location = migrations\n{URL}\n",
        PLAIN,
        env=env(CONFIG),
        says=("logging is not imported",),
    ),
    # Two handlers, positional and keyword arguments, propagate, %% in a format.
    Case(
        "logging-file",
        f"""script_location = migrations
{URL}
[loggers]
keys=root, app
[handlers]
keys=console,file
[formatters]
keys=generic,json
[logger_root]
level=INFO
handlers=console,file
[logger_app]
level=DEBUG
handlers=file
qualname=my.app
propagate=0
[handler_console]
class=logging.StreamHandler
args=(sys.stdout,)
formatter=generic
[handler_file]
class=handlers.RotatingFileHandler
args=('migrations%%.log', 'a')
kwargs={{'maxBytes': 10 * 1024, 'delay': True}}
level=DEBUG
formatter=json
[formatter_generic]
format=%(asctime)s 100%% %(message)s
datefmt=%%H:%%M
[formatter_json]
format={{levelname}} {{message}}
style={{
class=logging.Formatter
""",
        PLAIN,
        logging=False,
    ),
    # --- pyproject.toml
    # Comments, odd spacing, other tables, no newline at the end.
    Case(
        "pyproject-kept",
        f"script_location = migrations\n{URL}\n",
        PLAIN,
        files={
            "pyproject.toml": '# Mine.\n[project]\nname   = "x" # name\nversion = "1"\n\n\n[tool.ruff] # lint\nline-length=100\nselect = [\n  "A", # a\n]'
        },
    ),
    # A custom table below [tool.alembic].
    Case(
        "pyproject-subtable",
        f"script_location = migrations\n{URL}\n",
        {**PLAIN, "safety": {"lock_timeout": "2s"}},
        files={
            "pyproject.toml": '[project]\nname = "x"\nversion = "1"\n\n# Ours.\n[tool.alembic.safety]\nlock_timeout = "2s" # short\n\n[tool.z]\na = 1\n'
        },
    ),
    # Hooks in both files: the ini's count.
    Case(
        "pyproject-hooks",
        f"script_location = migrations\n{URL}\n[post_write_hooks]\nhooks = ruff\nruff.type = module\nruff.module = ruff\n",
        {**PLAIN, "post_write_hooks": [{"name": "ruff", "type": "module", "module": "ruff"}]},
        files={
            "pyproject.toml": '[tool.alembic]\nscript_location = "x"\n\n# Format.\n[[tool.alembic.post_write_hooks]]\nname = "black"\ntype = "module"\nmodule = "black"\n\n[tool.z]\na = 1\n'
        },
    ),
    # Windows line endings in pyproject.toml.
    Case(
        "pyproject-crlf",
        f"script_location = migrations\n{URL}\n",
        PLAIN,
        files={"pyproject.toml": '[project]\r\nname = "x"\r\nversion = "1"\r\n'},
    ),
]

MALFORMED = [
    # Each has a name, the whole file and a part of the message.
    ("empty", "", "alembic.ini:1: there is no section [alembic]; the file has no section"),
    ("no-header", "script_location = migrations\n", "alembic.ini:1: text before the first [section]"),
    ("byte-order-mark", "\ufeff[alembic]\nscript_location = migrations\n", "alembic.ini:1: text before the first [section]"),
    ("no-value", "[alembic]\nscript_location = migrations\njust words\n", "alembic.ini:3: expected `key = value` or [section]"),
    ("twice", "[alembic]\nscript_location = migrations\n\nscript_location = other\n", "alembic.ini:4: duplicate option script_location in [alembic]"),
    ("section-twice", "[alembic]\nscript_location = migrations\n[loggers]\n[alembic]\n", "alembic.ini:4: duplicate section [alembic]"),
    ("no-section", "[loggers]\nkeys = root\n", "alembic.ini:1: there is no section [alembic]; the file has [loggers]"),
    ("no-location", "# mine\n[alembic]\ntimezone = UTC\n", "alembic.ini:2: script_location is missing in [alembic]"),
    ("percent", "[alembic]\nscript_location = migrations\nfile_template = %(rev)s_%(slug)s\n", "alembic.ini:3: file_template: %(rev)s refers to an option that does not exist"),
    ("bare-percent", "[alembic]\nscript_location = migrations\n\nfile_template = 100%_x\n", "alembic.ini:4: file_template: invalid interpolation"),
    ("loop", "[alembic]\nscript_location = %(a)s\na = %(b)s\nb = %(a)s\n", "alembic.ini:2: script_location: invalid interpolation"),
    ("separator", "[alembic]\nscript_location = migrations\nversion_path_separator = os  # mine\nversion_locations = a:b\n", "alembic.ini:3: version_path_separator: 'os  # mine' is not a separator; use one of space, newline, os"),
    ("slug", "[alembic]\nscript_location = migrations\ntruncate_slug_length = forty\n", "alembic.ini:3: truncate_slug_length: expected an integer, got 'forty'"),
    ("logger", "[alembic]\nscript_location = migrations\n[loggers]\nkeys = root,mine\n[handlers]\nkeys =\n[formatters]\nkeys =\n[logger_root]\nhandlers =\n", "alembic.ini:4: section [logger_mine] is missing"),
    ("handler", "[alembic]\nscript_location = migrations\n[loggers]\nkeys = root\n[handlers]\nkeys = console\n[formatters]\nkeys =\n[logger_root]\nhandlers = console\n", "alembic.ini:6: section [handler_console] is missing"),
    ("formatters", "[alembic]\nscript_location = migrations\n[loggers]\nkeys =\n[handlers]\nkeys =\n", "alembic.ini: section [formatters] is missing"),
    ("hook", "[alembic]\nscript_location = migrations\n[post_write_hooks]\nhooks = a\na.type = exec\na.options = 5%\n", "alembic.ini:6: a.options: invalid interpolation"),
    ("password-in-a-pattern", "[alembic]\nscript_location = migrations\nsqlalchemy.url = postgresql://%(user)s:s3cret@db/app\n", "alembic.ini:3: sqlalchemy.url holds a password next to placeholders"),
]  # fmt: skip
