"""Managing keys over HTTP: what it does, and for whom."""

import asyncio
import re
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, cast

import anyio.to_thread
import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from app.auth import GuardedAPI, GuardedRouter
from app.auth.database import clock
from app.auth.database.engine import connect, transaction
from app.auth.database.models import (
    LEAST_STALENESS,
    api_key_refusals,
    api_key_secrets,
    api_key_servers,
    api_key_usage,
    api_keys,
)
from app.auth.key import Key, canonical, is_canonical, with_prefix
from app.auth.keys.change import MANAGE, OWN, Fields
from app.auth.keys.service import KeyService
from app.auth.keys.views import OVERLAP, IssuedKey
from app.auth.store.cache import DatabaseKeyStore
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS
from app.management.router import router
from tests.callers import PROBE, status_of
from tests.thorough.commands import PATIENCE

Call = Callable[..., Coroutine[Any, Any, httpx.Response]]

FIELDS = {
    *("id", "name", "scopes", "status", "created_by", "created_at", "issued_at", "expires_at"),
    *("revoked_at", "last_used_at", "old_key_expires_at", "old_key_last_used_at"),
    *("limits", "networks", "owner", "note", "paused_at"),
}
ROUTES = {  # and what each answers to a caller who may use it
    ("GET", ""): 200,
    ("POST", ""): 201,
    ("GET", "/findings"): 200,
    ("GET", "/usage"): 200,
    ("GET", "/usage/daily"): 200,
    ("GET", "/{id}"): 200,
    ("PATCH", "/{id}"): 200,
    ("POST", "/{id}/pause"): 200,
    ("POST", "/{id}/resume"): 200,
    ("POST", "/{id}/rotate"): 200,
    ("POST", "/{id}/revoke"): 200,
    ("GET", "/{id}/events"): 200,
    ("GET", "/{id}/usage"): 200,
}
JSON = {"content-type": "application/json"}


def make(key_service: KeyService, *scopes: str, **options: Any) -> IssuedKey:
    return key_service.create("billing", scopes, actor="the tests", **options)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how long requests would have waited."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("app.management.router.sleep", sleep)
    return waits


@pytest.fixture
def call(service: GuardedAPI, secrets: list[str]) -> Call:
    """A request below /api-keys: by a key of API_KEYS, unless `by` says otherwise."""

    async def call(
        method: str, path: str = "", json: Any = None, by: str = secrets[0], **options: Any
    ) -> httpx.Response:
        assert isinstance(service.keys, DatabaseKeyStore)
        await service.keys.refresh()  # with what the test itself has just changed
        raising = "content" not in options  # who breaks it by that wants to see how it answers
        headers = {API_KEY_HEADER: by} if by else {}
        options["headers"] = options.get("headers", {}) | headers
        options |= {"json": json} if json is not None else {}
        transport = httpx.ASGITransport(app=service, raise_app_exceptions=raising)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.request(method, f"/api-keys{path}", **options)

    return call


async def get_in(service: GuardedAPI, *secrets: str) -> list[bool]:
    assert isinstance(service.keys, DatabaseKeyStore)
    await service.keys.refresh()
    return [await status_of(service, secret.encode()) == 200 for secret in secrets]


# The life of a key.


async def test_a_created_key_is_shown_and_works_at_once(
    service: GuardedAPI, call: Call, ids: list[str]
) -> None:
    ends = datetime.now(UTC) + timedelta(days=30)
    local = ends.astimezone().isoformat()
    wanted = {"name": "Ren\u00e9", "scopes": ["b:read", "a:*", "b:read"], "expires_at": local}
    answer = await call("POST", json=wanted)
    created = answer.json()

    assert answer.status_code == 201
    assert created.keys() == FIELDS | {"key"}
    given = {"name": "Ren\u00e9", "scopes": ["a:*", "b:read"], "created_by": ids[0]}
    assert created.items() >= {"status": "active", "revoked_at": None, **given}.items()
    assert datetime.fromisoformat(created["expires_at"]) == ends
    assert created["expires_at"].endswith("Z")
    assert is_canonical(created["key"])
    assert await get_in(service, created.pop("key")) == [True]
    assert (await call("GET", f"/{created['id']}")).json() == created


async def test_what_is_changed_here_holds_here_at_once(service: GuardedAPI, call: Call) -> None:
    made = (await call("POST", "", {"name": "billing"})).json()
    assert await status_of(service, made["key"].encode()) == 200
    await call("POST", f"/{made['id']}/revoke")
    assert await status_of(service, made["key"].encode()) == MISSING_KEY_STATUS


async def test_callers_that_tests_make_get_in_at_once(
    client_with: Callable[..., httpx.AsyncClient],
) -> None:
    for _ in range(20):
        assert (await client_with().get(PROBE)).status_code == 200


async def test_samples_of_bodies_do_what_the_defaults_do(
    call: Call, service: GuardedAPI, key_service: KeyService
) -> None:
    """Of an enumeration and of a list, tools would draw a value for what has none."""
    schemas = service.openapi()["components"]["schemas"]
    (new,), (rotation,) = (schemas[name]["examples"] for name in ("NewKey", "Rotation"))
    made = (await call("POST", json=new)).json()
    assert (made["scopes"], made["limits"], made["expires_at"]) == ([], [], None)
    bodies: list[dict[str, Any]] = [rotation, {}]
    for body in bodies:
        id = make(key_service).id
        until = (await call("POST", f"/{id}/rotate", body)).json()["old_key_expires_at"]
        overlap = datetime.fromisoformat(until) - datetime.now(UTC)
        assert overlap.total_seconds() == pytest.approx(OVERLAP.total_seconds(), abs=60)
        assert (await call("POST", f"/{id}/rotate", body)).status_code == 409
    for name in ("Revocation", "Pause"):
        properties = schemas[name]["properties"].items()
        assert {name: each["default"] for name, each in properties} == {"force": False}
    assert not any("default" in each for each in schemas["KeyPatch"]["properties"].values())
    (patch,) = schemas["KeyPatch"]["examples"]
    key = make(key_service, "a:b").id
    before = (await call("GET", f"/{key}")).json()
    assert (await call("PATCH", f"/{key}", patch)).json() == before | patch


async def test_the_list_comes_in_pages(call: Call, key_service: KeyService, ids: list[str]) -> None:
    everything = sorted(make(key_service).id for _ in range(5)) + sorted(ids)
    seen, after = [], ""
    for expected in (3, 3, 1):
        page = (await call("GET", params={"limit": 3, "after": after})).json()
        assert len(page["items"]) == expected
        seen += [item["id"] for item in page["items"]]
        after = page["next"]
    assert seen == everything
    assert after is None
    whole = (await call("GET", params={"limit": 7})).json()
    assert ([item["id"] for item in whole["items"]], whole["next"]) == (everything, None)
    assert all(item.keys() == FIELDS for item in whole["items"])


