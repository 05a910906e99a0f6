"""What `keys doctor` finds, and what it says about it."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import APIRouter, Depends, FastAPI, Security
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from app.auth import GuardedAPI, GuardedRouter, get_caller, require
from app.auth.database.engine import transaction
from app.auth.database.models import ENV_ID, api_key_servers
from app.auth.key import Key
from app.auth.keys.change import MANAGE
from app.auth.keys.service import KeyService
from app.auth.keys.views import KeyView
from app.auth.usage.findings import (
    EXPIRING,
    ROTATION,
    UNUSED,
    examine,
    examine_file,
    scopes_asked_for,
)
from app.constants import API_KEY_HEADER
from tests.thorough.commands import keys, run

NOW = datetime(2030, 6, 15, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)


def a_key(**differences: Any) -> KeyView:
    """A healthy one: in use, as narrow as it can be, and not old."""
    unset = dict.fromkeys(KeyView.model_fields)
    what = {"id": "70f3a1b2c3d4e5f6", "name": "billing", "created_by": "cli:ada"}
    times = dict.fromkeys(("created_at", "issued_at", "last_used_at"), NOW)
    lists: dict[str, Any] = {"scopes": ["reports:read"], "restrictions": {}}
    what |= {"owner": "", "note": ""}
    healthy = {**lists, "status": "active", **times}
    return KeyView.model_validate({**unset, **what, **healthy, **differences})


def problems(key: KeyView) -> list[str]:
    found = examine([key], {"reports:read", MANAGE}, NOW, enforced=["tides"])
    return [finding.problem for finding in found]


HEALTHY: dict[str, dict[str, Any]] = {
    "in use": {},
    "without a scope": {"scopes": []},
    "just made and never used": {"created_at": NOW - UNUSED, "last_used_at": None},
    "old but used": {"created_at": NOW - 2 * ROTATION, "last_used_at": NOW - ROTATION},
    "expires later": {"expires_at": NOW + EXPIRING},
    "rotated in time": {"issued_at": NOW - ROTATION},
    "a wildcard above what is asked for": {"scopes": ["reports:*", "keys:*"]},
    "restricted by what is enforced": {"restrictions": {"tides": ["low"]}},
}

FINDINGS: dict[str, dict[str, Any]] = {
    "refused, for nothing here enforces its moon": {
        "restrictions": {"moon": ["full"], "tides": ["low"]}
    },
    "never used": {"created_at": NOW - UNUSED - MOMENT, "last_used_at": None},
    "expires on 2030-06-28": {"expires_at": NOW + EXPIRING - MOMENT},
    "not rotated since 2030-03-16": {"issued_at": NOW - ROTATION - MOMENT},
    "too many scopes: all there are": {"scopes": ["*", "invoices:read"]},
    "scopes that no endpoint asks for: invoices:* reports": {
        "scopes": ["invoices:*", "reports", "reports:read"]
    },
}


@pytest.mark.parametrize("what", HEALTHY)
def test_nothing_is_said_about_a_healthy_key(what: str) -> None:
    assert problems(a_key(**HEALTHY[what])) == []


@pytest.mark.parametrize("problem", FINDINGS)
def test_each_problem_is_found(problem: str) -> None:
    assert problems(a_key(**FINDINGS[problem])) == [problem]


def test_all_problems_of_a_key_are_found_each_with_an_advice() -> None:
    old = {"created_at": NOW - 2 * ROTATION, "issued_at": NOW - 2 * ROTATION, "last_used_at": None}
    key = a_key(**old, expires_at=NOW + MOMENT, scopes=["*"])
    healthy = a_key(id="70f3a1b200000000", scopes=["keys:*"])
    findings = examine([healthy, key], {"reports:read", MANAGE}, NOW)
    assert len({finding.advice for finding in findings}) == 4
    assert {(finding.id, finding.name) for finding in findings} == {(key.id, key.name)}


@pytest.mark.parametrize(
    "left_out",
    [
        {"status": "revoked", "revoked_at": NOW},
        {"status": "expired", "expires_at": NOW},
        {"status": "paused", "paused_at": NOW - ROTATION},
        {"id": f"{ENV_ID}0123456789ab"},
    ],
)
def test_keys_that_cannot_be_helped_are_left_out(left_out: dict[str, Any]) -> None:
    assert problems(a_key(scopes=["*"], last_used_at=None, **left_out)) == []


def asking(scope: str) -> Any:
    return Security(get_caller, scopes=[scope])


def test_scopes_are_found_wherever_they_are_asked_for(service: GuardedAPI) -> None:
    def inner(caller: Annotated[Key, asking("in a dependency")]) -> None: ...

    def outer(of_inner: Annotated[None, Depends(inner)]) -> None: ...

    def endpoint(of_outer: Annotated[None, Depends(outer)]) -> None: ...

    def websocket(caller: Annotated[Key, asking("of a websocket")]) -> None: ...

    router = GuardedRouter(dependencies=[asking("of a router")])
    router.add_api_route("/reports", endpoint, dependencies=[asking("of a route")])
    router.add_api_websocket_route("/ws", websocket)
    around = GuardedRouter()
    around.include_router(router, dependencies=[asking("where it is included")])
    before = scopes_asked_for(service.routes)

    service.include_router(around)

    found = {"in a dependency", "of a router", "of a route", "of a websocket"}
    assert scopes_asked_for(service.routes) - before == {*found, "where it is included"}
    assert MANAGE in before


def test_scopes_are_found_in_what_is_mounted_and_around_it() -> None:
    async def answer(_: Any) -> None: ...

    async def files(scope: Scope, receive: Receive, send: Send) -> None: ...

    def endpoint() -> None: ...

    inner = FastAPI(dependencies=[require("of a mounted application")])
    inner.add_api_route("/reports", endpoint, dependencies=[require("of a route in it")])
    mounted = GuardedRouter(dependencies=[require("of a mounted router")])
    mounted.mount("/files", files)
    plain = APIRouter()
    plain.add_api_route("/reports", endpoint, dependencies=[require("of a plain router's route")])
    around = GuardedRouter(dependencies=[require("around raw routes")])
    around.routes.extend([Route("/raw", answer), WebSocketRoute("/raw", answer)])
    around.mount("/inner", inner)
    around.mount("/mounted", mounted)
    around.include_router(plain)
    outer = GuardedRouter(prefix="/outer")
    outer.include_router(around, dependencies=[require("where it is included")])

    assert scopes_asked_for(outer.routes) == {
        *("of a mounted application", "of a route in it", "of a mounted router"),
        *("of a plain router's route", "around raw routes", "where it is included"),
    }


# The keys and the clocks as a whole.


def said_of_all(keys: Sequence[KeyView], ahead: str = "") -> list[tuple[str, str]]:
    found = examine(keys, {"reports:read", MANAGE}, NOW, ahead)
    return [(each.problem, each.advice) for each in found if not each.id]


def test_it_is_told_when_the_last_manager_is_about_to_expire() -> None:
    advice = "create a key that may manage keys and has no end"
    soon, sooner = NOW + EXPIRING - MOMENT, NOW + EXPIRING - 2 * MOMENT
    first, last = (a_key(scopes=[MANAGE], expires_at=at) for at in (sooner, soon))
    assert said_of_all([a_key(), first, last]) == [("no manager after 2030-06-28", advice)]
    assert said_of_all([a_key(), a_key(scopes=["keys:*"], expires_at=soon)])
    for other in (
        a_key(scopes=["keys:*"]),
        a_key(scopes=["*"], expires_at=NOW + EXPIRING),
        a_key(scopes=["*"], id=f"{ENV_ID}0123456789ab"),
    ):
        assert said_of_all([first, last, other]) == []
    gone = a_key(scopes=[MANAGE], status="revoked", revoked_at=NOW)
    assert said_of_all([first, gone])
    assert said_of_all([a_key(), gone]) == []  # nobody manages keys over HTTP, as it seems


def test_a_manager_that_has_left_api_keys_is_none(
    key_service: KeyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = datetime.now(UTC) + timedelta(days=1)
    key_service.create("manager", [MANAGE], expires_at=ends, actor="the tests")
    problem = f"no manager after {ends:%Y-%m-%d}"
    assert problem not in run("keys", "doctor").stdout
    monkeypatch.setenv("API_KEYS", "")
    assert problem in run("keys", "doctor").stdout


def test_a_clock_that_was_far_ahead_is_told(key_service: KeyService) -> None:
    wrong = datetime.now(UTC) + timedelta(days=2)
    server = {"id": "the tests", "max_staleness": 0.0, "seen_at": wrong}
    with transaction(key_service.engine, write=True) as connection:
        connection.execute(sa.insert(api_key_servers).values(**server))
    result = run("keys", "doctor")
    assert result.exit_code == 1
    assert f"a clock has said that it is {wrong:%Y-%m-%d %H:%MZ}  set the clocks" in result.stdout
    assert said_of_all([a_key()], "this") == [("a clock has said this", "set the clocks")]


# The command.


def test_the_command_fails_while_there_is_something_to_do(key_service: KeyService) -> None:
    result = run("keys", "doctor")
    assert (result.exit_code, result.stdout) == (0, "None.\n")
    assert keys("doctor") == []

    key = key_service.create("billing", ["*"], actor="the tests")

    problem, advice = "too many scopes: all there are", "leave it the ones that it needs"
    expected = {"id": key.id, "name": "billing", "problem": problem, "advice": advice}
    result = run("keys", "doctor", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (1, [expected])
    result = run("keys", "doctor")
    assert result.exit_code == 1
    assert all(text in result.stdout for text in expected.values())


async def test_it_is_told_over_http_what_the_command_says_of_the_keys(
    key_service: KeyService, client: httpx.AsyncClient, working_directory: Path
) -> None:
    (working_directory / ".env").touch(0o644)  # of which the command tells as well
    manager = key_service.create("manager", [MANAGE], actor="the tests")
    key_service.create("billing", ["*"], actor="the tests")
    key_service.create("shop", ["no-such:scope"], actor="the tests")
    answer = await client.get("/api-keys/findings", headers={API_KEY_HEADER: manager.key})
    said = answer.json()
    assert [each["name"] for each in said] == ["billing", "shop"]
    everything = json.loads(run("keys", "doctor", "--json").stdout)
    assert everything[0]["problem"] == "others may read .env"
    # Of a scope that only the tests ask for, the command knows nothing.
    assert [each for each in everything[1:] if each["name"] != "manager"] == said


@pytest.mark.skipif(os.name == "nt", reason="Windows has other modes")
def test_a_file_of_keys_is_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    assert not [*examine_file(file)]
    file.touch(mode=0o600)
    assert not [*examine_file(file)]
    file.chmod(0o640)
    [finding] = examine_file(file)
    assert (finding.problem, finding.advice) == ("others may read .env", f"chmod 600 {file}")


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
def test_a_file_of_keys_stays_out_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".env"
    file.touch(mode=0o600)
    for command in ("init", "add .env"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    [finding] = examine_file(file)
    assert finding.problem == "git knows .env"
    monkeypatch.setenv("PATH", f"{tmp_path}")
    assert not [*examine_file(file)]
