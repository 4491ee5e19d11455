"""Metrics for Prometheus, explained in docs/monitoring.md.

`core.workers.share_counts` has to be called before this module is imported.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer

from fastapi import FastAPI, Request, Response
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.types import Scope

from alembic_safety.state import Recorded, SchemaReader, SchemaState, State
from core.config import Settings
from core.database import Pool
from core.health import DEADLINE
from core.workers import forget_the_dead

logger = logging.getLogger(__name__)

PATH = "/metrics"
POOL_INTERVAL = 1.0
"""Seconds between two samples of the pool."""
UNMATCHED = "unmatched"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_LABELS = ("method", "route", "status")
REQUESTS = Counter("http_requests", "Requests that were answered.", _LABELS, registry=None)
DURATIONS = Histogram(
    "http_request_duration_seconds",
    "Time from a request's arrival to the end of its answer.",
    _LABELS,
    registry=None,
)


def _pool_gauge(name: str, text: str) -> Gauge:
    return Gauge(f"database_pool_{name}", text, registry=None, multiprocess_mode="livesum")


IN_USE = _pool_gauge("in_use_connections", "Connections that requests have.")
IDLE = _pool_gauge("idle_connections", "Connections that are open and free.")
WAITING = _pool_gauge("waiting_requests", "Requests that wait for a connection.")
MAXIMUM = _pool_gauge("max_connections", "Connections that may be open at once.")


def _template(scope: Scope) -> str:
    # With the prefixes of the routers that it is included by, which the route itself has not.
    route = scope.get("fastapi", {}).get("effective_route_context") or scope.get("route")
    return getattr(route, "path", UNMATCHED)


@cache
def _of(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    labels = (method, route, str(status))
    return REQUESTS.labels(*labels), DURATIONS.labels(*labels)


class SchemaCollector(Collector):
    """Collector of the schema state, as in `make migrate-status` and /health/ready."""

    def __init__(self, reader: SchemaReader, loop: asyncio.AbstractEventLoop) -> None:
        self._reader = reader
        self._loop = loop

    def collect(self) -> Iterator[Metric]:
        """Return the metrics; called in another thread than the loop's."""
        try:
            question = asyncio.run_coroutine_threadsafe(self._reader.read(), self._loop)
            state = question.result(timeout=DEADLINE * 2)
        except (FutureTimeoutError, RuntimeError):  # the loop is busy, or the service is stopping
            state = SchemaState.unreachable("not asked")
        yield from _schema_metrics(state)
        if state.recorded is not None:
            yield from _record_metrics(state.recorded)


def _schema_metrics(state: SchemaState) -> Iterator[Metric]:
    states = GaugeMetricFamily(
        "database_schema_state", "1 for the state that the schema is in.", labels=["state"]
    )
    for possible in State:
        states.add_metric([possible], float(possible is state.state))
    yield states
    if state.state is State.UNREACHABLE:
        return
    info = GaugeMetricFamily(
        "database_schema_info",
        "1; where the database is, and where this code would have it.",
        labels=["current", "head"],
    )
    info.add_metric([",".join(state.current), ",".join(state.heads)], 1)
    yield info
    yield GaugeMetricFamily(
        "database_schema_pending_revisions",
        "Revisions of this code that the database does not have.",
        value=len(state.pending),
    )


def _record_metrics(recorded: Recorded) -> Iterator[Metric]:
    if recorded.last_revision is not None and recorded.last_direction is not None:
        last = GaugeMetricFamily(
            "migration_last_info",
            "1; the revision that was applied or reverted last.",
            labels=["revision", "direction"],
        )
        last.add_metric([recorded.last_revision, recorded.last_direction], 1)
        yield last
    yield CounterMetricFamily(
        "migration_failures",
        "Migrations that failed since the record began.",
        value=recorded.failures,
    )
    yield GaugeMetricFamily(
        "database_invalid_indexes",
        "Indexes that PostgreSQL does not use, as their building failed.",
        value=recorded.invalid_indexes,
    )
    measured = {
        "migration_last_timestamp_seconds": (recorded.last_ended, "When the last one ended."),
        "migration_last_duration_seconds": (recorded.last_seconds, "How long the last one took."),
        "migration_last_failure_timestamp_seconds": (
            recorded.failed_at,
            "When a migration failed last.",
        ),
        "backup_last_timestamp_seconds": (
            recorded.backed_up_at,
            "When the last backup was made that holds the rows, too.",
        ),
    }
    for name, (value, text) in measured.items():
        if value is not None:
            yield GaugeMetricFamily(name, text, value=value)


class Metrics:
    """Metrics of one application."""

    def __init__(self, settings: Settings, shared: Path | None) -> None:
        self._settings = settings
        self._shared = shared
        self._registry = CollectorRegistry()
        if shared is not None:
            of_all_workers: Any = MultiProcessCollector
            of_all_workers(self._registry, path=str(shared))
        else:
            for metric in (REQUESTS, DURATIONS, IN_USE, IDLE, WAITING, MAXIMUM):
                self._registry.register(metric)
            ProcessCollector(registry=self._registry)
            PlatformCollector(registry=self._registry)

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request and its duration in seconds."""
        # Labels whose values a caller could choose would have no end.
        method = scope["method"] if scope["method"] in _METHODS else "other"
        requests, durations = _of(method, _template(scope), status)
        requests.inc()
        durations.observe(seconds)

    def add_to(self, app: FastAPI) -> None:
        """Add /metrics to `app`, unless `metrics_port` is set."""
        if self._settings.metrics_port is None:
            app.add_api_route(PATH, self._answer, include_in_schema=False)

    @asynccontextmanager
    async def watching(self, reader: SchemaReader, pool: Pool) -> AsyncIterator[None]:
        """Collect from the schema and the pool, and serve `metrics_port` if it is set."""
        collector = SchemaCollector(reader, asyncio.get_running_loop())
        self._registry.register(collector)
        watcher = asyncio.create_task(self._watch(pool))
        server = self._listen()
        try:
            yield
        finally:
            if server is not None:
                # In a thread: an answer that is being written may wait for this loop.
                await asyncio.to_thread(server.shutdown)
                server.server_close()
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
            self._registry.unregister(collector)

    async def _answer(self, request: Request) -> Response:
        try:
            encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        except (TypeError, ValueError):  # a version that is no number
            encode, content_type = choose_encoder("")
        # In a thread: it reads the files of all workers, and waits for the schema's state.
        body = await asyncio.to_thread(encode, self._registry)
        return Response(body, headers={"Content-Type": content_type})

    async def _watch(self, pool: Pool) -> None:
        MAXIMUM.set(self._settings.database_pool_size + self._settings.database_max_overflow)
        while True:
            IN_USE.set(pool.checkedout())
            IDLE.set(pool.checkedin())
            WAITING.set(pool.waiting)
            if self._shared is not None:
                forget_the_dead(self._shared)
            await asyncio.sleep(POOL_INTERVAL)

    def _listen(self) -> WSGIServer | None:
        host, port = self._settings.metrics_host, self._settings.metrics_port
        if port is None:
            return None
        try:
            server, _ = start_http_server(port, host, self._registry)
        except OSError as error:
            # Another worker may have it, whose answer counts the requests of all.
            level = logging.WARNING if self._shared is None else logging.INFO
            logger.log(level, "METRICS_PORT: no metrics on %s:%d: %s", host, port, error.strerror)
            return None
        return server
