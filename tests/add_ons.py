"""What people add to a service, each as its own documentation has it, in a function.

A service of the tests gets this file as `app/add_ons.py`, and `create_app` calls one of them.
"""

# What they import is installed beside that service, and not here.
# mypy: ignore-errors
# ruff: noqa: ARG001

from app.routes import guarded, public

# Routers of packages.


def _schema():
    import strawberry

    @strawberry.type
    class Query:
        @strawberry.field
        def hello(self) -> str:
            return "Hello, owner"

    return strawberry.Schema(Query)


def strawberry_on_the_application(app):
    from strawberry.fastapi import GraphQLRouter

    app.include_router(GraphQLRouter(_schema()), prefix="/graphql")


def strawberry(app):
    from strawberry.fastapi import GraphQLRouter

    schema = _schema()
    guarded.include_router(GraphQLRouter(schema), prefix="/graphql")


def fastapi_utils(app):
    from fastapi_utils.cbv import cbv

    _class_based_view(cbv)


def fastapi_restful(app):
    from fastapi_restful.cbv import cbv

    _class_based_view(cbv)


def _class_based_view(cbv):
    from fastapi import Depends

    from app.auth import GuardedRouter, get_caller
    from app.auth.key import Key

    views = GuardedRouter()

    @cbv(views)
    class Items:
        caller: Key = Depends(get_caller)

        @views.get("/items")
        def read(self) -> str:
            return f"Hello, {self.caller.id and 'owner'}"

    guarded.include_router(views)


def classy_fastapi(app):
    from classy_fastapi import Routable, get

    from app.auth import Caller

    class Items(Routable):
        @get("/items")
        def read(self, caller: Caller) -> str:
            return f"Hello, {caller.id and 'owner'}"

    guarded.include_router(Items().router)


# Pages that packages add to the application itself; and the same, behind a key.


def prometheus_fastapi_instrumentator(app):
    from prometheus_fastapi_instrumentator import Instrumentator

    Instrumentator().instrument(app).expose(app)


def prometheus_fastapi_instrumentator_behind_a_key(app):
    from fastapi import FastAPI
    from prometheus_fastapi_instrumentator import Instrumentator

    inner = FastAPI()
    Instrumentator().instrument(app).expose(inner)
    guarded.mount("/internal", inner)


def starlette_exporter(app):
    from starlette_exporter import PrometheusMiddleware, handle_metrics

    app.add_middleware(PrometheusMiddleware)
    app.add_route("/metrics", handle_metrics)


def starlette_exporter_behind_a_key(app):
    from starlette_exporter import PrometheusMiddleware, handle_metrics

    app.add_middleware(PrometheusMiddleware)
    guarded.add_route("/metrics", handle_metrics)


# The same, where there is a /metrics already.


def prometheus_fastapi_instrumentator_beside_ours(app):
    from prometheus_fastapi_instrumentator import Instrumentator

    Instrumentator().instrument(app).expose(app, endpoint="/theirs")


def starlette_exporter_beside_ours(app):
    from starlette_exporter import PrometheusMiddleware, handle_metrics

    app.add_middleware(PrometheusMiddleware)
    app.add_route("/theirs", handle_metrics)


def starlette_exporter_beside_ours_behind_a_key(app):
    from starlette_exporter import PrometheusMiddleware, handle_metrics

    app.add_middleware(PrometheusMiddleware)
    guarded.add_route("/theirs", handle_metrics)


def _table():
    from sqlalchemy import create_engine
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

    class Base(DeclarativeBase): ...

    class User(Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)

    engine = create_engine("sqlite:///users.db")
    Base.metadata.create_all(engine)
    return User, engine


def sqladmin(app, **options):
    from sqladmin import Admin, ModelView

    user, engine = _table()

    class UserAdmin(ModelView, model=user): ...

    Admin(app, engine, **options).add_view(UserAdmin)


def sqladmin_behind_a_key(app):
    from fastapi import FastAPI

    inner = FastAPI()
    sqladmin(inner, base_url="/")
    guarded.mount("/admin", inner)


def starlette_admin(app, **options):
    from starlette_admin.contrib.sqla import Admin, ModelView

    user, engine = _table()
    admin = Admin(engine, secret_key="signs the sessions of an example", **options)  # noqa: S106
    admin.add_view(ModelView(user))
    admin.mount_to(app)


def starlette_admin_behind_a_key(app):
    from fastapi import FastAPI

    inner = FastAPI()
    starlette_admin(inner, base_url="/")
    guarded.mount("/admin", inner)


# MCP.


def _mcp_app():
    from fastmcp import FastMCP

    mcp = FastMCP("tools")

    @mcp.tool
    def add(a: int, b: int) -> int:
        return a + b

    return mcp.http_app(path="/")


def fastmcp_on_the_application(app):
    app.mount("/mcp", _mcp_app())


def fastmcp(app):
    from app.auth import GuardedRouter

    mcp_app = _mcp_app()
    tools = GuardedRouter(lifespan=mcp_app.lifespan)
    tools.mount("/mcp", mcp_app)
    app.include_router(tools)


# What watches a service.


def sentry(app):
    from pathlib import Path

    from sentry_sdk.transport import Transport

    from app.error_reports import report_errors  # of docs/recipes.md

    class ToFile(Transport):
        def capture_envelope(self, envelope):
            with Path("sent").open("ab") as file:
                file.write(envelope.serialize())

    dsn = "https://public@example.com/1"
    report_errors(dsn, transport=ToFile, traces_sample_rate=1.0)

    @public.get("/fails")
    async def fails() -> None:
        raise RuntimeError("as meant")


