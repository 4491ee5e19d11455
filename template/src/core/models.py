"""Base of the models, mixins, and discovery of models."""

import sys
import uuid
from datetime import datetime
from typing import ClassVar

from sqlalchemy import DateTime, MetaData, Table, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, registry

from core.apps import import_app_modules

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils.compat import uuid7

# Alembic can drop a constraint only by its name, and PostgreSQL's own choice is not known before
# it exists: https://alembic.sqlalchemy.org/en/latest/naming.html
NAMING_CONVENTION = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Base of every model."""

    __table__: ClassVar[Table]  # to SQLAlchemy, it may be something that has no rows to insert

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map: ClassVar = {datetime: DateTime(timezone=True)}


class UUIDMixin:
    """UUIDv7 primary key (RFC 9562), which increases with time and keeps indexes compact."""

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid7, sort_order=-100)


class TimestampMixin:
    """Times of creation and of the last change, by the clock of the database."""

    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), sort_order=100)
    updated_at: Mapped[datetime] = mapped_column(
        server_default=func.now(), onupdate=func.now(), sort_order=101
    )


def import_models() -> list[MetaData]:
    """Import `models.py` or `models/` of every app; return the metadata of all their tables.

    It is that of `Base`, and of each base, class or table besides that a module has: models may
    come from elsewhere, and need not be made of `Base`.

    Raises:
        AppImportError: one of them fails to import; it names the file.
    """
    modules = import_app_modules("models")
    values = (_metadata(value) for module in modules for value in vars(module).values())
    return list(dict.fromkeys([Base.metadata, *filter(None, values)]))


def _metadata(value: object) -> MetaData | None:
    """Return the metadata of a mapped class, a base, a registry or a table."""
    if isinstance(value, type | Table | registry):
        value = getattr(getattr(value, "__table__", value), "metadata", None)
    return value if isinstance(value, MetaData) else None
