"""The `keys` and `db` commands: what they do, and to which database."""

import io
import json
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
import typer
from typer.testing import CliRunner

from app.auth.cli import changes
from app.auth.cli.context import Wiring, name_database
from app.auth.config.settings import AuthSettings
from app.auth.database import clock
from app.auth.database.engine import SCHEMA, SCHEMA_TABLE, connect, transaction
from app.auth.database.models import LEAST_STALENESS, api_key_servers
from app.auth.errors import SettingsError
from app.auth.key import is_canonical
from app.auth.keys.service import MANAGE
from app.auth.store.cache import DatabaseKeyStore
from app.cli import MIGRATIONS, main
from app.constants import COMMAND
from app.main import create_app
from app.policies import make_policies
from app.settings import load_settings
from tests.callers import status_of
from tests.thorough.commands import Project, complaint, keys, run
from tests.thorough.databases import PostgreSQLDatabases, SQLiteDatabases
from tests.thorough.services import make_service, patient_settings

on_both = pytest.mark.usefixtures("database_url")
not_on_windows = pytest.mark.skipif(os.name == "nt", reason="Windows has another shell and modes")


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how long commands would have waited."""
    waits: list[float] = []
    monkeypatch.setattr("app.auth.cli.context.sleep", waits.append)
    return waits


async def in_force(*secrets: str) -> list[bool]:
    """For a service that starts now."""
    service = make_service(patient_settings())
    assert isinstance(service.keys, DatabaseKeyStore)
    try:
        return [await status_of(service, secret.encode()) == 200 for secret in secrets]
    finally:
        service.keys.close()


# What the commands do.


@on_both
async def test_a_created_key_is_shown_this_once_and_works() -> None:
    result = run("keys", "create", "billing")
    assert result.stderr.endswith("Keep the key now: it is not shown again.\n")
    shown = result.stdout.partition("key:")[2].strip()
    created = keys("create", "Ren\u00e9", "--scope", "b:read", "--scope", "*")
    assert created.items() >= {"name": "Ren\u00e9", "scopes": ["*", "b:read"]}.items()
    secret = created.pop("key")
    assert is_canonical(secret)
    assert await in_force(shown, secret) == [True, True]
    assert keys("show", created["id"]) == created

    others = (["list"], ["show", created["id"]], ["audit"], ["doctor"], ["revoke", created["id"]])
    for command in others:
        for options in ([], ["--json"]):
            output = run("keys", *command, *options).output
            assert created["id"] in output
            assert shown not in output
            assert secret not in output


@on_both
async def test_without_options_of_a_part_a_key_is_created_all_the_same() -> None:
    core = typer.Typer()
    core.command()(changes.create)
    wiring = Wiring(load_settings, make_policies, list, MIGRATIONS)
    result = CliRunner().invoke(core, ["billing", "--json"], obj=wiring)
    made = json.loads(result.stdout)
    assert await in_force(made["key"]) == [True]
    core = typer.Typer()
    core.command()(changes.update)
    result = CliRunner().invoke(core, [made["id"], "--name", "b", "--json"], obj=wiring)
    assert json.loads(result.stdout)["name"] == "b"


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as moved:
        moved.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@not_on_windows
@pytest.mark.usefixtures("database_url", "in_tokyo")
def test_an_expiry_is_a_duration_or_a_time_in_utc_and_is_shown() -> None:
    for text, seconds in {"90s": 90, "3m": 180, "2h": 7200, "1d": 86400, "5w": 3024000}.items():
        created = keys("create", "billing", "--expires-in", text)
        ends, begins = (
            datetime.fromisoformat(created[f"{at}_at"]) for at in ("expires", "created")
        )
        assert timedelta() <= timedelta(seconds=seconds) - (ends - begins) < timedelta(seconds=30)
    year = datetime.now(UTC).year + 1
    for text, expected in {
        "12-31": "12-31T00:00:00Z",
        "12-31T23:59": "12-31T23:59:00Z",
        "12-31T23:59+02:00": "12-31T21:59:00Z",
    }.items():
        created = keys("create", "billing", "--expires-at", f"{year}-{text}")
        assert created["expires_at"] == f"{year}-{expected}"
    shown = run("keys", "create", "billing", "--expires-at", f"{year}-12-31").stdout
    assert re.search(rf"^expires_at: +{year}-12-31 00:00Z$", shown, re.MULTILINE)


@pytest.mark.parametrize("command", ["create", "revoke"])
def test_the_help_says_what_a_date_means(command: str) -> None:
    said = unframed(run("keys", command, "--help").stdout)
    assert "A date is its first moment; without a zone, times are in UTC." in said


@on_both
def test_people_get_tables(ids: list[str]) -> None:
    scopes = ("--scope", "a:read", "--scope", "b:read")
    first = keys("create", "billing", *scopes, "--expires-in", "1w")
    rotated = keys("rotate", keys("create", "reports")["id"])
    in_order = [*sorted(ids), first["id"], rotated["id"]]  # as they came
    assert [key["id"] for key in keys("list")] == in_order
    head, *rows = (re.split("  +", line) for line in run("keys", "list").stdout.splitlines())
    columns = "ID  NAME  SCOPES  OWNER  STATUS  CREATED AT  EXPIRES AT  LAST USED AT"
    assert head == columns.split("  ")
    assert [row[0] for row in rows] == in_order
    times = [
        f"{datetime.fromisoformat(first[at]):%F %H:%MZ}" for at in ("created_at", "expires_at")
    ]
    expected = [first["id"], "billing", "a:read b:read", "-", "active", *times, "-"]
    assert rows[in_order.index(first["id"])] == expected

    lines = run("keys", "show", rotated["id"]).stdout.splitlines()
    fields = {name: text.strip() for name, text in (line.split(":", 1) for line in lines)}
    assert fields.keys() == rotated.keys() - {"key"}
    ends = datetime.fromisoformat(rotated["old_key_expires_at"])
    assert fields["old_key_expires_at"] == f"{ends:%F %H:%MZ}"
    assert fields["scopes"] == fields["old_key_last_used_at"] == "-"


@on_both
def test_nothing_is_shown_as_none() -> None:
    for command in ("list", "audit"):
        assert run("keys", command).stdout == "None.\n"
        assert keys(command) == []


@on_both
async def test_a_rotation_leaves_the_old_secret_for_the_overlap() -> None:
    first = keys("create", "billing")
    issued = [first, keys("rotate", first["id"])]
    ends, begins = (issued[1][name] for name in ("old_key_expires_at", "issued_at"))
    assert datetime.fromisoformat(ends) - datetime.fromisoformat(begins) == timedelta(days=1)
    assert "drop the old one if nobody needs it" in complaint("keys", "rotate", first["id"])
    for options, still in (
        (["--drop", "old"], [False, True, True]),
        (["--drop", "new"], [False, True, False, True]),
        (["--drop", "old", "--overlap", "0s"], [False] * 4 + [True]),
        (["--overlap", "2h"], [False] * 4 + [True] * 2),
    ):
        issued.append(keys("rotate", first["id"], *options))
        assert await in_force(*(key["key"] for key in issued)) == still


@on_both
async def test_one_of_two_secrets_is_dropped_without_a_third() -> None:
    for dropped, still in (("old", [False, True]), ("new", [True, False])):
        first = keys("create", "billing")
        second = keys("rotate", first["id"])
        left = keys("rotate", first["id"], "--drop", dropped, "--no-new")
        assert (left["id"], left["status"]) == (first["id"], "active")
        assert "key" not in left
        assert await in_force(first["key"], second["key"]) == still
        told = [event["action"] for event in keys("audit", first["id"])]
        assert told == ["created", "rotated", f"dropped {dropped}"]
        refusal = f"{first['id']} has no two secrets in force; to end the key, revoke it"
        again = ("keys", "rotate", first["id"], "--drop", dropped, "--no-new")
        assert complaint(*again) == refusal


@on_both
async def test_an_update_changes_what_it_names_and_the_audit_tells_from_what_to_what() -> None:
    bounds = ("--limit", "9/minute", "--quota", "99/month", "--from", "127.0.0.1")
    made = keys("create", "billing", "--scope", "a", "--scope", "b", "--expires-in", "1d", *bounds)
    secret = made.pop("key")

    def updated(*options: str) -> dict[str, Any]:
        """What it has made of the fields that it changed."""
        nonlocal made
        before, made = made, keys("update", made["id"], *options)
        return {name: value for name, value in made.items() if value != before[name]}

    assert updated() == {}
    texts = ("--name", "accounts", "--owner", "acme", "--note", "asked by Ann")
    assert updated(*texts) == {"name": "accounts", "owner": "acme", "note": "asked by Ann"}
    assert updated(*texts) == {}
    assert updated("--owner", "", "--note", "") == {"owner": "", "note": ""}
    more = ("--add-scope", "c", "--add-scope", "a", "--remove-scope", "b")
    assert updated(*more) == {"scopes": ["a", "c"]}
    assert updated("--remove-scope", "a", "--remove-scope", "c") == {"scopes": []}
    refusal = f"{made['id']} has no scope a; it has none"
    assert complaint("keys", "update", made["id"], "--remove-scope", "a") == refusal
    assert updated("--limit", "5/second", "--limit", "6/hour") == {
        "limits": ["5/second", "6/hour", "99/month"]
    }
    assert updated("--quota", "9/day") == {"limits": ["5/second", "6/hour", "9/day"]}
    assert updated("--limit", "") == {"limits": ["9/day"]}
    assert updated("--quota", "") == {"limits": []}
    assert updated("--from", "10.0.0.0/8", "--from", "192.0.2.1") == {
        "networks": ["10.0.0.0/8", "192.0.2.1/32"]
    }
    assert await in_force(secret) == [False]
    assert updated("--from", "") == {"networks": []}
    assert await in_force(secret) == [True]
    assert updated("--expires-at", "2099-12-31") == {"expires_at": "2099-12-31T00:00:00Z"}
    assert updated("--no-expiry") == {"expires_at": None}
    assert [*updated("--expires-in", "2d")] == ["expires_at"]
    assert await in_force(secret) == [True]

    told = [event["changes"] for event in keys("audit", made["id"])]
    assert told[:4] == [
        None,
        {
            "name": ["billing", "accounts"],
            "note": ["", "asked by Ann"],
            "owner": ["", "acme"],
        },
        {"note": ["asked by Ann", ""], "owner": ["acme", ""]},
        {"scopes": [["a", "b"], ["a", "c"]]},
    ]
    assert told[6:8] == [
        {"limits": [["5/second", "6/hour", "99/month"], ["5/second", "6/hour", "9/day"]]},
        {"limits": [["5/second", "6/hour", "9/day"], ["9/day"]]},
    ]
    assert len(told) == 14
    table = run("keys", "audit", made["id"]).stdout
    for said in (
        "scopes: a b to a c\n",
        "scopes: a c to -\n",
        "note: asked by Ann to -, owner: acme to -\n",
        "limits: 9/day to -\n",
        "networks: 10.0.0.0/8 192.0.2.1/32 to -\n",
        "expires_at: - to 20",
    ):
        assert said in table


@on_both
def test_keys_and_their_usage_are_told_by_owner() -> None:
    key, *others = (keys("create", "billing", "--owner", each) for each in ("acme", "Acme", ""))
    keys("pause", key["id"])
    assert [each["id"] for each in keys("list", "--owner", "acme")] == [key["id"]]
    assert [each["id"] for each in keys("usage", "--owner", "acme")["keys"]] == []
    for nobody in ("", "nobody", "acm_", "%"):
        assert keys("list", "--owner", nobody) == keys("usage", "--owner", nobody)["keys"] == []
    assert len(keys("list")) == 2 + 1 + len(others)  # with those of API_KEYS


@on_both
async def test_a_paused_key_is_refused_until_it_is_resumed() -> None:
    first = keys("create", "billing")
    second = keys("rotate", first["id"])
    both, id = (first["key"], second["key"]), first["id"]
    for _ in range(2):  # twice is once
        paused = keys("pause", id)
        assert (paused["status"], bool(paused["paused_at"])) == ("paused", True)
        assert await in_force(*both) == [False, False]
    for command in (["rotate", id], ["rotate", id, "--drop", "old", "--no-new"]):
        assert complaint("keys", *command) == f"{id} is paused; resume it first"
    assert keys("update", id, "--name", "accounts")["status"] == "paused"
    for _ in range(2):
        resumed = keys("resume", id)
        assert (resumed["status"], resumed["paused_at"]) == ("active", None)
        assert await in_force(*both) == [True, True]
    actions = [event["action"] for event in keys("audit", id)]
    assert actions == ["created", "rotated", "paused", "updated", "resumed"]
    keys("pause", id)
    assert keys("revoke", id)["status"] == "revoked"
    assert complaint("keys", "resume", id) == f"{id} is revoked; create another key"
    assert await in_force(*both) == [False, False]


@on_both
async def test_a_revoked_key_ends_and_the_audit_tells() -> None:
    key = keys("create", "billing")
    assert await in_force(key["key"]) == [True]
    revoked = keys("revoke", key["id"])
    assert (revoked["id"], revoked["status"]) == (key["id"], "revoked")
    assert await in_force(key["key"]) == [False]
    assert keys("revoke", key["id"]) == revoked
    assert complaint("keys", "rotate", key["id"]) == f"{key['id']} is revoked; create another key"

    me = key["created_by"]
    done = [["created", me, key["id"]], ["revoked", me, key["id"]]]
    told = [list(event.values())[1:] for event in keys("audit", key["id"])]
    assert told == [[*each, None] for each in done]
    table = run("keys", "audit", key["id"]).stdout.splitlines()
    assert [line.split()[2:] for line in table[1:]] == [[*each, "-"] for each in done]
    assert [event["action"] for event in keys("audit")] == ["created"] * 3 + ["revoked"]


@on_both
async def test_all_secrets_from_before_a_moment_end_and_no_others(
    secrets: list[str], ids: list[str]
) -> None:
    rotated, kept, gone = (keys("create", name) for name in ("rotated", "kept", "gone"))
    keys("rotate", gone["id"])
    gone = keys("revoke", gone["id"])
    moment = datetime.now(UTC).isoformat()
    renewed = keys("rotate", rotated["id"])
    before = keys("list"), keys("audit")
    complaint("keys", "revoke", "--issued-before", moment, "--dry-run")  # the last managers
    would_end = keys("revoke", "--issued-before", moment, "--dry-run", "--force")
    assert (keys("list"), keys("audit")) == before
    manager = keys("create", "manager", "--scope", MANAGE)

    revoked = keys("revoke", "--issued-before", moment)

    assert {key["id"]: key["status"] for key in revoked} == {
        rotated["id"]: "active",  # it has lost its old secret
        **dict.fromkeys([kept["id"], *ids], "revoked"),
    }
    ends = [key["id"] for key in revoked]
    assert [key["id"] for key in would_end] == ends
    ended = [rotated["key"], kept["key"], *secrets]
    assert await in_force(*ended, renewed["key"], manager["key"]) == [False] * 4 + [True] * 2
    assert keys("show", gone["id"]) == gone
    assert [event["action"] for event in keys("audit", gone["id"])][-1] == "revoked"
    done = [event["action"] for event in keys("audit", rotated["id"])]
    assert done == ["created", "rotated", "dropped old"]
    assert keys("revoke", "--issued-before", moment) == []


@on_both
async def test_the_last_manager_without_an_end_is_revoked_by_force_alone(
    secrets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = keys("create", "manager", "--scope", MANAGE)
    keys("create", "manager for a day", "--scope", MANAGE, "--expires-in", "1d")
    refusal = f"No key with {MANAGE} and without an end would be left; force it if that is meant"
    future = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert complaint("keys", "revoke", "--issued-before", future) == refusal
    # Keys that have left API_KEYS manage nothing any more.
    monkeypatch.setenv("API_KEYS", "")
    for narrower in (
        ["revoke", manager["id"]],
        ["pause", manager["id"]],
        ["update", manager["id"], "--remove-scope", MANAGE],
        ["update", manager["id"], "--expires-in", "1d"],
    ):
        assert complaint("keys", *narrower) == refusal
    assert await in_force(manager["key"], secrets[0]) == [True, False]
    # What leaves a manager without an end is nobody's loss.
    assert keys("update", manager["id"], "--owner", "acme", "--add-scope", "a")["owner"] == "acme"
    for narrower in (
        ["pause", manager["id"]],
        ["update", manager["id"], "--expires-in", "1d"],
        ["update", manager["id"], "--remove-scope", MANAGE],
    ):
        assert keys(*narrower, "--force")["id"] == manager["id"]
        keys("resume", manager["id"])
        keys("update", manager["id"], "--no-expiry", "--add-scope", MANAGE)

    assert keys("revoke", manager["id"], "--force")["status"] == "revoked"
    assert await in_force(manager["key"]) == [False]


@on_both
async def test_keys_of_api_keys_are_listed_and_stay_revoked(
    secrets: list[str], ids: list[str]
) -> None:
    assert await in_force(*secrets) == [True, True]  # which a service had to start for
    listed = {key["id"]: key for key in keys("list")}
    assert listed.keys() == set(ids)
    known = {"name": "API_KEYS", "created_by": "API_KEYS", "scopes": ["*"], "status": "active"}
    assert listed[ids[0]].items() >= known.items()
    advice = f"{ids[0]} lives in API_KEYS; create another key, then revoke this one"
    assert complaint("keys", "rotate", ids[0]) == advice

    keys("revoke", ids[0])

    assert [keys("show", id)["status"] for id in ids] == ["revoked", "active"]
    assert await in_force(*secrets) == [False, True]
    assert [event["action"] for event in keys("audit", ids[0])] == ["created", "revoked"]


# Whose name the audit has.


@on_both
@pytest.mark.parametrize(
    ("user", "actor"),
    [
        ("ada", "cli:ada"),
        ("Ren\u00e9", "cli:Ren\u00e9"),
        ("x" * 200, "cli:" + "x" * 90),
        ("a\udcff", "cli"),
    ],
)
@not_on_windows
def test_the_actor_is_the_user_of_the_process(
    monkeypatch: pytest.MonkeyPatch, user: str, actor: str
) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(variable, "boss")
    monkeypatch.setattr("pwd.getpwuid", lambda _: SimpleNamespace(pw_name=user))
    id = keys("create", "billing")["id"]
    keys("revoke", id)
    assert {event["actor"] for event in keys("audit", id)} == {actor}


@on_both
@not_on_windows
def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 4_242_424)  # as in a container
    assert keys("create", "billing")["created_by"] == "cli:4242424"


@on_both
def test_on_windows_the_actor_is_the_user_who_has_logged_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pwd", None)
    monkeypatch.setattr("os.getlogin", lambda: "ada")
    assert keys("create", "billing")["created_by"] == "cli:ada"


# How long they wait.


def servers(database: sa.URL, **bounds: float) -> None:
    """Let the database know of servers, by their KEY_MAX_STALENESS."""
    rows = [{"id": id, "max_staleness": bound} for id, bound in bounds.items()]
    engine = connect(database)
    with transaction(engine, write=True) as connection:
        connection.execute(sa.insert(api_key_servers).values(seen_at=clock.now(connection)), rows)


def test_what_takes_access_away_waits_for_the_slowest_server(
    database_url: sa.URL, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    servers(database_url, slow=7.5, quick=0.2, stopped=0.0)
    monkeypatch.setenv("KEY_MAX_STALENESS", "60")  # of the command, which follows nothing
    rotated = keys("rotate", keys("create", "billing")["id"])["id"]
    assert waits == []
    for command in (
        f"update {rotated} --add-scope a",
        f"update {rotated} --remove-scope a",
        f"update {rotated} --expires-in 1d",
        f"update {rotated} --no-expiry",
        f"update {rotated} --limit 5/minute",
        f"update {rotated} --from 10.0.0.0/8",
        f"update {rotated} --owner acme",
        f"pause {rotated}",
        f"resume {rotated}",
        f"rotate {rotated} --drop old",
        f"rotate {rotated} --drop new --no-new",
        f"rotate {rotated} --overlap 0s",
        f"revoke {rotated}",
        "revoke --issued-before 2001-01-01",
    ):
        result = run("keys", *command.split())
        assert result.exit_code == 0, result.stderr
        assert "Waiting 7.5 s: then every server follows.\n" in result.stderr
        assert waits.pop() == 7.5
    assert waits == []


def test_while_no_server_runs_there_is_hardly_a_wait(
    database_url: sa.URL, waits: list[float]
) -> None:
    servers(database_url, stopped=0.0)
    keys("revoke", keys("create", "billing")["id"])
    assert waits == [LEAST_STALENESS]


def test_the_wait_is_over_before_the_revocation_returns(
    database_url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.auth.cli.context.sleep", time.sleep)
    servers(database_url, slow=0.4)
    id = keys("create", "billing")["id"]
    began_at = time.monotonic()
    keys("revoke", id)
    assert time.monotonic() - began_at >= 0.4


# What they do not do.

DURATION = "write a number and s, m, h, d or w"
TIME = "write it like 2030-12-31"


def unframed(text: str) -> str:
    """Without colours, frames and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]", "", text).split())