async def test_the_list_is_searched_by_name_and_id(call: Call, key_service: KeyService) -> None:
    names = ["Billing (EU)", "billing \u00dcbersee", "100 % Ziel_1", "Ziel-1 \\ %25"]
    ids = {name: key_service.create(name, actor="the tests").id for name in names}
    eu, overseas, percent, back = names
    for search, found in {
        "BILLING": [eu, overseas],
        "lling (e": [eu],
        "\u00fcbersee": [overseas],
        "\u00dcBERSEE": [overseas],
        ids[back].upper(): [back],
        # In SQL's LIKE, these stand for others.
        "%": [percent, back],
        "l_1": [percent],
        "\\": [back],
        "/": [],
        "'": [],
        "\U0001f511": [],
        "nobody": [],
    }.items():
        page = (await call("GET", params={"search": search})).json()
        assert sorted(item["name"] for item in page["items"]) == sorted(found), search
    first = (await call("GET", params={"search": "billing", "limit": 1})).json()
    options = {"search": "billing", "limit": 1, "after": first["next"]}
    second = (await call("GET", params=options)).json()
    assert [first["items"][0]["name"], second["items"][0]["name"]] == [eu, overseas]
    assert second["next"] is None


async def test_a_rotation_leaves_the_old_secret_for_the_overlap(
    service: GuardedAPI, call: Call, key_service: KeyService
) -> None:
    old = make(key_service, "reports:read")
    rotate = f"/{old.id}/rotate"
    answer = await call("POST", rotate)
    assert answer.status_code == 200
    rotated = answer.json()
    assert rotated.keys() == FIELDS | {"key"}
    assert (rotated["id"], rotated["scopes"]) == (old.id, ["reports:read"])
    issued, ends = (rotated[name] for name in ("issued_at", "old_key_expires_at"))
    assert datetime.fromisoformat(ends) - datetime.fromisoformat(issued) == OVERLAP
    assert await get_in(service, old.key, rotated["key"]) == [True, True]

    # Of two that are in force, the caller says which one ends.
    refused = await call("POST", rotate)
    assert refused.status_code == 409
    assert "drop the old one if nobody needs it any more" in refused.json()["detail"]
    keys = [old.key, rotated["key"]]
    for options, still in (
        ({"drop": "old"}, [False, True, True]),
        ({"drop": "new"}, [False, True, False, True]),
        ({"drop": "old", "overlap": "PT0S"}, [False, False, False, False, True]),
    ):
        keys.append((await call("POST", rotate, options)).json()["key"])
        assert await get_in(service, *keys) == still


@pytest.mark.parametrize(("drop", "still"), [("old", [False, True]), ("new", [True, False])])
async def test_one_of_two_secrets_is_dropped_without_a_third(
    service: GuardedAPI, call: Call, key_service: KeyService, drop: str, still: list[bool]
) -> None:
    old = make(key_service)
    new = (await call("POST", f"/{old.id}/rotate")).json()
    options = {"drop": drop, "issue": False}
    dropped = await call("POST", f"/{old.id}/rotate", options)
    assert dropped.status_code == 200
    assert dropped.json().keys() == FIELDS
    assert await get_in(service, old.key, new["key"]) == still
    again = await call("POST", f"/{old.id}/rotate", options)
    detail = f"{old.id} has no two secrets in force; to end the key, revoke it"
    assert (again.status_code, again.json()) == (409, {"detail": detail})
    neither = await call("POST", f"/{old.id}/rotate", {"issue": False})
    detail = "Say which secret to drop, or let one be issued"
    assert (neither.status_code, neither.json()) == (400, {"detail": detail})
    told = [event.action for event in key_service.events(old.id)]
    assert told == ["created", "rotated", f"dropped {drop}"]


