"""Request and response bodies."""

import uuid
from datetime import datetime
from typing import Annotated, Self

from pydantic import ConfigDict, EmailStr, Field, StringConstraints, model_validator
from pydantic.json_schema import SkipJsonSchema

from core.schemas import Schema

Email = Annotated[EmailStr, Field(max_length=254)]
FullName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


class UserCreate(Schema):
    """A new user."""

    email: Email
    full_name: FullName


class UserUpdate(Schema):
    """Changes to a user; omitted fields keep their values."""

    email: Email | SkipJsonSchema[None] = None
    full_name: FullName | SkipJsonSchema[None] = None

    @model_validator(mode="after")
    def _no_null(self) -> Self:
        for name in sorted(self.model_fields_set):
            if getattr(self, name) is None:
                raise ValueError(f"{name} can't be null; leave it out to keep it")
        return self


class UserRead(Schema):
    """A user as the API shows it."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    email: str
    full_name: str
    created_at: datetime
    updated_at: datetime


class UserPage(Schema):
    """Some users, oldest first."""

    items: list[UserRead]
    next: uuid.UUID | None
    """Pass it as `after` to get the following page; null on the last one."""
