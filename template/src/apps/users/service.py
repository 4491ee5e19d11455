"""Operations on users. They flush; the owner of the session commits.

Reads that are only shown select rows, which cost less than ORM objects.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, bindparam, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from apps.users.models import User
from apps.users.schemas import UserCreate, UserUpdate
from core.errors import NotFoundError

USERS = User.__table__
ONE = select(USERS).where(USERS.c.id == bindparam("id"))
PAGE = select(USERS).order_by(USERS.c.id).limit(bindparam("limit"))
PAGE_AFTER = PAGE.where(USERS.c.id > bindparam("after"))
INSERT = insert(USERS).returning(USERS)


async def create_user(session: AsyncSession, data: UserCreate) -> Row[Any]:
    """Add a user and return it."""
    user: Row[Any] = (await session.execute(INSERT, data.model_dump())).one()
    return user


async def read_user(session: AsyncSession, user_id: uuid.UUID) -> Row[Any]:
    """Return a user's row.

    Raises:
        NotFoundError: there is none with this id.
    """
    user = (await session.execute(ONE, {"id": user_id})).one_or_none()
    if user is None:
        raise NotFoundError(f"There is no user {user_id}.")
    return user


async def lock_user(session: AsyncSession, user_id: uuid.UUID) -> User:
    """Return a user that other requests can't change until the session commits.

    Raises:
        NotFoundError: there is none with this id.
    """
    user = await session.get(User, user_id, with_for_update=True)
    if user is None:
        raise NotFoundError(f"There is no user {user_id}.")
    return user


async def list_users(
    session: AsyncSession, *, limit: int, after: uuid.UUID | None
) -> tuple[Sequence[Row[Any]], uuid.UUID | None]:
    """Return the rows of at most `limit` users after the id `after`, and the id to go on from."""
    query = PAGE if after is None else PAGE_AFTER
    users = (await session.execute(query, {"limit": limit + 1, "after": after})).all()
    page = users[:limit]
    return page, page[-1].id if len(users) > limit else None


async def update_user(session: AsyncSession, user_id: uuid.UUID, data: UserUpdate) -> User:
    """Change the fields that were given, and return the user.

    Raises:
        NotFoundError: there is none with this id.
    """
    user = await lock_user(session, user_id)
    for name, value in data.model_dump(exclude_unset=True).items():
        setattr(user, name, value)
    await session.flush()
    await session.refresh(user)  # updated_at is the database's
    return user


async def delete_user(session: AsyncSession, user_id: uuid.UUID) -> None:
    """Remove a user.

    Raises:
        NotFoundError: there is none with this id.
    """
    await session.delete(await lock_user(session, user_id))
    await session.flush()
