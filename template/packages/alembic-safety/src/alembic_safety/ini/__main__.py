"""`python -m alembic_safety.ini`, which Makefiles of earlier releases call."""

import sys

from alembic_safety.ini.cli import main

sys.exit(main())
