"""Tables of the app."""

from sqlalchemy import Index, String, func
from sqlalchemy.orm import Mapped, mapped_column

from core.models import Base, TimestampMixin, UUIDMixin


class User(UUIDMixin, TimestampMixin, Base):
    """A person who uses the service."""

    __tablename__ = "users"

    email: Mapped[str] = mapped_column(String(254))
    """Unique regardless of case, stored as given."""
    full_name: Mapped[str] = mapped_column(String(200))


Index("uq_users_email_lower", func.lower(User.email), unique=True)
