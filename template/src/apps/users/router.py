"""Routes of the app."""

import uuid
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Row

from apps.users import service
from apps.users.models import User
from apps.users.schemas import UserCreate, UserPage, UserRead, UserUpdate
from core.dependencies import ReadSessionsDep, SessionDep

router = APIRouter(prefix="/users", tags=["users"])


@router.post("", status_code=HTTPStatus.CREATED, response_model=UserRead)
async def create_user(
    data: UserCreate, session: SessionDep, request: Request, response: Response
) -> Row[Any]:
    """Create a user. An e-mail address that is taken is a conflict (409)."""
    user = await service.create_user(session, data)
    path = request.app.url_path_for("get_user", user_id=user.id)
    response.headers["Location"] = request.scope["root_path"] + path
    return user


@router.get("")
async def list_users(
    read: ReadSessionsDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    after: uuid.UUID | None = None,
) -> UserPage:
    """List users, oldest first. `next` of a page is `after` of the following one."""
    async with read() as session:
        users, following = await service.list_users(session, limit=limit, after=after)
    return UserPage.model_validate({"items": users, "next": following})


@router.get("/{user_id}", response_model=UserRead)
async def get_user(user_id: uuid.UUID, read: ReadSessionsDep) -> Row[Any]:
    """Return a user."""
    async with read() as session:
        return await service.read_user(session, user_id)


@router.patch("/{user_id}", response_model=UserRead)
async def update_user(user_id: uuid.UUID, data: UserUpdate, session: SessionDep) -> User:
    """Change the fields that are given."""
    return await service.update_user(session, user_id, data)


@router.delete("/{user_id}", status_code=HTTPStatus.NO_CONTENT)
async def delete_user(user_id: uuid.UUID, session: SessionDep) -> None:
    """Remove a user."""
    await service.delete_user(session, user_id)
