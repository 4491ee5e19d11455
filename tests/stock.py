"""Projects of `alembic init`, connected to the library as its README says."""

import re
import sys
import textwrap
from pathlib import Path

from tests.support import ROOT, Completed, Project

from alembic_safety.database.url import DatabaseURL

LIBRARY = ROOT / "template" / "packages" / "alembic-safety"
README = (LIBRARY / "README.md").read_text(encoding="utf-8")
MODELS = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[str]
"""
REVISION = '''"""{message}"""

from alembic import op

revision = "{revision}"
down_revision = {parent!r}


def upgrade() -> None:
    {upgrade}


def downgrade() -> None:
    {downgrade}
'''


def code_block(start: str) -> str:
    """Return the code block of the README that begins with `start`."""
    blocks = re.findall(r"(?m)^ *```\w+\n((?:.*\n)*?) *```$", README)
    [block] = [text for text in map(textwrap.dedent, blocks) if text.startswith(start)]
    return block


class StockProject(Project):
    """A project of `alembic init`, connected as the README says."""

    def __init__(self, path: Path, kind: str, url: DatabaseURL, driver: str) -> None:
        super().__init__(path, PYTHONPATH=str(LIBRARY / "src"))
        path.mkdir()
        self.alembic("init", "-t", kind, "migrations")
        ini = self.read("alembic.ini")
        address = url.libpq.replace("postgresql", f"postgresql+{driver}").replace("%", "%%")
        self.write("alembic.ini", re.sub(r"(?m)^(sqlalchemy.url =).*", rf"\1 {address}", ini))
        self.write("shop/models.py", MODELS)
        self.write("migrations/env.py", code_block("import tomllib"))
        with (path / "pyproject.toml").open("a", encoding="utf-8") as file:
            file.write(code_block("[tool.alembic.safety]"))
        self.environment["MIGRATION_BACKUP_FOLDER"] = str(path / "backups")

    def alembic(self, *arguments: str, expect: int | None = 0, **_: object) -> Completed:
        return self.run(sys.executable, "-m", "alembic", *arguments, expect=expect)

    def safety(self, *arguments: str, expect: int | None = 0) -> Completed:
        return self.run(sys.executable, "-m", "alembic_safety", *arguments, expect=expect)

    def revise(self, revision: str, parent: str | None, upgrade: str, downgrade: str) -> None:
        self.write(
            f"migrations/versions/{revision}_test.py",
            REVISION.format(
                message=f"Revision {revision}",
                revision=revision,
                parent=parent,
                upgrade=upgrade,
                downgrade=downgrade,
            ),
        )
