"""What routes ask FastAPI for."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    """Give a request its session: committed once at the end, rolled back on any error."""
    sessionmaker: async_sessionmaker[AsyncSession] = request.app.state.sessionmaker
    async with sessionmaker() as session:
        yield session
        await session.commit()


# scope="function" commits before the response is sent: with FastAPI's default, a commit that fails
# would come after an answer that said all was well.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]


async def get_read_session(request: Request) -> AsyncIterator[AsyncSession]:
    """Give a request a session to read with.

    Raises:
        ReadOnlyError: something was added, changed or deleted, which would be lost.
    """
    sessionmaker: async_sessionmaker[AsyncSession] = request.app.state.read_sessionmaker
    async with sessionmaker() as session:
        yield session
        session.sync_session.flush()  # never writes: it refuses, or has nothing to do


# Its connection is free again before the response is sent, too.
ReadSessionDep = Annotated[AsyncSession, Depends(get_read_session, scope="function")]
