"""The application: `uv run fastapi dev`, or `uvicorn app.main:app`."""

import logging
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app import routes
from app.constants import DESCRIPTION, TITLE
from app.env_file import EnvKeyStore
from app.security import GuardedAPI, check_guard, check_routes
from app.settings import Settings, SettingsError, load_settings

# FastAPI adds these itself. Public, like all that `routes.public` holds; the rest needs a key.
PUBLIC_PAGES = {"/docs", "/openapi.json"}


def create_app(settings: Settings) -> GuardedAPI:
    """Raises SettingsError if the settings name no key."""
    logging.basicConfig(format="%(levelname)s:     %(name)s: %(message)s")
    logging.getLogger("app").setLevel(settings.log_level)
    keys = EnvKeyStore(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        await check_guard()
        check_routes(app, PUBLIC_PAGES)
        async with keys.follow():
            yield

    app = GuardedAPI(
        keys=keys,
        title=TITLE,
        description=DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.include_router(routes.public)
    app.include_router(routes.guarded)
    return app


try:
    app = create_app(load_settings())
except SettingsError as error:
    sys.exit(f"{error}")
