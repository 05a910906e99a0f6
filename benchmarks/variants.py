"""The applications that are compared: one route each, and how to call it."""

import logging
import os
import secrets
from collections.abc import Callable, Coroutine, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from importlib import import_module
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Security
from fastapi.security import APIKeyHeader
from starlette.types import Receive, Scope, Send

from app.auth import GuardedAPI, GuardedRouter
from app.auth.key import new_secret
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS
from app.settings import Settings, load_settings

PATH: Final = "/secure-endpoint"
# The ones the template gives its application, so that every variant matches as many routes.
OPTIONS: Final[dict[str, Any]] = {"docs_url": None, "redoc_url": None}
KEYS: Final = (new_secret(), new_secret())
SETTINGS: Final = {
    *(name.upper() for name in Settings.model_fields),
    *("PROMETHEUS_MULTIPROC_DIR", "SECRETS_DIR", "SECRETS_VAULT"),
}


@dataclass
class Variant:
    app: FastAPI
    key: str = KEYS[0]
    header: str = API_KEY_HEADER.lower()
    status: int = 200
    batch_seconds: float = 0.015

    def headers(self, host: str) -> dict[str, str]:
        return {"host": host, "user-agent": "bench", "accept": "*/*", self.header: self.key}

    def scope(self) -> dict[str, Any]:
        """A request as a server hands it over; a fresh one each time, for it is written to."""
        headers = self.headers("127.0.0.1").items()
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": PATH,
            "raw_path": PATH.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": {},
        }


@contextmanager
def workspace() -> Iterator[None]:
    """A folder for `.env` and the databases. The service's settings come from that `.env` alone."""
    for name in [name for name in os.environ if name.upper() in SETTINGS]:
        del os.environ[name]
    null = Path(os.devnull)
    with TemporaryDirectory() as folder, chdir(folder), null.open("w", encoding="utf-8") as nowhere:
        url = f"sqlite:///{Path(folder, 'keys.db')}"
        text = f"API_KEYS={','.join(KEYS)}\nDATABASE_URL={url}\n"
        Path(".env").write_text(text, encoding="utf-8")
        set_env_file(Path(folder))
        import_module("app.main")
        vars(import_module("app.auth.access.clients"))["BURST"] = (
            inf  # a refusal is what is measured
        )
        # Its lines are written as it writes them, but nobody is to read them.
        for handler in logging.root.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(nowhere)
        yield


def set_env_file(folder: Path) -> None:
    """The installed service looks into the folder that it was started in."""
    sources = import_module("app.auth.config.sources")
    sources.FOLDER, sources.ENV_FILE = folder, folder / ".env"


async def endpoint() -> dict[str, str]:
    return {"message": "You have access!"}


def with_router(app: FastAPI, router: APIRouter, *dependencies: Callable[..., Any]) -> FastAPI:
    guards = [Depends(dependency) for dependency in dependencies]
    router.add_api_route(PATH, endpoint, methods=["GET"], dependencies=guards)
    app.include_router(router)
    return app


def plain(*dependencies: Callable[..., Any]) -> FastAPI:
    return with_router(FastAPI(**OPTIONS), APIRouter(), *dependencies)


# The key is sent also where nobody asks for it, so that only the guard makes the difference.
async def open_route() -> Variant:
    return Variant(plain())


async def does_nothing() -> Variant:
    async def nothing() -> None:
        pass

    return Variant(plain(nothing))


class Unlogged(GuardedAPI):
    """Without a line for each request, as of an open route."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        lines = logging.getLogger("app.requests")
        lines.disabled = True
        try:
            await super().__call__(scope, receive, send)
        finally:
            lines.disabled = False


def new_service(**changes: Any) -> Any:
    """The application of the generated project, of whichever flavour that is."""
    return import_module("app.main").create_app(load_settings().model_copy(update=changes))


def guard(service: Any) -> FastAPI:
    """Like the open route, but guarded as in the service and by the same keys."""
    return with_router(Unlogged(service.keys, **OPTIONS), GuardedRouter())


async def guarded() -> Variant:
    return Variant(guard(new_service()))


async def refused() -> Variant:
    return Variant((await guarded()).app, new_secret(), status=MISSING_KEY_STATUS)


async def tutorial() -> Variant:
    header = APIKeyHeader(name=API_KEY_HEADER, auto_error=False)
    keys = list(KEYS)

    def get_api_key(key: str = Security(header)) -> str:
        if key in keys:
            return key
        raise HTTPException(status_code=403, detail="Invalid or missing API Key")

    return Variant(plain(get_api_key))


async def simple_security() -> Variant:
    # It reads this when it is imported.
    os.environ["FASTAPI_SIMPLE_SECURITY_DB_LOCATION"] = str(Path("simple_security.db").absolute())
    from fastapi_simple_security import api_key_security
    from fastapi_simple_security._sqlite_access import sqlite_access

    return Variant(plain(api_key_security), sqlite_access.create_key("bench", True), "api-key")


async def keyshield(**delays: Any) -> Variant:
    from keyshield.api import create_depends_api_key
    from keyshield.hasher.argon2 import Argon2ApiKeyHasher
    from keyshield.repositories.in_memory import InMemoryApiKeyRepository
    from keyshield.services.cached import CachedApiKeyService

    hasher = Argon2ApiKeyHasher(pepper=secrets.token_hex())
    service = CachedApiKeyService(InMemoryApiKeyRepository(), hasher, **delays)
    _, key = await service.create(name="bench")

    async def get_service() -> CachedApiKeyService:
        return service

    app = plain(create_depends_api_key(get_service))
    return Variant(app, f"Bearer {key}", "authorization")


async def keyshield_without_delay() -> Variant:
    return await keyshield(min_delay=0, max_delay=0)


@dataclass(frozen=True)
class Entry:
    label: str
    build: Callable[[], Coroutine[Any, Any, Variant]]
    foreign: bool = False  # somebody else's package: if it fails, the others are still compared


ENTRIES: Final = {
    "open": Entry("Open route", open_route),
    "nothing": Entry("A dependency that does nothing", does_nothing),
    "guarded": Entry("**This template**, valid key", guarded),
    "refused": Entry("**This template**, unknown key (refused)", refused),
    "tutorial": Entry("`APIKeyHeader` and a `def` dependency", tutorial),
    "simple-security": Entry("fastapi-simple-security", simple_security, foreign=True),
    "keyshield": Entry("keyshield, cached", keyshield, foreign=True),
    "keyshield-undelayed": Entry(
        "keyshield, cached, its delay switched off", keyshield_without_delay, foreign=True
    ),
}
