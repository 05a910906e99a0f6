"""The service as the tests call it, in this process or in one of its own."""

import os
from math import inf
from typing import Final

from fastapi import HTTPException

from app.auth import Caller, GuardedAPI, GuardedRouter, require
from app.auth.access import clients
from app.auth.store import cache
from app.limits import connections, sqlite_counter
from app.settings import Settings, load_settings
from tests import callers

RIGHTS: Final = "/rights-of-the-tests"  # for the keys of acme with the scope `rights`
MADE: list[GuardedAPI] = []  # for whoever has to close them


def make_service(settings: Settings) -> GuardedAPI:
    """Yours, with an endpoint to call."""
    service = callers.make_service(settings)
    MADE.append(service)
    return service


def patient_settings() -> Settings:
    """With so long a staleness that the database of a busy machine always answers in time."""
    return load_settings().model_copy(update={"key_max_staleness": 30.0})


def start() -> GuardedAPI:
    """For `uvicorn --factory`. With TEST_FLUSH_EVERY, in seconds, it writes as often."""
    vars(clients)["BURST"] = inf  # tests send many wrong keys
    for module in (connections, sqlite_counter):
        vars(module)["TIMEOUT"] = 30.0  # no busy machine decides a test
    cache.FLUSH_EVERY = float(os.environ.get("TEST_FLUSH_EVERY", cache.FLUSH_EVERY))
    service, router = make_service(load_settings()), GuardedRouter(dependencies=[require("rights")])
    router.add_api_route(RIGHTS, rights)
    service.include_router(router)
    return service


async def rights(caller: Caller) -> None:
    if caller.owner != "acme":
        raise HTTPException(404)
