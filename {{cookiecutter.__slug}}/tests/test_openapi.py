"""The OpenAPI document tells a caller what the service does."""

from fastapi import FastAPI

from app.access import Caller
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS
from app.security import GuardedRouter, PublicRouter
from tests.servers import PROBE


def test_guarded_operations_show_the_key_and_the_refusal(service: FastAPI) -> None:
    router = GuardedRouter(prefix="/v1", responses={404: {"description": "No such item"}})

    @router.get("/items")
    async def read_items() -> None: ...

    @router.post("/items")
    async def create_item() -> None: ...

    @router.get("/whoami")
    async def whoami(caller: Caller) -> None: ...

    @router.get("/hidden", include_in_schema=False)
    async def hidden() -> None: ...

    service.include_router(router, prefix="/api")
    document = service.openapi()

    assert document["components"]["securitySchemes"] == {
        "APIKeyHeader": {"type": "apiKey", "in": "header", "name": API_KEY_HEADER}
    }
    guarded = {
        (path, method): operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if "security" in operation
    }
    assert set(guarded) >= {
        (PROBE, "get"),
        ("/api/v1/items", "get"),
        ("/api/v1/items", "post"),
        ("/api/v1/whoami", "get"),
    }
    assert not any("hidden" in path for path in document["paths"])
    for operation in guarded.values():
        assert [list(scheme) for scheme in operation["security"]] == [["APIKeyHeader"]]
        refusal = operation["responses"][str(MISSING_KEY_STATUS)]
        assert "application/problem+json" in refusal["content"]
    assert "404" in guarded["/api/v1/items", "get"]["responses"]


def test_public_operations_show_no_key(service: FastAPI) -> None:
    router = PublicRouter()

    @router.get("/open")
    async def open_to_all() -> None: ...

    service.include_router(router)
    operation = service.openapi()["paths"]["/open"]["get"]
    assert "security" not in operation
    assert str(MISSING_KEY_STATUS) not in operation["responses"]


def test_the_document_is_made_once(service: FastAPI) -> None:
    assert service.openapi() is service.openapi()
