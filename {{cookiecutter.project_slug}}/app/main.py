"""The application: `uv run fastapi dev`, or `uvicorn app.main:app`."""

import sys
from functools import partial

from app import (
    metrics,  # part: metrics
    routes,
)
from app.auth import GuardedAPI
from app.auth.access.request_log import RequestLog
from app.auth.errors import SettingsError, StoreUnavailableError
from app.auth.keys.service import open_service
from app.auth.log.formats import configure_logging
from app.auth.store.cache import DatabaseKeyStore
from app.console import router as console  # part: management
from app.docs import router as docs
from app.management.router import router as api_keys  # part: management
from app.openapi import ABOUT
from app.settings import Settings, load_settings


def create_app(settings: Settings) -> GuardedAPI:
    """Raises SettingsError or StoreUnavailableError if the database cannot be used."""
    configure_logging(settings.log_level, settings.log_format)
    metrics.prepare()
    service = open_service(settings, migrate=True)
    service.adopt_env_keys()
    store = DatabaseKeyStore(settings)
    app = GuardedAPI(
        keys=store,
        around=partial(RequestLog, counts=[store.count, metrics.count]),
        **ABOUT,
        openapi_tags=[{"name": "API keys", "description": "To manage them: `keys:manage`."}],
        openapi_url="/openapi.json" if settings.show_docs else None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings, app.state.key_service = settings, service
    app.include_router(routes.public)
    app.include_router(routes.guarded)
    app.include_router(api_keys)
    app.include_router(metrics.router)
    if settings.show_docs:
        app.include_router(docs)
    app.include_router(console)
    return app


try:
    app = create_app(load_settings())
except (SettingsError, StoreUnavailableError) as error:
    sys.stderr.write(f"{error}\n")
    sys.exit(3)  # what uvicorn and gunicorn take as: do not start it again
