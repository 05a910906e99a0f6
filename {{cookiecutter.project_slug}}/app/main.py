"""The application: `uv run fastapi dev`, or `uvicorn app.main:app`."""

import sys

from app import (
    metrics,  # part: metrics
    routes,
)
from app.auth import GuardedAPI
from app.auth.errors import SettingsError, StoreUnavailableError
from app.auth.keys.service import open_service
from app.auth.log import configure_logging
from app.auth.store.cache import DatabaseKeyStore
from app.console import router as console  # part: management
from app.docs import router as docs
from app.gateway import router as gateway  # part: gateway
from app.management.router import TAG  # part: management
from app.management.router import router as api_keys  # part: management
from app.openapi import ABOUT
from app.policies import make_policies
from app.settings import Settings, load_settings


def create_app(settings: Settings) -> GuardedAPI:
    """Raises SettingsError or StoreUnavailableError if the database cannot be used."""
    configure_logging(settings.log_level, settings.log_format)
    store = DatabaseKeyStore(settings)
    policies = make_policies(settings, store)
    service = open_service(settings, policies, migrate=True)
    service.import_env_keys()
    app = GuardedAPI(
        store,
        policies=policies,
        observers=[store.observe],
        **ABOUT,
        accept_bearer=settings.accept_bearer,
        show_owners=settings.show_owners,
        openapi_url="/openapi.json" if settings.show_docs else None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings, app.state.key_service = settings, service

    app.include_router(gateway.router)  # part: gateway
    app.include_router(routes.guarded)
    app.include_router(routes.public)

    if settings.show_docs:
        app.include_router(docs)
    app.openapi_tags = [TAG]  # part: management
    app.include_router(api_keys)  # part: management
    app.include_router(console)  # part: management
    app.include_router(metrics.router)  # part: metrics
    app.add_observer(metrics.observe)  # part: metrics
    metrics.prepare(settings.show_owners)  # part: metrics
    app.add_observer(gateway.observe)  # part: gateway
    return app


try:
    app = create_app(load_settings())
except (SettingsError, StoreUnavailableError) as error:
    sys.stderr.write(f"{error}\n")
    sys.exit(3)  # uvicorn and gunicorn do not restart a worker with this exit code
