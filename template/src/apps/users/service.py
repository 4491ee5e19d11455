"""What can be done with users. Functions flush; the session's owner commits."""

import uuid
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from apps.users.models import User
from apps.users.schemas import UserCreate, UserUpdate
from core.errors import NotFoundError


async def create_user(session: AsyncSession, data: UserCreate) -> User:
    """Add a user and return it."""
    user = User(**data.model_dump())
    session.add(user)
    await session.flush()
    return user


async def get_user(session: AsyncSession, user_id: uuid.UUID) -> User:
    """Return a user.

    Raises:
        NotFoundError: there is none with this id.
    """
    user = await session.get(User, user_id)
    if user is None:
        raise NotFoundError(f"there is no user {user_id}")
    return user


async def list_users(
    session: AsyncSession, *, limit: int, after: uuid.UUID | None
) -> tuple[Sequence[User], uuid.UUID | None]:
    """Return at most `limit` users after the id `after`, and the id to go on from, if any."""
    query = select(User).order_by(User.id).limit(limit + 1)
    if after is not None:
        query = query.where(User.id > after)
    users = (await session.scalars(query)).all()
    page = users[:limit]
    return page, page[-1].id if len(users) > limit else None


async def update_user(session: AsyncSession, user_id: uuid.UUID, data: UserUpdate) -> User:
    """Change the fields that were given, and return the user.

    Raises:
        NotFoundError: there is none with this id.
    """
    user = await get_user(session, user_id)
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
    await session.delete(await get_user(session, user_id))
    await session.flush()
