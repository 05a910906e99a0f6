"""The application: `uv run fastapi dev`, or `uvicorn app.main:app`.

Add your middleware, routers and pages in `create_app`.
"""

import sys

from app import routes
from app.auth import GuardedAPI
from app.auth.errors import SettingsError
from app.auth.log import configure_logging
from app.auth.store.env_store import open_store
from app.docs import router as docs
from app.openapi import ABOUT
from app.settings import Settings, load_settings
from app.vaults.key_store import follow_vault  # part: vaults


def create_app(settings: Settings) -> GuardedAPI:
    """Raises SettingsError if the settings name no key."""
    configure_logging(settings.log_level, settings.log_format)
    store = open_store(settings)
    store = follow_vault(store, settings, settings.vault_max_staleness)  # part: vaults
    app = GuardedAPI(
        store,
        **ABOUT,
        accept_bearer=settings.accept_bearer,
        openapi_url="/openapi.json" if settings.show_docs else None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings
    app.include_router(routes.guarded)
    app.include_router(routes.public)
    if settings.show_docs:
        app.include_router(docs)
    return app


try:
    app = create_app(load_settings())
except SettingsError as error:
    sys.stderr.write(f"{error}\n")
    sys.exit(3)  # uvicorn and gunicorn do not restart a worker with this exit code