def opentelemetry(app):
    from pathlib import Path

    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

    provider = TracerProvider()
    exporter = ConsoleSpanExporter(out=Path("sent").open("a"))  # noqa: SIM115
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def opentelemetry_instrumentation(app):
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    opentelemetry(app)
    FastAPIInstrumentor.instrument_app(app)


def logfire(app):
    from pathlib import Path

    import logfire
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

    exporter = ConsoleSpanExporter(out=Path("sent").open("a"))  # noqa: SIM115
    processors = [SimpleSpanProcessor(exporter)]
    logfire.configure(send_to_logfire=False, console=False, additional_span_processors=processors)
    logfire.instrument_fastapi(app)


def otel_middleware(app):
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    app.add_middleware(OpenTelemetryMiddleware)


def sentry_middleware(app):
    from sentry_sdk.integrations.asgi import SentryAsgiMiddleware

    app.add_middleware(SentryAsgiMiddleware)


def honeybadger(app):
    from honeybadger.contrib import ASGIHoneybadger

    app.add_middleware(ASGIHoneybadger, api_key="", environment="development")


def rollbar(app):
    import rollbar
    from rollbar.contrib.fastapi import ReporterMiddleware

    rollbar.init("", "development", enabled=False)
    rollbar.report_message("of the owner")
    app.add_middleware(ReporterMiddleware)


def basic_config(app):
    import logging

    logging.basicConfig()
    logging.warning("of a library")


# Limits for each key.


def slowapi(app):
    from fastapi import Request
    from slowapi import Limiter, _rate_limit_exceeded_handler
    from slowapi.errors import RateLimitExceeded
    from slowapi.middleware import SlowAPIMiddleware

    from app.auth.access.rule import CALLER

    def calling_key(request: Request) -> str:
        return request.scope[CALLER].id

    limiter = Limiter(key_func=calling_key, default_limits=["1/minute"])
    app.state.limiter = limiter
    app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)
    app.add_middleware(SlowAPIMiddleware)

    @guarded.get("/limited")
    @limiter.limit("1/minute")
    async def limited(request: Request) -> None: ...


def limits(app):
    from fastapi import Depends, HTTPException
    from limits import parse
    from limits.storage import MemoryStorage
    from limits.strategies import FixedWindowRateLimiter

    from app.auth import Caller

    limiter, rate = FixedWindowRateLimiter(MemoryStorage()), parse("1/hour")

    async def limited(caller: Caller) -> None:
        if not limiter.hit(rate, caller.id):
            raise HTTPException(429)

    @guarded.get("/limited", dependencies=[Depends(limited)])
    async def endpoint() -> None: ...


def fastapi_limiter(app):
    from fastapi import Depends
    from fastapi_limiter.depends import RateLimiter
    from pyrate_limiter import Duration, Limiter, Rate

    limiter = RateLimiter(limiter=Limiter(Rate(1, Duration.MINUTE)))

    @guarded.get("/limited", dependencies=[Depends(limiter)])
    async def endpoint() -> None: ...


# Sockets.


def socketio(app):
    import socketio

    sio = socketio.AsyncServer(async_mode="asgi")
    guarded.mount("/socket.io", socketio.ASGIApp(sio, socketio_path=""))


def socketio_around(app):
    import socketio

    sio = socketio.AsyncServer(async_mode="asgi")
    around = socketio.ASGIApp(sio, app)

    async def showing(scope, receive, send):
        print(scope.get("headers"), flush=True)
        await around(scope, receive, send)

    return showing


# Logging.


def _log_something(logger):
    @guarded.get("/logs")
    async def logs() -> None:
        logger.info("called")
        try:
            raise RuntimeError("as meant")
        except RuntimeError:
            logger.exception("failed")


def structlog(app):
    import logging

    import structlog

    handler, rendered = logging.StreamHandler(), structlog.processors.JSONRenderer()
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=rendered))
    logging.getLogger().addHandler(handler)
    structlog.configure(
        processors=[structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    _log_something(structlog.get_logger())


def loguru(app):
    import logging

    from loguru import logger

    class Intercept(logging.Handler):
        def emit(self, record):
            logger.opt(exception=record.exc_info).log(record.levelname, record.getMessage())

    logging.basicConfig(handlers=[Intercept()], level="INFO", force=True)
    _log_something(logger)


def dict_config(app):
    import json
    import logging.config
    from pathlib import Path

    logging.config.dictConfig(json.loads(Path("log.json").read_text("utf-8")))


# What else works as it is.


def fastapi_pagination(app):
    from fastapi_pagination import Page, add_pagination, paginate

    @guarded.get("/pages")
    async def pages() -> Page[str]:
        return paginate(["", "Hello, owner"])

    add_pagination(app)


def sse_starlette(app):
    from sse_starlette import EventSourceResponse

    async def greetings():
        yield {"data": "Hello, owner"}

    @guarded.get("/events")
    async def events() -> EventSourceResponse:
        return EventSourceResponse(greetings())


def fastapi_cache2(app):
    from itertools import count

    from fastapi_cache import FastAPICache
    from fastapi_cache.backends.inmemory import InMemoryBackend
    from fastapi_cache.decorator import cache

    FastAPICache.init(InMemoryBackend())
    numbers = count()

    @guarded.get("/cached")
    @cache(expire=60)
    async def cached() -> int:
        return next(numbers)
