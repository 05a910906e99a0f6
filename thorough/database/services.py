"""The service as the tests call it, in this process or in one of its own."""

import os
from math import inf

from fastapi.routing import iter_route_contexts

from app.auth import GuardedAPI
from app.auth.access import throttle
from app.auth.store import cache
from app.main import create_app
from app.management.router import router as api_keys
from app.settings import Settings, load_settings
from tests.callers import with_probe

MADE: list[GuardedAPI] = []  # for whoever has to close them


def make_service(settings: Settings) -> GuardedAPI:
    """Yours, with an endpoint to call, and keys are managed over HTTP even if you left that out."""
    service = with_probe(create_app(settings))
    if all(context.path != api_keys.prefix for context in iter_route_contexts(service.routes)):
        service.include_router(api_keys)
    MADE.append(service)
    return service


def start() -> GuardedAPI:
    """For `uvicorn --factory`. With TEST_FLUSH_EVERY, in seconds, it writes as often."""
    vars(throttle)["MANY"] = inf  # tests send many wrong keys
    cache.FLUSH_EVERY = float(os.environ.get("TEST_FLUSH_EVERY", cache.FLUSH_EVERY))
    return make_service(load_settings())
