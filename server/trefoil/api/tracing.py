"""OpenTelemetry: one span for each request, under the caller's own where it sends `traceparent`.

The SDK is the extra `otel`; without an endpoint nothing of it is loaded and every span is the API's idle one.
"""

from opentelemetry.propagate import extract
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trefoil import __version__
from trefoil.api.middleware import UNCOUNTED_PATHS
from trefoil.errors import InvalidSetting

FLAG = "--otlp-traces-endpoint"


class Traces:
    """Where spans go: they are sent in batches by a thread of the SDK's own, the last ones when it is closed."""

    def __init__(self, endpoint: str) -> None:
        """Raises InvalidSetting where the extra is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise InvalidSetting(FLAG, endpoint, "left out, or trefoil[otel] installed") from error
        resource = Resource({SERVICE_NAME: "trefoil", SERVICE_VERSION: __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self.tracer: Tracer = self._provider.get_tracer("trefoil", __version__)

    def close(self) -> None:
        """Send what was not sent yet."""
        self._provider.shutdown()


class Tracing:
    """A span around every request but the probes."""

    def __init__(self, app: ASGIApp, *, tracer: Tracer) -> None:
        self._app, self._tracer = app, tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNCOUNTED_PATHS:
            await self._app(scope, receive, send)
            return
        attributes = {
            "http.request.method": scope["method"],
            "url.path": scope["path"],
            "trefoil.request_id": scope["state"]["request_id"],
        }
        context = extract(Headers(scope=scope))
        name = f"{scope['method']} {scope['path']}"
        with self._tracer.start_as_current_span(name, context, SpanKind.SERVER, attributes) as span:

            async def told(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    span.set_attribute("http.route", getattr(scope.get("route"), "path", "none"))
                    if message["status"] >= 500:
                        span.set_status(Status(StatusCode.ERROR))
                await send(message)

            await self._app(scope, receive, told)
