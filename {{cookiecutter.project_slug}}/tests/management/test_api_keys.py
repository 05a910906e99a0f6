"""Managing keys over HTTP: what it does, and for whom."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from app.auth.keys.change import MANAGE, OWN
from app.auth.keys.service import KeyService
from app.auth.keys.views import IssuedKey
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS
from tests.conftest import Server

ClientWith = Callable[..., httpx.AsyncClient]

ROUTES = {  # and what each answers to a caller who may use it
    ("GET", ""): 200,
    ("POST", ""): 201,
    ("GET", "/findings"): 200,
    ("GET", "/usage"): 200,
    ("GET", "/usage/daily?id=x"): 200,
    ("GET", "/{id}"): 200,
    ("PATCH", "/{id}"): 200,
    ("POST", "/{id}/pause"): 200,
    ("POST", "/{id}/resume"): 200,
    ("POST", "/{id}/rotate"): 200,
    ("POST", "/{id}/revoke"): 200,
    ("GET", "/{id}/events"): 200,
    ("GET", "/{id}/usage"): 200,
}


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that requests would have waited."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("app.management.router.sleep", sleep)
    return waits


@pytest.fixture
def manager(client_with: ClientWith) -> httpx.AsyncClient:
    return client_with(MANAGE, "reports:*")


def make(service: KeyService, *scopes: str, **options: Any) -> IssuedKey:
    return service.create("billing", scopes, actor="tests", **options)


async def post(client: httpx.AsyncClient, path: str = "", json: Any = None) -> httpx.Response:
    return await client.post(f"/api-keys{path}", json=json)


async def test_the_life_of_a_key(
    server: Server, manager: httpx.AsyncClient, waits: list[float]
) -> None:
    created = await post(manager, "", {"name": "billing", "scopes": ["reports:read"]})
    assert created.status_code == 201
    assert created.headers["cache-control"] == "no-store"
    key = created.json()
    first = key.pop("key")
    assert (await manager.get(f"/api-keys/{key['id']}")).json() == key
    second = (await post(manager, f"/{key['id']}/rotate", {"overlap": "PT1H"})).json()["key"]
    assert await server.admits(first, second) == "++"
    assert waits == []
    third = (await post(manager, f"/{key['id']}/rotate", {"drop": "old"})).json()["key"]
    assert await server.admits(first, second, third) == "-++"
    assert (await post(manager, f"/{key['id']}/revoke")).json()["status"] == "revoked"
    assert await server.admits(second, third) == "--"
    assert len(waits) == 2  # the answer comes when no server accepts it any more
    events = (await manager.get(f"/api-keys/{key['id']}/events")).json()
    assert [event["action"] for event in events] == ["created", "rotated", "rotated", "revoked"]


@pytest.mark.parametrize(("method", "path", "expected"), [(*each, ROUTES[each]) for each in ROUTES])
async def test_every_route_is_for_managers(
    client: httpx.AsyncClient,
    client_with: ClientWith,
    key_service: KeyService,
    method: str,
    path: str,
    expected: int,
) -> None:
    path = f"/api-keys{path.replace('{id}', make(key_service).id)}"
    body = {"name": "billing"} if path == "/api-keys" else {}

    async def status(caller: httpx.AsyncClient) -> int:
        return (await caller.request(method, path, json=body)).status_code

    before = key_service.events()
    assert await status(client) == MISSING_KEY_STATUS
    for scopes in (("reports:read", "keys:read"), ()):
        assert await status(client_with(*scopes)) == 403
    assert {event.action for event in key_service.events()[len(before) :]} == {"created"}
    assert await status(client_with(MANAGE)) == expected


async def test_nobody_gives_or_ends_more_than_they_have(
    server: Server, manager: httpx.AsyncClient
) -> None:
    wider = make(server.keys, "invoices:read")
    answers = [
        await post(manager, "", {"name": "x", "scopes": ["invoices:read"]}),
        await post(manager, f"/{wider.id}/rotate"),
        await post(manager, f"/{wider.id}/revoke"),
    ]
    for answer in answers:
        assert answer.status_code == 403
        assert answer.json() == {"detail": "Missing scope: invoices:read"}
    assert await server.admits(wider.key) == "+"


async def test_nobody_makes_renews_or_ends_what_outlives_them(server: Server) -> None:
    ends = datetime.now(UTC) + timedelta(days=1)
    caller, longer = make(server.keys, MANAGE, expires_at=ends), make(server.keys)
    transport, headers = httpx.ASGITransport(app=server.api), {API_KEY_HEADER: caller.key}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://service", headers=headers
    ) as client:
        for path in ("", f"/{longer.id}/rotate", f"/{longer.id}/revoke"):
            answer = await post(client, path, {} if path else {"name": "x"})
            assert answer.status_code == 403
            assert "outlive yours" in answer.json()["detail"]


async def test_what_a_key_may_is_changed_and_paused(
    server: Server, manager: httpx.AsyncClient, waits: list[float]
) -> None:
    key = make(server.keys, "reports:read", note="of the shop")
    path = f"/api-keys/{key.id}"
    assert (await manager.patch(path, json={"name": "x"})).status_code == 200
    assert waits == []
    for body, field in (
        ({"scopes": ["reports:write"], "owner": "acme"}, {"note": "of the shop"}),
        ({"note": None}, {"owner": "acme"}),
        ({"scopes": None}, {"name": "x"}),
    ):
        changed = (await manager.patch(path, json=body)).json()
        wanted = {name: it or type(changed[name])() for name, it in body.items()}
        assert changed.items() >= {**wanted, **field}.items()
    assert (await manager.patch(path, json={"scopes": ["*"]})).status_code == 403
    assert (await post(manager, f"/{key.id}/pause")).json()["status"] == "paused"
    assert await server.admits(key.key) == "-"
    assert (await post(manager, f"/{key.id}/resume")).json()["status"] == "active"
    assert await server.admits(key.key) == "+"
    assert len(waits) == 4
    events = (await manager.get(f"{path}/events")).json()
    assert events[1]["changes"] == {"name": ["billing", "x"]}


async def test_a_key_of_an_owner_manages_the_keys_of_this_owner_alone(
    server: Server, client_with: ClientWith
) -> None:
    client = client_with(OWN, "reports:read", owner="acme")
    (own,) = [key for key in server.keys.all() if key.owner]
    others = [make(server.keys, "reports:read", owner=owner) for owner in ("other", "")]
    made = (await post(client, "", {"name": "x", "scopes": ["reports:read"]})).json()
    assert made["owner"] == "acme"
    listed = (await client.get("/api-keys")).json()["items"]
    assert [key["id"] for key in listed] == [own.id, made["id"]]
    for body in ({"owner": "other"}, {"owner": None}, {"scopes": [MANAGE]}):
        for id in (made["id"], own.id):
            assert (await client.patch(f"/api-keys/{id}", json=body)).status_code == 403
    for other in (others[0].id, others[1].id, "nobody"):
        for method, path in ROUTES:
            if "{id}" in path:
                path = f"/api-keys{path.format(id=other)}"
                answer = await client.request(method, path, json={})
                assert answer.status_code == 404
                assert answer.json()["detail"].startswith(f"No key has the id '{other}'")


async def test_the_last_manager_needs_force(
    key_service: KeyService, client_with: ClientWith
) -> None:
    for key in key_service.all():
        key_service.revoke(key.id, force=True, actor="tests")
    last = client_with(MANAGE)
    (id,) = [key.id for key in key_service.all() if key.status == "active"]
    refused = await post(last, f"/{id}/revoke")
    assert refused.status_code == 409
    assert refused.headers["content-type"] == "application/problem+json"
    assert (await post(last, f"/{id}/revoke", {"force": True})).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("", {"name": "\n"}, 400),
        ("", {"name": "x", "scopes": ["no scope"]}, 400),
        ("", {"name": "x", "admin": True}, 422),
        ("", {"name": "x", "expires_at": "2001-01-01T00:00:00Z"}, 400),
        ("/nobody/rotate", None, 404),
        ("/nobody/revoke", None, 404),
        ("/nobody/pause", None, 404),
        ("/nobody/rotate", {"issue": False}, 400),
    ],
)
async def test_bad_input_changes_nothing(
    manager: httpx.AsyncClient, key_service: KeyService, path: str, body: Any, status: int
) -> None:
    before = key_service.events()
    answer = await post(manager, path, body)
    assert answer.status_code == status
    assert key_service.events() == before


async def test_keys_are_listed_in_pages_and_found_by_name(
    manager: httpx.AsyncClient, key_service: KeyService
) -> None:
    made = [make(key_service) for _ in range(3)]
    pages, after = [], ""
    while after is not None:
        answer = await manager.get("/api-keys", params={"after": after, "limit": 2})
        page = answer.json()
        pages += page["items"]
        after = page["next"]
    assert [key["id"] for key in pages] == sorted(key.id for key in key_service.all())
    found = (await manager.get("/api-keys", params={"search": "BILL"})).json()["items"]
    assert [key["id"] for key in found] == [key.id for key in made]
    assert all("key" not in key for key in pages)
