"""The commands: what they change and say, and that a command that fails, or whose settings are bad,
changes nothing."""

import io
import os
import re
import runpy
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from app.auth.database.engine import SCHEMA_TABLE, connect
from app.auth.database.models import api_key_servers
from app.auth.key import is_canonical
from app.cli import main
from app.constants import COMMAND
from tests.callers import keys, run
from tests.conftest import Server

MAIN = Path(__file__).parents[2] / "app" / "main.py"
MAKE_IT = f"uv run {COMMAND} db upgrade"
COMMANDS = ("list", "show x", "audit", "usage", "doctor", "create x", "update x", "revoke x")
on_posix = pytest.mark.skipif(os.name == "nt", reason="Windows has other users and modes")


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how long commands would have waited."""
    waits: list[float] = []
    monkeypatch.setattr("app.auth.cli.context.sleep", waits.append)
    return waits


def complaint(*arguments: str) -> str:
    """The line of a command that fails; which database that was may precede it."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    *where, said = result.stderr.splitlines()
    assert all(line.startswith("In ") for line in where)
    return said


async def test_a_created_key_is_shown_this_once_and_works(server: Server) -> None:
    result = run("keys", "create", "billing")
    assert result.stderr.endswith("Keep the key now: it is not shown again.\n")
    shown = result.stdout.partition("key:")[2].strip()
    created = keys("create", "Ren\u00e9", "--scope", "b:read", "--scope", "*")
    assert created.items() >= {"name": "Ren\u00e9", "scopes": ["*", "b:read"]}.items()
    secret, id = created.pop("key"), created["id"]
    assert is_canonical(secret)
    assert await server.admits(shown, secret) == "++"
    assert keys("show", id) == created
    assert re.search(f"^ID +NAME .*^{id} +Ren\u00e9 ", run("keys", "list").stdout, re.M | re.S)
    for command in (["list"], ["show", id], ["audit"], ["doctor"], ["usage", id], ["revoke", id]):
        for options in ([], ["--json"]):
            output = run("keys", *command, *options).output
            assert id in output
            assert shown not in output
            assert secret not in output


@on_posix
def test_the_actor_is_who_runs_it(database_url: sa.URL, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(variable, "boss")
    monkeypatch.setattr("pwd.getpwuid", lambda _: SimpleNamespace(pw_name="ada"))
    id = keys("create", "billing")["id"]
    keys("revoke", id)
    told = [(event["action"], event["actor"]) for event in keys("audit", id)]
    assert told == [("created", "cli:ada"), ("revoked", "cli:ada")]


async def test_who_ends_a_secret_waits_for_servers(server: Server, waits: list[float]) -> None:
    with connect(server.keys.engine.url).begin() as connection:
        row = {"id": "slow", "max_staleness": 7.5, "seen_at": datetime.now(UTC)}
        connection.execute(sa.insert(api_key_servers).values(row))
    first = keys("create", "billing")
    id, issued = first["id"], [first["key"]]
    for command, signs, waited in (
        (f"rotate {id}", "++", False),
        (f"rotate {id} --drop old", "-++", True),
        (f"rotate {id} --drop new", "-+-+", True),
        (f"rotate {id} --drop new --no-new", "-+--", True),
        (f"rotate {id} --overlap 0s", "----+", True),
        (f"rotate {id} --overlap 2h", "----++", False),
        (f"pause {id}", "------", True),
        (f"resume {id}", "----++", True),
        (f"revoke {id}", "------", True),
        ("revoke --issued-before 2001-01-01", "------", True),
    ):
        result = run("keys", *command.split(), "--json")
        assert ("Waiting 7.5 s: then every server follows" in result.stderr) == waited, command
        assert waits == [7.5] * waited, command
        waits.clear()
        issued += re.findall('"key": "(.+?)"', result.stdout)
        assert await server.admits(*issued) == signs, command


def test_an_update_changes_what_it_names_and_is_told(server: Server) -> None:
    options = "create x --scope a --scope b --owner acme --note old --expires-in 2d"
    id = keys(*options.split())["id"]
    options = f"update {id} --add-scope c --remove-scope a --name y --no-expiry --note"
    keys(*options.split(), "")
    shown = {"name": "y", "scopes": ["b", "c"], "owner": "acme", "note": "", "expires_at": None}
    assert keys("show", id).items() >= shown.items()
    assert "scopes: a b to b c" in run("keys", "audit", id).stdout
    assert [key["id"] for key in keys("list", "--owner", "acme")] == [id]
    assert keys("list", "--owner", "acm") == []


# What fails changes nothing.

MISTAKES = {
    "create x --expires-in 90": "write a number and s, m, h, d or w",
    "create x --scope a,b": "'a,b' is not a scope; write one like reports:read",
    "rotate x --no-new": "--no-new goes with --drop alone",
    "revoke": "give a key's id, or",
    "show x": "No key has the id 'x'; `keys list` shows the ids",
    "show 1c9a5d3e-70b2-4f68-8e4d-a1b2c3d4e5f6": "No key has the id '[key]'",  # not-a-key
}


def test_what_cannot_be_done_is_explained_and_changes_nothing(
    server: Server, ids: list[str]
) -> None:
    rotated = keys("create", "x")["id"]
    keys("rotate", rotated)
    conflicts = {
        f"rotate {ids[0]}": "lives in API_KEYS; create another key",
        f"rotate {rotated}": "Two secrets",
    }
    before = keys("audit")
    for command, fix in {**MISTAKES, **conflicts}.items():
        result = run("keys", *command.split())
        said = re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]", "", result.stderr)  # without frames
        assert (result.exit_code in (1, 2), result.stdout) == (True, ""), command
        assert fix in " ".join(said.split()), command
    assert keys("audit") == before