@pytest.mark.parametrize(
    ("command", "fix"),
    [
        ("create x --expires-in 90", DURATION),
        ("create x --expires-in -1d", DURATION),
        ("create x --expires-in 1.5d", DURATION),
        ("rotate x --overlap 1y", DURATION),
        ("rotate x --drop both", "'old', 'new'"),
        ("rotate x --no-new", "--no-new goes with --drop alone"),
        ("rotate x --no-new --drop old --overlap 1h", "--no-new goes with --drop alone"),
        ("create x --expires-at tomorrow", TIME),
        ("create x --expires-at 0001-01-01T00:00+23:59", TIME),
        ("revoke --issued-before 31.12.2030", TIME),
        ("create x --expires-at 2100-01-01 --expires-in 1d", "--expires-in or"),
        ("create x --expires-at 2100-01-01 --expires-in 0s", "--expires-in or"),
        ("update x --expires-at 2100-01-01 --expires-in 1d", "--expires-in or"),
        ("update x --expires-at 2100-01-01 --no-expiry", "--no-expiry"),
        ("update x --expires-in 0s --no-expiry", "--no-expiry"),
        ("update x --limit 5/month", "5/month is of the calendar: give it as --quota"),
        ("update x --quota 5/minute", "5/minute slides: give it as --limit"),
        ("update", "Missing argument"),
        ("pause", "Missing argument"),
        ("resume", "Missing argument"),
        ("revoke x --dry-run", "give a key's id, or"),
        ("create", "Missing argument"),
        ("revoke", "give a key's id, or"),
        ("revoke x --issued-before 2030-12-31", "give a key's id, or"),
    ],
)
def test_what_is_misspelled_is_explained(command: str, fix: str) -> None:
    result = run("keys", *command.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert fix in unframed(result.stderr)


@on_both
def test_what_cannot_be_done_is_explained_in_one_line_and_changes_nothing() -> None:
    id, other = (keys("create", "billing", "--scope", "a")["id"] for _ in range(2))
    secret = keys("create", "theirs")["key"]
    keys("revoke", other)
    before = keys("audit")
    ended = f"{other} is revoked; create another key"
    shows = "holds a secret of key"
    for arguments, fix in (
        (["create", "a\udcffb"], "A name has 1 to 100 characters, all of them visible"),
        (["create", "x", "--scope", "a b"], "'a b' is not a scope; write one like reports:read"),
        (["create", "x", "--expires-in", "0s"], "A key expires in the future"),
        (["create", "x", "--expires-in", "99999w"], "within a hundred years"),
        (["rotate", "x", "--overlap", "99999w"], "between nothing and a hundred years"),
        *(([each, "x"], "No key has the id 'x'") for each in ("show", "rotate", "revoke", "audit")),
        *(([each, "x"], "No key has the id 'x'") for each in ("update", "pause", "resume")),
        *(([each, other], ended) for each in ("update", "pause", "resume", "rotate")),
        (["update", other, "--no-expiry"], ended),
        (["update", id, "--remove-scope", "b"], f"{id} has no scope b; it has a"),
        (["update", id, "--add-scope", "a b"], "'a b' is not a scope; write one like reports:read"),
        (["update", id, "--name", ""], "A name has 1 to 100 characters, all of them visible"),
        (["update", id, "--owner", "x" * 101], "An owner has 1 to 100 characters"),
        (["update", id, "--note", " "], "A note has 1 to 1000 characters"),
        (["update", id, "--expires-at", "2001-01-01"], "A key expires in the future"),
        (["update", id, "--add-scope", "keys:own"], "A key with keys:own needs an owner"),
        (["update", id, "--from", "here"], "'here' is no address; write one like"),
        (["update", id, "--limit", "5/minute", "--limit", "6/minute"], "second limit per minute"),
        (["create", secret], f"The name {shows}"),
        (["create", "x", "--owner", secret], f"The owner {shows}"),
        (["create", "x", "--scope", secret], f"The scopes {shows}"),
        (["update", id, "--note", f"it is {secret.upper()}"], f"The note {shows}"),
        (["show", "\udcff"], r"No key has the id '\udcff'; `keys list` shows the ids"),
    ):
        assert fix in complaint("keys", *arguments)
    assert keys("audit") == before


# Which database it is.

READING = ("keys list", "keys show x", "keys audit", "keys doctor")
CHANGING = (
    *("keys create billing", "keys rotate x", "keys revoke x", "keys update x --name y"),
    *("keys pause x", "keys resume x"),
)
MAKE_IT = f"uv run {COMMAND} db upgrade"


@pytest.mark.parametrize("command", [*READING, *CHANGING])
def test_no_command_makes_a_database_by_looking_for_one(command: str) -> None:
    path = Path("keys.db").resolve()
    missing = f"DATABASE_URL: there is no {path}; start the service, or make it with: {MAKE_IT}"
    assert complaint(*command.split()) == missing
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("command", [*READING, *CHANGING])
@pytest.mark.parametrize("of_another", [False, True])
def test_no_command_turns_another_file_into_a_database_of_keys(
    command: str, of_another: bool
) -> None:
    file = Path("keys.db")
    file.touch()
    if of_another:
        engine = sa.create_engine("sqlite:///keys.db")
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE notes (id)")
        engine.dispose()
    before = file.read_bytes()
    advice = f"DATABASE_URL: no keys were ever kept there; begin with: {MAKE_IT}"
    assert complaint(*command.split()) == advice
    assert [each.name for each in Path().iterdir()] == ["keys.db"]
    assert file.read_bytes() == before


@pytest.mark.parametrize("command", [*READING, *CHANGING])
def test_no_command_migrates(database_url: sa.URL, command: str) -> None:
    set_schema(database_url, "0001")
    hint = (
        "DATABASE_URL: a version that was never released made its tables;"
        f" name a new database, and begin with: {MAKE_IT}"
    )
    assert complaint(*command.split()) == hint
    assert schema(database_url) == "0001"


def test_a_schema_of_a_newer_service_is_refused(database_url: sa.URL) -> None:
    set_schema(database_url, "zzzz")
    hint = "DATABASE_URL: its schema is newer than the service; install the newer service"
    for command in (*READING, *CHANGING, "db upgrade"):
        assert complaint(*command.split()) == hint
    with pytest.raises(SettingsError, match=hint):
        create_app(load_settings())


SCHEMAS = sa.table(SCHEMA_TABLE, sa.column("version_num", sa.String))


def schema(database: sa.URL) -> str | None:
    with connect(database).begin() as connection:
        return connection.scalar(sa.select(SCHEMAS.c.version_num))


def set_schema(database: sa.URL, version: str) -> None:
    with connect(database).begin() as connection:
        connection.execute(sa.update(SCHEMAS).values(version_num=version))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:////nonexistent/keys.db", "No such file"),
        ("sqlite:///{folder}", "unable to open database file"),
        ("sqlite:///{folder}/notes.txt", "file is not a database"),
        ("sqlite:///{folder}/" + "x" * 300, "File name too long"),
        ("postgresql://nobody:swordfish@127.0.0.1:1/none", "connection failed"),  # not-a-key
        ("postgresql://127.0.0.1:1/none?colour=swordfish", 'invalid connection option "colour"'),
    ],
)
@pytest.mark.parametrize("command", ["keys list", "keys create billing", "db upgrade"])
def test_a_database_that_cannot_be_used_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, said: str, command: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", url.format(folder=tmp_path))
    notes = Path("notes.txt")
    notes.write_text("Remember the milk. " * 100)
    told = complaint(*command.split())
    there_is_none = "DATABASE_URL: there is no /"  # so that nothing else need be asked
    assert told.startswith(("DATABASE_URL: out of reach: ", there_is_none))
    assert said in told or (told.startswith(there_is_none) and command != "db upgrade")
    assert "swordfish" not in told
    assert notes.read_text() == "Remember the milk. " * 100
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_what_is_changed_elsewhere_than_usual_names_the_place_without_a_password(
    database_url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = database_url
    if url.get_backend_name() == "postgresql":  # which asks for no password here
        url = url.set(password="swordfish")  # noqa: S106
        monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
    named = f"In {url.set(query={}).render_as_string()}:\n"
    assert "swordfish" not in named
    for command in ("keys create billing", "db upgrade"):
        assert run(*command.split()).stderr.startswith(named)
    assert run("keys", "list").stderr == ""


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@not_on_windows
@pytest.mark.usefixtures("open_umask")
def test_a_database_file_is_for_its_owner_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{Path.cwd()}/new.db")
    assert run("db", "upgrade").stdout == "The schema is up to date now.\n"
    with transaction(connect(load_settings().database_url), write=True) as connection:
        connection.exec_driver_sql("DELETE FROM api_key_servers")
        files = [*Path().glob("new.db*")]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        assert len(files) == 4  # with the write-ahead log, its index, and the file it belongs to


def test_an_empty_postgresql_gets_its_schema_from_db_upgrade(
    postgresql_databases: PostgreSQLDatabases,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with postgresql_databases.empty(tmp_path) as url:
        monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
        hint = f"DATABASE_URL: no keys were ever kept there; begin with: {MAKE_IT}"
        assert complaint("keys", "list") == hint
        with pytest.raises(SettingsError, match=hint):
            create_app(load_settings())
        for done in (" now", ": nothing to do"):
            assert run("db", "upgrade").stdout == f"The schema is up to date{done}.\n"
        assert keys("list") == []
        assert schema(url) == SCHEMA


@not_on_windows
async def test_a_database_behind_a_symbolic_link_works_for_service_and_commands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "volume").mkdir()
    link = tmp_path / "keys.db"
    link.symlink_to(tmp_path / "volume" / "real.db")
    assert run("db", "upgrade").exit_code == 0  # the link leads nowhere yet
    key = keys("create", "billing")
    assert await in_force(key["key"]) == [True]
    keys("revoke", key["id"])
    assert await in_force(key["key"]) == [False]
    assert link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"volume", "keys.db"}


