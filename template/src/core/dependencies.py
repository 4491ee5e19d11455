"""Dependencies for routes."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from core.database import AsyncReadSession


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    """Yield a session that commits before the response is sent and rolls back on an error."""
    sessionmaker: async_sessionmaker[AsyncSession] = request.app.state.sessionmaker
    async with sessionmaker() as session:
        yield session
        await session.commit()


# scope="function" commits before the response is sent: with FastAPI's default, a commit that fails
# would come after an answer that said all was well.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]


async def get_sessions(request: Request) -> async_sessionmaker[AsyncSession]:
    """Return the session factory, for transactions of a route's own."""
    sessionmaker: async_sessionmaker[AsyncSession] = request.app.state.sessionmaker
    return sessionmaker


SessionsDep = Annotated[async_sessionmaker[AsyncSession], Depends(get_sessions)]


async def get_read_sessions(request: Request) -> async_sessionmaker[AsyncReadSession]:
    """Return the read session factory: `async with read() as session`."""
    sessionmaker: async_sessionmaker[AsyncReadSession] = request.app.state.read_sessionmaker
    return sessionmaker


# Not a session, as above: what FastAPI does to close one is a tenth of the time of a request that reads
# a row, and here the connection is free again before the answer is made.
ReadSessionsDep = Annotated[async_sessionmaker[AsyncReadSession], Depends(get_read_sessions)]