class FullDisk(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_secret_that_cannot_be_shown_is_not_issued(
    database_url: sa.URL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    id = keys("create", "billing")["id"]
    before = keys("audit")
    for output, why in ((None, "it is closed"), (FullDisk(), "No space left on device")):
        for command in (["create", "x"], ["rotate", id, "--json"]):
            with monkeypatch.context() as terminal:
                terminal.setattr(sys, "stdout", output)
                assert main(["keys", *command], standalone_mode=False) == 1
            told = f"Standard output: {why}. A secret that cannot be shown is not issued.\n"
            assert capsys.readouterr().err.endswith(told)
            assert keys("audit") == before


# Which database it is.


@pytest.mark.parametrize("exists", [False, True])
def test_no_command_makes_a_database(exists: bool) -> None:
    file = Path("keys.db")
    if exists:
        file.touch()
    for command in COMMANDS:
        assert MAKE_IT in complaint("keys", *command.split())
    assert [each.read_bytes() for each in Path().iterdir()] == [b""] * exists


@pytest.mark.parametrize(("schema", "fix"), [("0000", MAKE_IT), ("zzzz", "install the newer")])
def test_no_command_uses_another_schema(database_url: sa.URL, schema: str, fix: str) -> None:
    with connect(database_url).begin() as connection:
        table = sa.table(SCHEMA_TABLE, sa.column("version_num"))
        connection.execute(sa.update(table).values(version_num=schema))
    for command in COMMANDS:
        assert fix in complaint("keys", *command.split())


NO_URL = "DATABASE_URL: write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"

BAD_SETTINGS = [  # and how the one line begins that is said of it
    ("API_KEYS", "swordfish", "API_KEYS: entry 1 of 1 is not a random lower-case UUID4; make a"),
    ("DATABASE_URL", "mysql://x:swordfish@y/z", NO_URL),
    ("DATABASE_URL", "", NO_URL),
    ("DATABASE_URL", "sqlite:///:memory:", NO_URL),
    ("DATABASE_URL", "postgresql://x:sword@fish@y/w", "DATABASE_URL: write %40 for an @ in"),
    ("DATABASE_URL", "postgresql://x:swordfish@127.0.0.1:1/n", "DATABASE_URL: out of reach: "),
    ("KEY_PREFIX", "Swordfish", "KEY_PREFIX: String should match pattern"),
    ("KEY_MAX_STALENESS", "61", "KEY_MAX_STALENESS: Input should be less than or equal to 60"),
    ("LOG_LEVEL", "swordfish", "LOG_LEVEL: Input should be 'DEBUG', 'INFO', 'WARNING' or"),
    ("SECRETS_DIR", "/no/such/folder", "SECRETS_DIR: there is no folder"),
]


def test_a_bad_setting_is_named_in_one_line_without_its_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable, value, told in BAD_SETTINGS:
        with monkeypatch.context() as shell:
            shell.setenv(variable, value)
            with pytest.raises(SystemExit, match="3"):  # for a supervisor: do not start it again
                runpy.run_path(f"{MAIN}")
            output, said = capsys.readouterr()
            assert (output, said.count("\n"), said[: len(told)]) == ("", 1, told)
            assert "fish" not in said.lower()
            assert run("db", "upgrade").stderr.endswith(said)
