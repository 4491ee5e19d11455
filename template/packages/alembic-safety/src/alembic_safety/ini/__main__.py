"""`python -m alembic_safety.ini`."""

import sys

try:
    from alembic_safety.ini.cli import main
except ModuleNotFoundError as error:
    if error.name != "tomlkit":
        raise
    sys.exit('tomlkit is not installed; install the extra: pip install "alembic-safety[ini]"')

sys.exit(main())
