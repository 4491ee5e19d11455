"""Export of spans with OpenTelemetry's SDK (extra `otel`), configured by its `OTEL_*` variables."""

import atexit
import logging
import os
import time
from collections.abc import Iterator
from importlib.metadata import entry_points

from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from core import tracing
from core.project import code_version, load_project

_BETWEEN_COMPLAINTS = 300.0
"""Seconds."""


def set_up() -> None:
    """Export the spans of this process as the environment says.

    Raises:
        ValueError: a variable is wrong.
    """
    provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    for exporter in _exporters():
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    # Not the SDK's own end, which waits for a collector that is away.
    atexit.register(tracing.flush)


def _resource() -> Resource:
    """Return the resource; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence."""
    given = OTELResourceDetector().detect().attributes
    own = {"service.name": load_project().name, "service.version": code_version()}
    return Resource.create({name: own[name] for name in own if name not in given})


def _exporters() -> Iterator[SpanExporter]:
    """Return the exporter that OTEL_TRACES_EXPORTER names: `otlp`, `console` or another package's."""
    known = entry_points(group="opentelemetry_traces_exporter")
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL"
    )
    for given in (os.environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(","):
        name = given.strip()
        if name == "otlp":
            name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
        if name not in known.names:
            names = ", ".join(sorted(known.names))
            raise ValueError(f"no package that is installed has the exporter {name}, but {names}")
        exporter: SpanExporter = known[name].load()()
        complaints = _FirstComplaint()
        for source in (type(exporter).__module__, "opentelemetry.sdk._shared_internal", __name__):
            logging.getLogger(source).addFilter(complaints)
        yield exporter


class _FirstComplaint(logging.Filter):
    """Filter that passes one line in five minutes, without its traceback."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is logged."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + _BETWEEN_COMPLAINTS
        record.msg = f"traces do not reach the collector, all else goes on: {record.getMessage()}"
        record.args, record.exc_info = (), None
        return True
