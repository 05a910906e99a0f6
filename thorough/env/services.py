"""The service as the tests call it."""

from app.auth import GuardedAPI
from app.main import create_app
from app.settings import Settings
from tests.callers import with_probe


def make_service(settings: Settings) -> GuardedAPI:
    return with_probe(create_app(settings))