def test_a_removed_file_is_missed_and_not_made_again() -> None:
    run("db", "upgrade")
    keys("create", "billing")
    for file in Path().glob("keys.db*"):
        file.unlink()
    for command in ("keys list", "keys create billing"):
        assert "there is no" in complaint(*command.split())
    assert list(Path().iterdir()) == []


# As processes of their own.


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder = tmp_path / "a%2Fb"
    folder.mkdir()
    return Project(folder)


@pytest.fixture
def filled(
    project: Project, sqlite_databases: SQLiteDatabases, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Project]:
    """With a database in the usual place, which the commands of this process use as well."""
    with sqlite_databases.fresh(project.folder) as url:
        monkeypatch.setenv("DATABASE_URL", url.render_as_string())
        monkeypatch.setenv("API_KEYS", "")
        yield project


ELSEWHERE = """
import sys
from pathlib import Path
from app.cli import main

def run(*command: str) -> None:
    sys.stdout.write(f"{main(command, standalone_mode=False)}\\n")

run("keys", "doctor")
run("db", "upgrade")
Path(sys.argv[1]).write_text("DATABASE_URL=sqlite:///other.db\\n")
run("db", "upgrade")
run("keys", "list")
"""


def test_the_usual_database_lies_in_the_folder_of_the_project(
    project: Project, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    rc, output, said = project.run("-c", ELSEWHERE, f"{project.env_file}", cwd=elsewhere)
    assert rc == 0, said
    made = "The schema is up to date now."
    assert output.splitlines() == ["1", made, "None", made, "None", "None.", "None"]
    missing, where = said.splitlines()
    assert f"there is no {project.database};" in missing  # not even doctor makes one
    assert where == f"In {sa.URL.create('sqlite', database=str(project.folder / 'other.db'))}:"
    assert {path.name for path in project.folder.glob("*.db")} == {"keys.db", "other.db"}
    assert list(elsewhere.iterdir()) == []


def test_another_database_than_the_usual_one_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    name_database(AuthSettings.model_construct())
    assert capsys.readouterr().err == ""
    name_database(AuthSettings.model_construct(database_url=sa.make_url("sqlite:///other.db")))
    assert capsys.readouterr().err == "In sqlite:///other.db:\n"


NOT_SHOWN = "Standard output: {}. A secret that cannot be shown is not issued.\n"
FULL = "No space left on device"


class FullDisk(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(28, FULL)


@pytest.fixture
def gone() -> Iterator[int]:
    """A pipe whose reader has gone."""
    reader, gone = os.pipe()
    os.close(reader)
    yield gone
    os.close(gone)


@pytest.fixture
def broken_pipe(gone: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Standard output goes there."""
    output = open(gone, "w", closefd=False)  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", output)
    yield
    with suppress(OSError):
        output.close()


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", FullDisk())


@on_both
@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("closed", "it is closed"),
        ("full", FULL),
        pytest.param("broken_pipe", "Broken pipe", marks=not_on_windows),
    ],
)
@pytest.mark.parametrize(
    "command", ["create x", "create x --json", "rotate ID", "rotate ID --json"]
)
def test_without_an_output_nothing_is_changed(
    command: str,
    output: str,
    reason: str,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    id = keys("create", "billing")["id"]
    before = keys("audit")
    request.getfixturevalue(output)
    arguments = ["keys", *command.replace("ID", id).split()]
    assert main(arguments, standalone_mode=False) == 1
    assert sys.stdout is None  # Python has nothing to write at its end
    assert capsys.readouterr().err.endswith(NOT_SHOWN.format(reason))
    assert keys("audit") == before


@not_on_windows
def test_a_process_that_cannot_show_a_secret_ends_in_one_line(filled: Project, gone: int) -> None:
    before = keys("audit")
    done = filled.run("-m", "app", "keys", "create", "x", "--json", stdout=gone)
    assert done == (1, "", NOT_SHOWN.format("Broken pipe"))
    assert keys("audit") == before


@not_on_windows
@pytest.mark.usefixtures("database_url")
def test_what_only_reads_and_cannot_be_shown_speaks_of_no_secret(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    keys("list")
    request.getfixturevalue("broken_pipe")
    assert main(["keys", "list"], standalone_mode=False) == 1
    assert capsys.readouterr().err == "Standard output: Broken pipe.\n"


@not_on_windows
def test_a_revocation_that_cannot_be_shown_is_done_and_said(
    database_url: sa.URL, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    id = keys("create", "billing")["id"]
    request.getfixturevalue("broken_pipe")
    assert main(["keys", "revoke", id], standalone_mode=False) == 1
    waited = f"Waiting {LEAST_STALENESS} s: then every server follows.\n"
    assert capsys.readouterr().err.endswith(waited + NOT_SHOWN.format("Broken pipe"))
    assert keys("show", id)["status"] == "revoked"


@pytest.mark.parametrize("errors", [None, FullDisk()], ids=["closed", "full"])
def test_what_cannot_be_said_on_standard_error_stops_nothing(
    errors: FullDisk | None,
    database_url: sa.URL,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    id = keys("create", "billing")["id"]
    monkeypatch.setattr(sys, "stderr", errors)
    main(["keys", "revoke", id], standalone_mode=False)
    assert sys.stderr is None
    assert "revoked" in capsys.readouterr().out
    assert keys("show", id)["status"] == "revoked"


@not_on_windows
def test_neither_does_it_make_a_process_fail(filled: Project) -> None:
    id = keys("create", "billing")["id"]
    rc, output, _ = filled.run("-m", "app", "keys", "revoke", id, redirected="2>/dev/full")
    assert (rc, "revoked" in output) == (0, True)


@on_both
async def test_a_name_that_the_terminal_has_no_letters_for_hides_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["create", "\U0001f389 party"]
    shown = []
    for encoding, name in (("cp1252", "\\U0001f389 party"), ("ascii", "\U0001f389 party")):
        output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", output)
            main(["keys", *command], standalone_mode=False)
        output.flush()
        lines = output.buffer.getvalue().decode().splitlines()
        fields = dict(re.split(": +", line) for line in lines)
        assert fields["name"] == name
        assert capsys.readouterr().err.endswith("Keep the key now: it is not shown again.\n")
        shown.append(fields["key"])
        command = ["rotate", fields["id"]]
    assert await in_force(*shown) == [True, True]


LOADS = """
import sys
from app.cli import main
main(["keys", "create", "billing"], standalone_mode=False)
main(["keys", "list"], standalone_mode=False)
sys.stderr.write(f"{' '.join(sys.modules)}\\n")
import app.main
sys.stderr.write(f"{' '.join(sys.modules)}\\n")
"""


def test_commands_load_no_web_framework_and_nothing_loads_migrations_in_vain(
    filled: Project,
) -> None:
    rc, _, said = filled.run("-c", LOADS)
    assert rc == 0, said
    *_, of_commands, of_service = ({*line.split()} for line in said.splitlines())
    slow = {"fastapi", "starlette", "uvicorn", "psycopg", "sqlalchemy.dialects.postgresql"}
    assert of_commands.isdisjoint(slow)
    assert of_commands >= {"typer", "sqlalchemy"}
    assert of_service >= {"fastapi", "app.auth.store.cache"}
    assert "alembic" not in of_service


def test_a_database_without_an_encoding_keeps_keys_as_any_other(
    monkeypatch: pytest.MonkeyPatch, postgresql_databases: PostgreSQLDatabases
) -> None:
    with postgresql_databases.without_encoding() as url:
        monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
        assert run("db", "upgrade").exit_code == 0
        made = keys("create", "Zoë")
        assert keys("show", made["id"])["name"] == "Zoë"
