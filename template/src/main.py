"""The application: `uvicorn --app-dir src --factory main:create_app`."""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from alembic_safety.errors import EmbeddedPostgresError, MigrationError
from alembic_safety.state import Revisions, SchemaReader
from api import find_routers
from core import tracing
from core.apps import AppImportError
from core.config import Environment, Pooler, Settings, SettingsError, get_settings
from core.database import create_engine, create_read_sessionmaker, create_sessionmaker
from core.database_errors import add_database_error_handlers
from core.errors import Problem, add_error_handlers
from core.health import DEADLINE, MAX_AGE, add_health_checks
from core.logging import configure_logging
from core.models import import_models
from core.project import ROOT, load_project
from core.request_id import RequestIDMiddleware
from core.workers import share_counts

if TYPE_CHECKING:
    from core.metrics import Metrics


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Create the engines at startup and close them at shutdown."""
    settings = get_settings()
    tracing.start()
    # A separate connection for health checks: a busy pool must not fail them.
    named_statements = settings.database_pooler is Pooler.NONE
    probe = create_engine(
        settings.url,
        named_statements=named_statements,
        pool_size=1,
        max_overflow=0,
    )
    engine = create_engine(
        settings.url,
        command_timeout=settings.database_command_timeout,
        named_statements=named_statements,
        pool_size=settings.database_pool_size,
        max_overflow=settings.database_max_overflow,
        pool_timeout=settings.database_pool_timeout,
        hide_parameters=settings.environment is Environment.PROD,
    )
    app.state.sessionmaker = create_sessionmaker(engine)
    app.state.read_sessionmaker = create_read_sessionmaker(engine)
    app.state.schema = SchemaReader(probe, app.state.revisions, max_age=MAX_AGE, deadline=DEADLINE)
    metrics: Metrics | None = app.state.metrics
    pool: Any = engine.pool
    # What was made until now stays: no collection has to look through it again, which under load
    # takes a fifth of the time.
    if gc.get_freeze_count() == 0:  # once in a process, whatever is started in it
        gc.freeze()
    async with metrics.watching(app.state.schema, pool) if metrics else nullcontext():
        yield
    await engine.dispose()
    await probe.dispose()
    await asyncio.to_thread(tracing.flush)


def create_app() -> FastAPI:
    """Return the application. A wrong setting ends the process with a line that names it."""
    try:
        settings = get_settings()
        configure_logging(settings)
        settings.url  # noqa: B018 - starts the project's own server, if there is none to use
        import_models()  # a foreign key may point to an app that has no routes
        routers = find_routers()
        revisions = Revisions.load(ROOT)
    except (AppImportError, EmbeddedPostgresError, MigrationError, SettingsError) as error:
        sys.exit(str(error))
    project = load_project()
    app = FastAPI(
        title=project.title,
        description=project.description,
        version=project.version,
        lifespan=lifespan,
        openapi_url="/openapi.json" if settings.serves_api_docs else None,
        max_body_size=settings.max_body_size,
        redirect_slashes=False,  # a redirect would lead to the Host that a client names
        telemetry={
            "auto_configure": False,
            "exclude": tracing.is_excluded,
            "operation_spans": False,
            "metrics": False,  # core.metrics has them
            "logs": False,  # they hold the messages of errors, which may be somebody's data
        },
        responses={"default": {"model": Problem, "description": "Any error"}},
    )
    app.state.revisions = revisions
    metrics = app.state.metrics = _make_metrics(settings)
    add_health_checks(app)
    for router in routers:
        app.include_router(router)
    add_error_handlers(app)
    add_database_error_handlers(app)
    if metrics is not None:
        metrics.add_to(app)
    # The last one added is the outermost.
    app.add_middleware(RequestIDMiddleware, count=metrics.count if metrics else None)
    return app


def _make_metrics(settings: Settings) -> "Metrics | None":
    if not settings.metrics:
        return None
    shared = share_counts()
    from core.metrics import Metrics  # noqa: PLC0415 - prometheus-client looks for the folder once

    return Metrics(settings, shared)