async def test_what_cannot_be_rotated_says_why(
    call: Call, key_service: KeyService, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    expired = key_service.create("billing", expires_at=soon, actor="the tests")
    revoked = key_service.revoke(make(key_service).id, actor="the tests")
    monkeypatch.setattr("app.auth.database.clock.time", soon.timestamp)
    for id, detail in {
        ids[1]: f"{ids[1]} lives in API_KEYS; create another key, then revoke this one",
        revoked.id: f"{revoked.id} is revoked; create another key",
        expired.id: f"{expired.id} is expired; create another key",
    }.items():
        answer = await call("POST", f"/{id}/rotate")
        assert (answer.status_code, answer.json()) == (409, {"detail": detail})


async def test_a_revoked_key_ends_for_good_and_events_tell_by_whom(
    service: GuardedAPI, call: Call, key_service: KeyService, ids: list[str]
) -> None:
    key = make(key_service)
    newer = (await call("POST", f"/{key.id}/rotate")).json()
    assert await get_in(service, key.key, newer["key"]) == [True, True]

    first, second = [await call("POST", f"/{key.id}/revoke") for _ in range(2)]

    assert first.status_code == 200
    assert first.json().keys() == FIELDS
    assert first.json()["status"] == "revoked"
    assert first.json() == second.json()
    assert await get_in(service, key.key, newer["key"]) == [False, False]
    told = (await call("GET", f"/{key.id}/events")).json()
    done = [("created", "the tests"), ("rotated", ids[0]), ("revoked", ids[0])]
    assert [(event["action"], event["actor"]) for event in told] == done
    assert {event["key_id"] for event in told} == {key.id}
    assert [event["at"] for event in told] == sorted(event["at"] for event in told)


# Who may.


def without_owner(key_service: KeyService, key: IssuedKey) -> IssuedKey:
    """As nobody can make one."""
    with transaction(key_service.engine, write=True) as connection:
        connection.execute(sa.update(api_keys).where(api_keys.c.id == key.id).values(owner=""))
    return key


def test_the_table_of_routes_is_complete() -> None:
    routes = [route for route in router.routes if isinstance(route, APIRoute)]
    there = {(method, route.path) for route in routes for method in route.methods or ()}
    assert there == {(method, f"/api-keys{path}") for method, path in ROUTES}
    assert len(routes) == len(router.routes)


@pytest.mark.parametrize(
    "role",
    [
        "stranger",
        "client",
        "manager",
        "key of API_KEYS",
        "own of it",
        "own of another",
        "own of none",
    ],
)
async def test_every_route_asks_for_the_scope(
    call: Call, key_service: KeyService, secrets: list[str], role: str
) -> None:
    caller = {
        "stranger": "",
        "client": make(key_service, "reports:*", "keys:managers", "keys", owner="acme").key,
        "manager": make(key_service, MANAGE).key,
        "key of API_KEYS": secrets[1],
        "own of it": make(key_service, OWN, owner="acme").key,
        "own of another": make(key_service, OWN, owner="other").key,
        "own of none": without_owner(key_service, make(key_service, OWN, owner="other")).key,
    }[role]
    paths = {route: route[1].format(id=make(key_service, owner="acme").id) for route in ROUTES}
    before = key_service.events()

    bodies: dict[tuple[str, str], Any] = {("POST", ""): {"name": "billing"}}
    bodies |= {("PATCH", "/{id}"): {"note": "changed"}}
    queries = {("GET", "/usage/daily"): {"id": "env-"}}
    answers = {
        route: await call(
            *(route[0], path, bodies.get(route)), by=caller, params=queries.get(route)
        )
        for route, path in paths.items()
    }

    statuses = {route: answer.status_code for route, answer in answers.items()}
    if refused := {"stranger": MISSING_KEY_STATUS, "client": 403}.get(role):
        assert statuses == dict.fromkeys(ROUTES, refused)
        detail = f"Missing scope: {MANAGE}" if caller else "Invalid or missing API Key"
        assert all(answer.json() == {"detail": detail} for answer in answers.values())
        assert key_service.events() == before
    elif role in ("own of another", "own of none"):
        makes_some = role == "own of another"
        made = {("POST", ""): 201 if makes_some else 404}
        assert statuses == {it: 404 if "{id}" in it[1] else 200 for it in ROUTES} | made
        assert len(key_service.events()) == len(before) + makes_some
    else:
        assert statuses == ROUTES


async def test_the_document_and_the_doctor_know_both_scopes(
    service: GuardedAPI, call: Call, key_service: KeyService
) -> None:
    paths = service.openapi()["paths"].items()
    managing = [each for path, of in paths if path.startswith("/api-keys") for each in of.values()]
    assert len(managing) == len(ROUTES)
    for operation in managing:
        assert operation["security"] == [{"APIKeyHeader": [scope]} for scope in (MANAGE, OWN)]
    for scope in (MANAGE, OWN):
        make(key_service, scope, owner="acme")
    assert "no endpoint asks for" not in (await call("GET", "/findings")).text


async def test_without_the_scope_the_body_is_not_even_read(
    service: GuardedAPI, call: Call, key_service: KeyService
) -> None:
    client, manager = make(key_service).key, make(key_service, MANAGE).key
    for method, path in (
        ("POST", ""),
        ("PATCH", "/0123456789abcdef"),
        *(("POST", f"/0123456789abcdef/{name}") for name in ("rotate", "pause", "revoke")),
    ):
        broken = {"content": b"{broken", "headers": JSON}
        assert (await call(method, path, by=client, **broken)).status_code == 403
        assert (await call(method, path, by=manager, **broken)).status_code == 422
        unreadable = await call(method, path, content=b"\xff", headers=JSON)
        assert unreadable.status_code == 400
        assert unreadable.headers["content-type"] == "application/problem+json"
        # Whoever reads this body gets an error: of FastAPI, a 400.
        options = {"path": f"/api-keys{path}", "method": method}
        assert await status_of(service, client.encode(), **options) == 403
        assert await status_of(service, manager.encode(), **options) == 400


async def test_nobody_grants_or_takes_over_what_he_lacks(
    call: Call, key_service: KeyService
) -> None:
    for held, asked, missing in (
        ([], ["reports:read"], "reports:read"),
        ([], [MANAGE], None),
        ([], ["keys:*"], "keys:*"),
        ([], [MANAGE, "reports:read", "x"], "reports:read"),
        (["reports:*"], ["reports:*", "reports:read:own"], None),
        (["reports:*"], ["reports"], "reports"),
        (["reports:*"], ["*"], "*"),
        (["*"], ["*", "reports:read"], None),
    ):
        caller = make(key_service, MANAGE, *held).key
        stronger = make(key_service, *asked)
        before = key_service.events()
        created = await call("POST", "", {"name": "billing", "scopes": asked}, by=caller)
        rotated = await call("POST", f"/{stronger.id}/rotate", by=caller)
        weaker = make(key_service)
        given = await call("PATCH", f"/{weaker.id}", {"scopes": asked}, by=caller)
        if missing is None:
            assert (created.status_code, rotated.status_code) == (201, 200)
            assert given.json()["scopes"] == sorted(asked)
            continue
        refused = (403, {"detail": f"Missing scope: {missing}"})
        for answer in (created, rotated, given):
            assert (answer.status_code, answer.json()) == refused
        assert [event.action for event in key_service.events()[len(before) :]] == ["created"]


async def test_nobody_ends_or_renews_what_has_more_than_he_has(
    call: Call, key_service: KeyService
) -> None:
    weak = make(key_service, MANAGE, "reports:read")
    strong = make(key_service, "reports:*")
    key_service.rotate(strong.id, actor="the tests")
    key_service.pause((paused := make(key_service, "reports:*")).id, actor="the tests")
    before = key_service.events()
    for method, path, body in (
        ("POST", "/revoke", None),
        ("POST", "/revoke", {"force": True}),
        ("POST", "/rotate", {"drop": "old"}),
        ("POST", "/rotate", {"drop": "old", "issue": False}),
        ("POST", "/pause", {"force": True}),
        ("PATCH", "", {"name": "other"}),
        ("PATCH", "", {"scopes": None}),
    ):
        answer = await call(method, f"/{strong.id}{path}", body, by=weak.key)
        refused = {"detail": "Missing scope: reports:*"}
        assert (answer.status_code, answer.json()) == (403, refused), (path, body)
    assert (await call("POST", f"/{paused.id}/resume", by=weak.key)).status_code == 403
    assert key_service.events() == before
    equal = make(key_service, "reports:read")
    assert (await call("POST", f"/{equal.id}/revoke", by=weak.key)).status_code == 200


async def test_nobody_makes_or_renews_what_outlives_him(
    call: Call, key_service: KeyService
) -> None:
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    caller = make(key_service, MANAGE, expires_at=ends)
    equal, longer, endless = (
        make(key_service, expires_at=at) for at in (ends, ends + timedelta(seconds=1), None)
    )
    for each in (equal, longer, endless):
        key_service.rotate(each.id, actor="the tests")
    before = key_service.events()
    refused = {
        "detail": f"No key that you manage may outlive yours: until {ends:%Y-%m-%dT%H:%M:%SZ}"
    }
    for key in (longer, endless):
        at = key.expires_at and key.expires_at.isoformat()
        for path, body in (
            ("", {"name": "billing", "expires_at": at}),
            (f"/{key.id}/rotate", {"drop": "old"}),
            (f"/{key.id}/rotate", {"drop": "old", "issue": False}),
        ):
            answer = await call("POST", path, body, by=caller.key)
            assert (answer.status_code, answer.json()) == (403, refused), (path, body)
        for id in (equal.id, caller.id):
            answer = await call("PATCH", f"/{id}", {"expires_at": at}, by=caller.key)
            assert (answer.status_code, answer.json()) == (403, refused)
    assert key_service.events() == before

    allowed = {"name": "billing", "expires_at": ends.isoformat()}
    assert (await call("POST", "", allowed, by=caller.key)).status_code == 201
    for key in (equal, caller):
        rotated = await call("POST", f"/{key.id}/rotate", {"drop": "old"}, by=caller.key)
        assert rotated.json()["expires_at"] == f"{ends:%Y-%m-%dT%H:%M:%SZ}"
    for key in (longer, endless):
        answer = await call("POST", f"/{key.id}/revoke", by=caller.key)
        assert (answer.status_code, answer.json()) == (403, refused)


@pytest.mark.parametrize("state", ["revoked", "expired", "paused"])
async def test_a_key_that_has_ended_a_moment_ago_changes_nothing(
    service: GuardedAPI,
    call: Call,
    key_service: KeyService,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
) -> None:
    ends = datetime.now(UTC) + timedelta(hours=1)
    caller, other = make(key_service, MANAGE, expires_at=ends), make(key_service, expires_at=ends)
    if state != "expired":
        {"revoked": key_service.revoke, "paused": key_service.pause}[state](
            caller.id, actor="the tests"
        )
    else:
        monkeypatch.setattr("app.auth.database.clock.time", ends.timestamp)
    before = key_service.events()
    # As a guard that has not heard of it yet.
    known = Key(caller.id, caller.name, frozenset(caller.scopes))
    monkeypatch.setattr(service.keys, "cached", lambda _: known)
    for method, path, body in (
        ("POST", "", {"name": "billing"}),
        ("POST", f"/{other.id}/rotate", None),
        ("POST", f"/{other.id}/rotate", {"drop": "old", "issue": False}),
        ("POST", f"/{other.id}/revoke", None),
        ("POST", f"/{caller.id}/revoke", {"force": True}),
        ("POST", f"/{caller.id}/resume", None),
        ("PATCH", f"/{caller.id}", {"expires_at": None}),
    ):
        answer = await call(method, path, body, by=caller.key)
        assert (answer.status_code, answer.json()) == (403, {"detail": f"Your key is {state}"})
    assert key_service.events() == before


@pytest.mark.parametrize("held", [MANAGE, OWN])
async def test_nobody_widens_himself(call: Call, key_service: KeyService, held: str) -> None:
    ends = datetime.now(UTC) + timedelta(days=1)
    bounds = {"limits": ["90/minute"], "networks": ["127.0.0.0/8"]}
    options: Any = {"owner": "acme", "expires_at": ends, "restrictions": bounds}
    caller = make(key_service, held, "reports:read", **options)
    before = key_service.events()
    for body in (
        {"scopes": ["*"]},
        {"scopes": [held, "reports:*"]},
        {"scopes": [held, "reports:write"]},
        {"expires_at": None},
        {"expires_at": (ends + timedelta(seconds=1)).isoformat()},
        {"limits": None},
        {"limits": ["91/minute"]},
        {"networks": None},
        {"networks": ["0.0.0.0/0"]},
    ):
        answer = await call("PATCH", f"/{caller.id}", body, by=caller.key)
        assert answer.status_code == 403, body
    assert key_service.events() == before
    narrower = {"limits": ["5/minute"], "networks": ["127.0.0.1"], "scopes": [held]}
    answer = await call("PATCH", f"/{caller.id}", narrower, by=caller.key)
    assert answer.status_code == 200


async def test_what_a_manager_lost_a_moment_ago_it_does_not_use(
    service: GuardedAPI, call: Call, key_service: KeyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard may not have heard of it yet; the transaction decides."""
    soon = datetime.now(UTC) + timedelta(hours=1)
    for held, change, detail in (
        ([MANAGE, "a:b"], {"scopes": ["a:b"]}, f"Missing scope: {MANAGE}"),
        ([MANAGE, "a:b"], {"scopes": [MANAGE]}, "Missing scope: a:b"),
        ([MANAGE, "a:b"], {"scopes": [OWN, "a:b"]}, f"Missing scope: {MANAGE}"),
        ([MANAGE, "a:b"], {"expires_at": soon}, "outlive yours"),
        ([MANAGE, "a:b"], {"restrictions": {"networks": ["192.0.2.1"]}}, "from elsewhere"),
        ([OWN, "a:b"], {"scopes": ["a:b"]}, f"Missing scope: {MANAGE}"),
        ([OWN, "a:b"], {"scopes": [OWN]}, "Missing scope: a:b"),
        ([OWN, "a:b"], {"owner": "other"}, f"Missing scope: {MANAGE}"),
        ([OWN, "a:b"], {"owner": "other", "scopes": ["a:b"]}, f"Missing scope: {MANAGE}"),
    ):
        caller, key = (make(key_service, *each, owner="acme") for each in (held, ["a:b"]))
        known = Key(caller.id, caller.name, frozenset(held), owner="acme")
        narrowed = cast("Fields", change)
        key_service.update(caller.id, lambda _: narrowed, actor="the tests")  # noqa: B023
        before = key_service.events()
        for method, path, body in (
            ("POST", "", {"name": "x", "scopes": ["a:b"]}),
            ("PATCH", f"/{key.id}", {"name": "other"}),
            ("POST", f"/{key.id}/pause", None),
            ("POST", f"/{key.id}/revoke", None),
            ("POST", f"/{key.id}/rotate", None),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(service.keys, "cached", lambda _: known)  # noqa: B023
                answer = await call(method, path, body, by=caller.key)
            assert answer.status_code == 403
            assert detail in answer.json()["detail"], (held, change, path)
        assert key_service.events() == before


# Those of an owner.


@pytest.fixture
def own(key_service: KeyService) -> IssuedKey:
    """A key that manages those of acme."""
    return make(key_service, OWN, "reports:read", owner="acme")


async def test_no_other_key_can_be_named(
    call: Call,
    key_service: KeyService,
    own: IssuedKey,
    ids: list[str],
) -> None:
    """Each answer is the one for a key that is not there."""
    mine, theirs, nobodys = (make(key_service, owner=owner) for owner in ("acme", "other", ""))
    near = make(key_service, owner="acme ltd")
    made = [key_service.rotate(key.id, actor="the tests").id for key in (theirs, nobodys)]
    others, nowhere = [*made, near.id, ids[0]], ["0123456789abcdef", "env-0123456789ab"]
    with transaction(key_service.engine, write=True) as connection:
        now = clock.now(connection)
        then = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
        hour = {"starts_at": then, "hours": 1}  # nothing of this test is counted there
        for digest, id in connection.execute(
            sa.select(api_key_secrets.c.digest, api_key_secrets.c.key_id)
        ).all():
            row = {"digest": digest, **hour, "served": 7 if id == mine.id else 1000, "refused": 500}
            connection.execute(sa.insert(api_key_usage).values(row))
        flood = {"network": "192.0.2.0/24", "reason": "no key", **hour, "refused": 10_000}
        connection.execute(sa.insert(api_key_refusals).values(flood))
        # No manager has no end: a finding about the service.
        end = sa.update(api_keys).where(api_keys.c.id != mine.id, api_keys.c.id != own.id)
        connection.execute(end.values(expires_at=now + timedelta(days=1)))
    before = key_service.events()

    for method, path in (route for route in ROUTES if "{id}" in route[1]):
        for body in ({}, {"name": "x"}, {"force": True}, {"drop": "old", "issue": False}):
            said = set()
            for id in [*others, *nowhere]:
                answer = await call(method, path.format(id=id), body, by=own.key)
                told = answer.text.replace(id, "ID")
                said.add((answer.status_code, told, answer.headers["content-length"], len(id)))
            assert len({each[:2] for each in said}) == 1
            (status, *_), *_ = said
            known = (await call(method, path.format(id=nowhere[0]), body)).status_code
            assert status == known
            assert status in (404, 422)
    listed = (await call("GET", by=own.key)).json()["items"]
    assert [key["id"] for key in listed] == [own.id, mine.id]
    for after in (*others, "", "0" * 16):
        for search in (*others, "billing", "acme", ""):
            query = {"after": after, "search": search, "limit": 1}
            page = (await call("GET", params=query, by=own.key)).json()
            assert {key["owner"] for key in page["items"]} <= {"acme"}
            assert page["next"] in (None, own.id)
            assert not (search in others and page["items"])
    daily = (
        await call("GET", "/usage/daily", params={"id": [*others, mine.id]}, by=own.key)
    ).json()
    assert [(day["id"], day["served"]) for day in daily] == [(mine.id, 7)]
    used = (await call("GET", "/usage", by=own.key)).json()
    assert {key["id"] for key in used["keys"]} == {own.id, mine.id}
    assert used["refused"] == 1000
    assert 1007 <= used["served"] < 2000  # and the requests of this test
    assert (used["strangers"], used["strangers_refused"]) == ([], 0)
    found = (await call("GET", "/findings", by=own.key)).json()
    assert {each["id"] for each in found} == {own.id, mine.id}
    everything = (await call("GET", "/findings")).json()
    assert len([each for each in everything if not each["id"]]) >= 1
    assert {each["id"] for each in everything} >= {theirs.id, nobodys.id, near.id}
    assert key_service.events() == before


async def test_what_a_key_of_an_owner_makes_is_of_this_owner(
    call: Call, key_service: KeyService, own: IssuedKey
) -> None:
    for owner, status in ((None, 201), ("acme", 201), ("", 201), ("other", 403), ("Acme", 403)):
        new = {"name": "x", "scopes": [OWN, "reports:read"], "owner": owner}
        answer = await call("POST", "", new, by=own.key)
        assert answer.status_code == status
        if status == 201:
            assert (answer.json()["owner"], answer.json()["created_by"]) == ("acme", own.id)
        else:
            assert answer.json() == {"detail": "The keys that you manage belong to acme"}
    before = key_service.events()
    mine = make(key_service, "reports:read", owner="acme")
    for owner in ("other", "", None):
        for id in (mine.id, own.id):
            answer = await call("PATCH", f"/{id}", {"owner": owner}, by=own.key)
            assert (answer.status_code, answer.json()["detail"]) == (
                403,
                "The keys that you manage belong to acme",
            )
    for scope in (MANAGE, "keys:*", "*", "reports:write"):
        for method, path in (("POST", ""), ("PATCH", f"/{mine.id}")):
            body = {"name": "x", "scopes": [scope]}
            answer = await call(method, path, body, by=own.key)
            assert (answer.status_code, answer.json()) == (
                403,
                {"detail": f"Missing scope: {scope}"},
            )
    wider = make(key_service, "reports:*", owner="acme")
    assert (await call("GET", f"/{wider.id}", by=own.key)).status_code == 200
    for path in ("revoke", "rotate", "pause"):
        assert (await call("POST", f"/{wider.id}/{path}", by=own.key)).status_code == 403
    actions = [event.action for event in key_service.events()[len(before) :]]
    assert actions == ["created", "created"]


async def test_a_key_changes_hands(call: Call, key_service: KeyService, own: IssuedKey) -> None:
    key = make(key_service, owner="other")
    for owner, status in (("acme", 200), ("other", 404), ("acme", 200), (None, 404)):
        assert (await call("PATCH", f"/{key.id}", {"owner": owner})).status_code == 200
        for path in ("", "/events", "/usage"):
            assert (await call("GET", f"/{key.id}{path}", by=own.key)).status_code == status
    refused = await call("PATCH", f"/{own.id}", {"owner": None})
    detail = f"A key with {OWN} needs an owner"
    assert (refused.status_code, refused.json()) == (400, {"detail": detail})


# What is changed.

OF_A_PATCH = {
    "name": st.sampled_from(["billing", "Ren\u00e9"]),
    "scopes": st.none() | st.lists(st.sampled_from(["a:b", "c", "a:*"]), unique=True).map(sorted),
    "limits": st.none() | st.sampled_from([[], ["9/minute"], ["5/second", "7/day"]]),
    "networks": st.none() | st.sampled_from([[], ["10.0.0.0/8"], ["192.0.2.1/32", "::1/128"]]),
    "expires_at": st.none() | st.sampled_from(["2060-01-01T00:00:00Z", "2070-06-01T12:00:00Z"]),
    "owner": st.none() | st.sampled_from(["", "acme", "other"]),
    "note": st.none() | st.sampled_from(["", "of the shop"]),
}
EMPTY: dict[str, Any] = {
    "scopes": [],
    "limits": [],
    "networks": [],
    "owner": "",
    "note": "",
    "expires_at": None,
}


def merged(target: Any, patch: Any) -> Any:
    """The algorithm of RFC 7396, section 2."""
    if not isinstance(patch, dict):
        return patch
    target = {**target} if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = merged(target.get(name), value)
    return target


@settings(max_examples=40, suppress_health_check=[*HealthCheck])
@given(st.lists(st.fixed_dictionaries({}, optional=OF_A_PATCH), min_size=1, max_size=4))
async def test_a_patch_changes_what_it_names_and_nothing_else(
    call: Call, key_service: KeyService, patches: list[dict[str, Any]]
) -> None:
    id = make(key_service).id
    for patch in patches:
        before = (await call("GET", f"/{id}")).json()
        already = (await call("GET", f"/{id}/events")).json()
        answer = await call("PATCH", f"/{id}", patch)
        assert answer.status_code == 200
        assert answer.json() == EMPTY | merged(before, patch)
        assert (await call("GET", f"/{id}")).json() == answer.json()
        events = (await call("GET", f"/{id}/events")).json()[len(already) :]
        if answer.json() == before:
            assert events == []
            continue
        (event,) = events
        assert event["action"] == "updated"
        differ = {name for name in before if before[name] != answer.json()[name]}
        changes = {name: [before[name], answer.json()[name]] for name in differ}
        assert event["changes"] == changes


@pytest.mark.parametrize("kind", ["application/merge-patch+json", "application/json"])
async def test_a_patch_is_json(call: Call, key_service: KeyService, kind: str) -> None:
    id = make(key_service).id
    options: Any = {"content": b'{"note": "EU"}', "headers": {"content-type": kind}}
    assert (await call("PATCH", f"/{id}", **options)).json()["note"] == "EU"
    for other in ("text/plain", "application/x-www-form-urlencoded", ""):
        options["headers"] = {"content-type": other} if other else {}
        assert (await call("PATCH", f"/{id}", **options)).status_code == 422


async def test_a_patch_that_is_none_changes_nothing(call: Call, key_service: KeyService) -> None:
    id = make(key_service, "a:b").id
    before = key_service.events()
    bodies: list[Any] = [[], "x", 1, {"name": None}, {"name": 5}, {"id": "x"}, {"scopes": "a:b"}]
    bodies += [{"status": "revoked"}, {"force": True}, {"limits": "9/minute"}, {"key": "x"}]
    ends = (4102444800, "4102444800", "+4102444800.5", "20601231", "2060", "2060-01-01T00:00")
    bodies += [*({"expires_at": end} for end in ends), {"owner": 5}]
    for body in bodies:
        assert (await call("PATCH", f"/{id}", body)).status_code == 422, body
    for body in (
        *({"name": name} for name in ("", " ", "x" * 101, "a\u202eb")),
        *({"owner": name} for name in (" ", "x" * 101, "a\x00b")),
        *({"note": text} for text in (" ", "x" * 1001, "a\nb")),
        *({"scopes": [scope]} for scope in ("", "Reports", "a b")),
        *({"limits": [text]} for text in ("", "many", "0/minute")),
        *({"networks": [text]} for text in ("", "here", "10.0.0.1/8")),
        *({"expires_at": at} for at in ("2001-01-01T00:00Z", "2999-01-01T00:00Z")),
    ):
        answer = await call("PATCH", f"/{id}", body)
        assert answer.status_code == 400, body
        assert answer.json()["detail"]
    assert (await call("PATCH", f"/{id}")).status_code == 422
    assert (await call("PATCH", f"/{id}", {})).status_code == 200
    assert (await call("PATCH", f"/{id}", {"name": "billing"})).status_code == 200
    assert key_service.events() == before
    key_service.revoke(id, actor="the tests")
    ended = await call("PATCH", f"/{id}", {"name": "x"})
    detail = f"{id} is revoked; create another key"
    assert (ended.status_code, ended.json()) == (409, {"detail": detail})


async def test_a_paused_key_comes_back(
    service: GuardedAPI, call: Call, key_service: KeyService
) -> None:
    key = make(key_service, "a:b")
    assert await get_in(service, key.key) == [True]
    for _ in range(2):
        paused = await call("POST", f"/{key.id}/pause")
        assert (paused.status_code, paused.json()["status"]) == (200, "paused")
        assert paused.json()["paused_at"]
        assert await get_in(service, key.key) == [False]
    refused = await call("POST", f"/{key.id}/rotate")
    detail = f"{key.id} is paused; resume it first"
    assert (refused.status_code, refused.json()) == (409, {"detail": detail})
    for _ in range(2):
        resumed = await call("POST", f"/{key.id}/resume")
        assert (resumed.json()["status"], resumed.json()["paused_at"]) == ("active", None)
        assert await get_in(service, key.key) == [True]
    told = [event.action for event in key_service.events(key.id)]
    assert told == ["created", "paused", "resumed"]


@pytest.fixture
def no_env_keys(working_directory: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "")


@pytest.mark.usefixtures("no_env_keys")
async def test_the_last_manager_is_revoked_by_force_alone(
    service: GuardedAPI, call: Call, key_service: KeyService
) -> None:
    last, other, client = (make(key_service, scope) for scope in (MANAGE, "keys:*", "reports:*"))
    whole = make(key_service, "*")
    for key in (client, other):
        assert (await call("POST", f"/{key.id}/revoke", by=whole.key)).status_code == 200
    assert (await call("POST", f"/{whole.id}/revoke", by=whole.key)).status_code == 200
    refused = await call("POST", f"/{last.id}/revoke", by=last.key)
    assert refused.status_code == 409
    detail = "No key with keys:manage and without an end would be left; force it if that is meant"
    assert refused.json() == {"detail": detail}
    assert await get_in(service, last.key) == [True]

    for method, path, body in (
        ("POST", f"/{last.id}/pause", None),
        ("PATCH", f"/{last.id}", {"scopes": None}),
        ("PATCH", f"/{last.id}", {"scopes": [OWN], "owner": "acme"}),
        ("PATCH", f"/{last.id}", {"expires_at": "2060-01-01T00:00:00Z"}),
        ("PATCH", f"/{last.id}?force=false", {"scopes": None}),
    ):
        refused = await call(method, path, body, by=last.key)
        assert (refused.status_code, refused.json()) == (409, {"detail": detail})
    ends = {"expires_at": "2060-01-01T00:00:00Z"}
    assert (await call("PATCH", f"/{last.id}?force=true", ends, by=last.key)).status_code == 200

    forced = await call("POST", f"/{last.id}/revoke", {"force": True}, by=last.key)
    assert forced.status_code == 200
    assert await get_in(service, last.key) == [False]


@pytest.mark.usefixtures("no_env_keys")
async def test_the_last_manager_without_an_end_counts_as_the_last(
    call: Call, key_service: KeyService
) -> None:
    ends = datetime.now(UTC) + timedelta(days=1)
    endless = make(key_service, MANAGE)
    first, last = (make(key_service, MANAGE, expires_at=ends) for _ in range(2))
    for key, by, status in (
        (endless, first, 403),
        (first, endless, 200),
        (endless, endless, 409),
        (last, endless, 200),
    ):
        assert (await call("POST", f"/{key.id}/revoke", by=by.key)).status_code == status


# How long it takes.


def servers(key_service: KeyService, **bounds: float) -> None:
    """Let the database know of servers, by their KEY_MAX_STALENESS."""
    rows = [{"id": id, "max_staleness": bound} for id, bound in bounds.items()]
    with transaction(key_service.engine, write=True) as connection:
        connection.execute(sa.insert(api_key_servers).values(seen_at=clock.now(connection)), rows)


async def test_what_takes_access_away_waits_for_the_slowest_server(
    call: Call, key_service: KeyService, waits: list[float]
) -> None:
    assert (await call("POST", f"/{make(key_service).id}/revoke")).status_code == 200
    assert waits == [LEAST_STALENESS]
    waits.clear()
    servers(key_service, slow=7.5, quick=0.2, stopped=0.0)
    id = (await call("POST", "", {"name": "billing"})).json()["id"]
    await call("POST", f"/{id}/rotate")
    assert waits == []
    for path, body in (
        ("rotate", {"drop": "old"}),
        ("rotate", {"drop": "new", "issue": False}),
        ("rotate", {"overlap": "PT0S"}),
        ("pause", None),
        ("pause", None),
        ("resume", None),
        ("revoke", None),
    ):
        assert (await call("POST", f"/{id}/{path}", body)).status_code == 200
        assert waits.pop() == 7.5
        assert waits == []
    id = make(key_service, "a:b").id
    for field, waited in {
        "name": ("x", []),
        "note": ("x", []),
        "scopes": (None, [7.5]),
        "expires_at": ("2060-01-01T00:00:00Z", [7.5]),
        "owner": ("acme", [7.5]),
        "limits": (["9/minute"], [7.5]),
        "networks": (["127.0.0.1"], [7.5]),
    }.items():
        value, seconds = waited
        assert (await call("PATCH", f"/{id}", {"note": "y", field: value})).status_code == 200
        assert waits == seconds
        waits.clear()


async def test_the_wait_is_over_before_the_answer(
    call: Call, key_service: KeyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.management.router.sleep", asyncio.sleep)
    servers(key_service, slow=0.4)
    id = make(key_service).id
    began_at = time.monotonic()
    await call("POST", f"/{id}/revoke")
    assert time.monotonic() - began_at >= 0.4


@pytest.fixture
async def threads() -> int:
    """How many there are for endpoints: fewer than usual, so that few requests fill them."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    limiter.total_tokens = 16
    return 16


async def test_revocations_that_wait_hold_nobody_up(
    service: GuardedAPI,
    call: Call,
    key_service: KeyService,
    database_url: sa.URL,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting, over = asyncio.Semaphore(0), asyncio.Event()

    async def sleep(_: float) -> None:
        waiting.release()
        await over.wait()

    monkeypatch.setattr("app.management.router.sleep", sleep)
    key_service.engine = connect(database_url, timeout=PATIENCE)
    used, unused, *ended = (make(key_service) for _ in range(2 + threads + 1))
    assert await get_in(service, used.key) == [True]
    revocations = [asyncio.create_task(call("POST", f"/{key.id}/revoke")) for key in ended]
    async with asyncio.timeout(PATIENCE):
        for _ in revocations:
            await waiting.acquire()

    assert await get_in(service, used.key, unused.key, ended[0].key) == [True, True, False]
    assert (await call("GET")).status_code == 200
    assert (await call("POST", "", {"name": "billing"})).status_code == 201
    assert not any(revocation.done() for revocation in revocations)

    over.set()
    assert {answer.status_code for answer in await asyncio.gather(*revocations)} == {200}


async def test_changes_that_wait_for_the_database_do_not_hold_up_the_guard(
    service: GuardedAPI,
    call: Call,
    key_service: KeyService,
    database_url: sa.URL,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create, loop, begun = key_service.create, asyncio.get_running_loop(), asyncio.Semaphore(0)

    def begin(*arguments: Any, **options: Any) -> IssuedKey:
        loop.call_soon_threadsafe(begun.release)
        return create(*arguments, **options)

    used, *unused = (make(key_service).key for _ in range(4))
    assert await get_in(service, used) == [True]
    key_service.engine = connect(database_url, timeout=PATIENCE)
    monkeypatch.setattr(key_service, "create", begin)
    with transaction(connect(database_url, timeout=PATIENCE), write=True):
        changes = [
            asyncio.create_task(call("POST", "", {"name": "billing"})) for _ in range(threads)
        ]
        async with asyncio.timeout(PATIENCE):
            for _ in changes:
                await begun.acquire()
        assert await get_in(service, used, *unused) == [True] * 4
        assert await status_of(service, b"nobody's") == MISSING_KEY_STATUS
        assert not any(change.done() for change in changes)
    assert {answer.status_code for answer in await asyncio.gather(*changes)} == {201}


async def test_a_database_that_does_not_answer_is_a_503(
    call: Call, key_service: KeyService, database_url: sa.URL
) -> None:
    before = key_service.events()
    key_service.engine = connect(database_url, timeout=0.2)
    with transaction(connect(database_url, timeout=PATIENCE), write=True):
        answer = await call("POST", "", {"name": "billing"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json() == {"detail": "The keys are out of reach"}
    assert key_service.events() == before


# What is shown.


async def test_a_secret_is_shown_exactly_once(call: Call) -> None:
    created = await call("POST", json={"name": "billing"})
    id, first = created.json()["id"], created.json()["key"]
    rotated = await call("POST", f"/{id}/rotate")
    second = rotated.json()["key"]
    for answer, secret in ((created, first), (rotated, second)):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.text.count(secret) == 1
    assert first not in rotated.text

    others = [await call("GET", path) for path in ("", f"/{id}", f"/{id}/events")]
    others += [await call("POST", f"/{id}/rotate"), await call("POST", f"/{id}/revoke")]
    for answer in others:
        assert id in answer.text
        shown = f"{answer.text} {answer.headers}".lower()
        for secret in (first, second):
            assert secret not in shown
            assert secret.replace("-", "") not in shown


@pytest.fixture
def prefix(working_directory: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_PREFIX", "acme")


@pytest.mark.usefixtures("prefix")
async def test_with_a_prefix_new_keys_have_it_and_both_spellings_get_in(
    service: GuardedAPI, call: Call, secrets: list[str]
) -> None:
    caller = with_prefix(secrets[0], "acme")
    key = (await call("POST", "", {"name": "billing"}, by=caller)).json()["key"]
    assert re.fullmatch("acme_[0-9A-Za-z]{28}", key)
    assert await get_in(service, key, canonical(key.encode()).decode()) == [True, True]


async def test_a_prefix_of_any_length_gets_in(service: GuardedAPI, secrets: list[str]) -> None:
    # One of 7 characters makes a key of 36, which is as long as a UUID.
    spelled = [with_prefix(secrets[0], "acme56789abcdefg"[:length]) for length in range(1, 17)]
    assert {len(key) for key in spelled} == set(range(30, 46))
    assert await get_in(service, *spelled) == [True] * 16


# What is not accepted.

NAME = "A name has 1 to 100 characters, all of them visible or spaces"
SCOPE = "is not a scope; write one like reports:read or reports:*"
EXPIRY = "A key expires in the future, and within a hundred years"


async def test_what_is_no_key_is_explained_and_changes_nothing(
    call: Call, key_service: KeyService
) -> None:
    before = key_service.events()
    cases: list[tuple[dict[str, Any], str]] = [
        *(({"name": name}, NAME) for name in ("", " ", "\u3164", "x" * 101, "a\x00b", "a\u202eb")),
        *(({"scopes": [scope]}, f"{scope!r} {SCOPE}") for scope in ("", "Reports", "a b", "a\x00")),
        *(({"expires_at": at}, EXPIRY) for at in ("2001-01-01T00:00Z", "2999-01-01T00:00Z")),
        ({"expires_at": "9999-12-31T23:59:59-23:59"}, EXPIRY),
        ({"expires_at": "0001-01-01T00:00:00+23:59"}, EXPIRY),
    ]
    for body, detail in cases:
        answer = await call("POST", "", {"name": "billing", **body})
        assert (answer.status_code, answer.json()) == (400, {"detail": detail})
    for id in ("0123456789abcdef", "%00", "%ff", "%F0%9F%94%91", "x" * 5000, "'"):
        for method, path in (route for route in ROUTES if "{id}" in route[1]):
            nothing: Any = {} if method == "PATCH" else None
            answer = await call(method, path.format(id=id), nothing)
            assert answer.status_code == 404
            assert "`keys list` shows the ids" in answer.json()["detail"]
    assert key_service.events() == before


async def test_unknown_fields_and_values_are_refused_and_change_nothing(
    call: Call, key_service: KeyService
) -> None:
    id = make(key_service).id
    before = key_service.events()
    for path, body in (
        ("", {"name": "billing", "scope": "*"}),
        ("", {"scopes": []}),
        ("", {"name": "billing", "expires_at": "2040-01-01T00:00"}),  # where?
        (f"/{id}/rotate", {"dorp": "old"}),
        (f"/{id}/rotate", {"drop": "both"}),
        (f"/{id}/rotate", {"overlap": "-PT1S"}),
        (f"/{id}/rotate", {"overlap": "P36501D"}),
        (f"/{id}/rotate", {"overlap": "P9999999999999999999D"}),
        (f"/{id}/revoke", {"forced": True}),
        # Pydantic takes these for what they are not.
        ("", {"name": "billing", "expires_at": 4102444800}),
        (f"/{id}/rotate", {"overlap": 60}),
        (f"/{id}/rotate", {"issue": 1}),
        (f"/{id}/revoke", {"force": "on"}),
    ):
        assert (await call("POST", path, body)).status_code == 422, body
    for query in (
        *("?after=%00", "?after=%ff", "?after=%F0%9F%94%91", "?limit=0", "?limit=1001"),
        *("?search=%00", f"?search={'x' * 101}", "/usage?days=0", "/usage/daily"),
        *("/usage/daily?id=%00", "/usage/daily?id=a&days=32", "/usage/daily?id=a&days=0"),
    ):
        assert (await call("GET", query)).status_code == 422, query
    assert key_service.events() == before


async def test_no_body_makes_the_service_fail(
    call: Call, key_service: KeyService, secrets: list[str]
) -> None:
    id, manager = make(key_service).id, make(key_service, MANAGE).key
    before = key_service.events()
    failures = []
    for body, path, caller, headers in product(
        (
            *(b"null", b"\xff", b'{"name": NaN}', b'{"overlap": Infinity}'),
            *(rb'{"owner": "\ud800"}', rb'{"note": "\ud800"}'),
            *(rb'{"name": "\ud800"}', rb'{"drop": "\ud800"}', rb'{"\ud800": 1}'),
            rb'{"name": "billing", "scopes": ["\ud800"]}',
            b'{"name": "billing", "expires_at": 1e999}',
            b'{"name": "billing", "expires_at": ' + b"9" * 5000 + b"}",
            b'{"force": ' + b"[" * 100_000 + b"}",
        ),
        (
            *(("POST", path) for path in ("", f"/{id}/rotate", f"/{id}/pause", f"/{id}/revoke")),
            ("PATCH", f"/{id}"),
        ),
        (manager, secrets[0]),
        (JSON, {}),
    ):
        options: Any = {"content": body, "headers": headers}
        answer = await call(*path, by=caller, **options)
        if not 400 <= answer.status_code < 500:
            failures.append((*path, body[:50], headers))
    assert failures == []
    assert key_service.events() == before


async def test_the_longest_overlap_and_expiry_are_possible(call: Call) -> None:
    expires_at = (datetime.now(UTC) + timedelta(days=36_499)).isoformat()
    created = await call("POST", json={"name": "x" * 100, "expires_at": expires_at})
    assert created.status_code == 201
    rotated = await call("POST", f"/{created.json()['id']}/rotate", {"overlap": "P36500D"})
    assert rotated.json()["old_key_expires_at"] == created.json()["expires_at"]


class Order(BaseModel):
    pages: int


async def test_the_422_of_your_endpoints_stays_the_one_of_fastapi(
    service: GuardedAPI, secrets: list[str]
) -> None:
    async def order(order: Order) -> None: ...

    plain, router = FastAPI(), GuardedRouter()
    for each in (plain, router):
        each.add_api_route("/order-of-the-tests", order, methods=["POST"])
    service.include_router(router)
    answers = []
    for app in (plain, service):
        transport = httpx.ASGITransport(app=app)
        headers = {API_KEY_HEADER: secrets[0]}
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            request = client.post("/order-of-the-tests", json={"pages": "many"}, headers=headers)
            answers.append(await request)
    assert answers[0].status_code == answers[1].status_code == 422
    assert answers[0].json() == answers[1].json()
    assert answers[1].json()["detail"][0]["input"] == "many"


async def test_the_page_that_manages_keys_is_for_everybody_and_tells_none(
    client: httpx.AsyncClient, key_service: KeyService
) -> None:
    issued = make(key_service)
    answer = await client.get("/console")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert issued.id not in answer.text
