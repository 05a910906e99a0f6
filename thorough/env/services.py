"""The service as the tests call it, in this process or in one of its own."""

from math import inf

from app.auth import GuardedAPI
from app.auth.access import clients
from app.settings import load_settings
from tests.callers import make_service

__all__ = ["make_service", "start"]


def start() -> GuardedAPI:
    """The service for a server of its own."""
    vars(clients)["BURST"] = inf  # tests send many wrong keys
    return make_service(load_settings())
