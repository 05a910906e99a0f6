"""Keys that come from elsewhere: what is read, what is refused, and that nothing shows them."""

import csv
import hashlib
import io
import json
import logging
import re
import sqlite3
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_urlsafe
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from opentelemetry import trace
from typer.testing import CliRunner, Result

from app.auth.database.engine import transaction
from app.auth.database.models import api_key_usage
from app.auth.key import KNOWING, masked, new_secret, with_prefix
from app.auth.keys.service import KeyService
from app.auth.store import queries
from app.cli import main
from app.constants import MISSING_KEY_STATUS
from app.transfer import keys as exchange
from app.transfer.strength import is_weak
from tests.callers import answer_of
from tests.conftest import Server
from tests.thorough.commands import keys
from tests.thorough.replicas import Replica, started
from tests.thorough.test_requests import Span

NO = MISSING_KEY_STATUS
LETTERS = "WPNirsRRieRWVwZYYJIpwGmbAfziGpYnaLNgYIzRXKbMhNSHVfeWadjelBGnCCYG"  # not-a-key
SKY = "acme_SkyQp4v7Zr9Lm2Xc8Kd3Wt6Hb"  # not-a-key
DOTTED = "v2.Qm9yZWQ+VGhl/c2lnbnM=.k7Xp2Rz9"  # not-a-key


@pytest.fixture(autouse=True)
def alone(working_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No command waits, and there are no keys of the environment."""
    monkeypatch.setattr("app.auth.cli.context.sleep", lambda _: None)
    monkeypatch.delenv("API_KEYS")


@pytest.fixture(autouse=True)
def nobody_knows() -> Iterator[None]:
    """Stores of other tests are still in memory."""
    KNOWING.clear()
    yield
    KNOWING.clear()


def sha(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def bring(text: str, *options: str, format: str = "sha256") -> Result:
    command = ["keys", "import", "-", "--format", format, *options]
    return CliRunner().invoke(main, command, input=text, catch_exceptions=False)


def brought(text: str, *options: str, format: str = "sha256") -> Any:
    result = bring(text, "--json", *options, format=format)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(text: str, *options: str, format: str = "sha256") -> str:
    """What is said; nothing has changed."""
    before = keys("list")
    result = bring(text, *options, format=format)
    assert (result.exit_code, result.stdout) == (1, "")
    assert keys("list") == before
    *_, said = result.stderr.splitlines()
    return said


def table(*rows: dict[str, Any]) -> str:
    """As `psql --csv` writes it."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [*dict.fromkeys(name for row in rows for name in row)])
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


SPELLED: dict[str, Callable[[bytes], str]] = {
    "hex": bytes.hex,
    "HEX": lambda hashed: hashed.hex().upper(),
    "bytea": lambda hashed: rf"\x{hashed.hex()}",
    "posthog": lambda hashed: f"sha256${hashed.hex()}",
    "base64": lambda hashed: b64encode(hashed).decode(),
    "base64 without padding": lambda hashed: b64encode(hashed).decode().rstrip("="),
    "base64url": lambda hashed: urlsafe_b64encode(hashed).decode(),
    "base64url without padding": lambda hashed: urlsafe_b64encode(hashed).decode().rstrip("="),
}


@pytest.mark.parametrize("spelled", SPELLED.values(), ids=SPELLED)
async def test_an_imported_key_gets_in_and_its_neighbour_does_not(
    server: Server, spelled: Callable[[bytes], str]
) -> None:
    secrets = [token_urlsafe(32), LETTERS, SKY, DOTTED]
    assert await server.admits(*secrets) == "----"
    text = "\ufeff" + table(*({"digest": spelled(sha(secret))} for secret in secrets))
    assert brought(text) == {"imported": 4, "of_them_ended": 0, "here_before": 0}
    neighbours = [secret[:-1] + chr(ord(secret[-1]) ^ 1) for secret in secrets]
    assert await server.admits(*secrets, *neighbours, secrets[0].swapcase()) == "++++-----"
    events = keys("audit")[-4:]
    assert {event["action"] for event in events} == {"imported"}
    assert len({event["key_id"] for event in events}) == 4


async def test_what_other_systems_write_moves_in(server: Server, tmp_path: Path) -> None:
    past, later = ["2020-01-01 00:00:00", "2099-01-01 00:00:00.5+02"]
    of_litellm = [f"sk-{token_urlsafe(16)}" for _ in range(4)]
    more: tuple[dict[str, str], ...] = (
        {},
        {"expires": past},
        {"expires": later, "blocked": "t"},
        {"permissions": "{}"},
    )
    rows = [
        {"token": sha(key).hex(), "key_name": "sk-...abcd", "expires": "", "blocked": ""} | some
        for key, some in zip(of_litellm, more, strict=True)
    ]
    assert brought(table(*rows))["of_them_ended"] == 2
    assert await server.admits(*of_litellm) == "+--+"

    stored = urlsafe_b64encode(sha(LETTERS)).decode().rstrip("=")
    row = {"name": "acme", "start": "WPNirs", "prefix": None, "key": stored, "enabled": True}
    row |= {"expiresAt": "2099-12-30T21:35:51.609Z", "metadata": "null"}
    row |= {"permissions": '{"reports":["read","write"],"files":["read"]}'}
    off = {"key": sha(SKY).hex(), "enabled": False, "expiresAt": 4_000_000_000_000, "name": None}
    brought(f"{json.dumps(row)}\n\n{json.dumps(off)}\n")
    assert await server.admits(LETTERS, SKY) == "+-"
    [acme] = [key for key in keys("list") if key["name"] == "acme"]
    assert acme["scopes"] == ["files:read", "reports:read", "reports:write"]
    assert acme["expires_at"].startswith("2099-12-30T21:35:51.609")

    of_posthog = f"phx_{token_urlsafe(32)}"
    scopes = {"secure_value": f"sha256${sha(of_posthog).hex()}", "label": "ph", "scopes": "{a,b:c}"}
    brought(table(scopes | {"owner": "acme", "note": "from there"}))
    [key] = [key for key in keys("list") if key["name"] == "ph"]
    assert (key["scopes"], key["owner"], key["note"]) == (["a", "b:c"], "acme", "from there")

    file, alive, never, ended, off_ = tmp_path / "f.db", *(new_secret() for _ in range(4))
    columns = "api_key TEXT PRIMARY KEY, is_active INTEGER, never_expire INTEGER,"
    columns += "expiration_date TEXT, latest_query_date TEXT, total_queries INTEGER, name TEXT"
    soon = (datetime.now(UTC) + timedelta(hours=1)).replace(tzinfo=None)
    with closing(sqlite3.connect(file)) as made, made:
        made.execute(f"CREATE TABLE fastapi_simple_security ({columns})")
        for key_, active, for_good, end in (
            (alive, 1, 0, soon.isoformat(timespec="seconds")),
            (never, 1, 1, past),
            (ended, 1, 0, (soon - timedelta(hours=2)).isoformat(timespec="seconds")),
            (off_, 0, 1, past),
        ):
            row_ = (key_, active, for_good, end, None, 0, "from there")
            made.execute("INSERT INTO fastapi_simple_security VALUES (?, ?, ?, ?, ?, ?, ?)", row_)
    command = ["keys", "import", f"{file}", "--format", "fastapi-simple-security"]
    assert CliRunner().invoke(main, command, catch_exceptions=False).exit_code == 0
    assert await server.admits(alive, never, ended, off_) == "++--"


async def test_keys_in_the_clear_move_in(server: Server) -> None:
    prefixed, token = with_prefix(new_secret(), "old"), "1465b7e8c4b499fbb590f8905bfab547b21151eb"
    brought(f"{prefixed},{SKY}\n{token}\n", "--scope", "reports:read", format="plain")
    assert await server.admits(prefixed, SKY, token) == "+++"
    assert {tuple(key["scopes"]) for key in keys("list")} == {("reports:read",)}
    row = {"key": LETTERS, "name": "ann", "scopes": ["a:b"]}
    brought(json.dumps(row), format="plain")
    assert await server.admits(LETTERS) == "+"


ROW = {"digest": sha(SKY).hex()}
SHOWN = ("salt",)
REFUSED = {
    "SHA-512": {"digest": hashlib.sha512(b"x").hexdigest()},
    "SHA-512, and": {"hashed_key": f"sha512$${hashlib.sha512(b'x').hexdigest()}"},
    "SHA-1": {"token": hashlib.sha1(b"x", usedforsecurity=False).hexdigest()},
    "Argon2": {"token": "$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA"},
    "PBKDF2": {"secure_value": "pbkdf2_sha256$260000$salt$aGFzaA=="},
    "PBKDF2, and": {"token": f"pbkdf2:{'A' * 64}"},
    "bcrypt": {"hash": "$2b$12$abcdefghijklmnopqrstuv"},
    "salted (fasthashedsecretkey)": ROW | {"fast_hashed_secret_key": "abc"},
    "salted (salt)": ROW | {"salt": "abc"},
    "--format plain": {"token": "sk-something in the clear"},
    "no SHA-256": {"digest": ""},
    "a key from an example": {"digest": sha("changeme").hex()},
    "its end is no time": ROW | {"expires": "tomorrow"},
    "its end is no time; write": ROW | {"expires": "20301231"},
    "its end is no time; write it": ROW | {"expires": "1999"},
    "neither true nor false": ROW | {"enabled": "perhaps"},
    "permissions are not like": ROW | {"permissions": '{"a": true}'},
    "it has other scopes than such as": ROW | {"scopes": "Not"},
    "within a hundred years": ROW | {"expires": "9999-12-31"},
    "visible": ROW | {"name": "a\nb"},
}


@pytest.mark.parametrize(("why", "row"), REFUSED.items(), ids=REFUSED)
@pytest.mark.usefixtures("database_url")
def test_what_cannot_move_in_is_refused_with_all_the_rest(why: str, row: dict[str, str]) -> None:
    other = dict.fromkeys(row, "") | {"digest": sha(LETTERS).hex()}
    said = refused(table(other, {"digest": ""} | row))
    place, _, _ = said.partition(":")
    assert place in ("Line 3", "Line 4")
    assert why in said
    assert not any(value and value in said for name, value in row.items() if name not in SHOWN)


@pytest.mark.parametrize(
    ("text", "format", "why"),
    [
        ("name\nx\n", "sha256", "Line 1: no column has the name digest"),
        ("{\n", "sha256", "Line 1: no JSON object"),
        ('digest,name\nx,"', "sha256", "Line 2: unexpected end of data"),
        ("digest,name,blocked\nx,Smith,,true\n", "sha256", "Line 2: more or fewer fields"),
        ("digest,Digest\nx,y\n", "sha256", "Line 2: two columns have the name Digest"),
        ('{"digest": "x", "digest": "y"}', "sha256", "or a name twice"),
        ('{"digest": ' + "[" * 100_000, "sha256", "Line 1: no JSON object"),
        ("changeme", "plain", "Line 1: below 64 bits"),
        ("my-secret-api-key-for-production", "plain", "Line 1: below 64 bits"),
        ("abcdefghijklmnop", "plain", "Line 1: below 64 bits"),
        ("0123456789012345", "plain", "Line 1: below 64 bits"),
        ("aB3$" * 10, "plain", "Line 1: below 64 bits"),
        ("Qx7$Lm2!Vb9&Zt4@Kd8*Wp5%Hy3^Rn6~Jc1+Gf0=N:s;T?u", "plain", "more than 12 signs"),
        ("Qx7$Lm2!Vb9", "plain", "shorter than 16"),
        (f"{SKY}\u20ac", "plain", "other than visible ASCII"),
        (f"sha256${ROW['digest']}", "plain", "this is a digest"),
        (f"key,name\n{SKY},{SKY}\n", "plain", "Line 2: a column that lists and logs show holds"),
        (f"key,name,scopes\n{SKY},x,{SKY}\n", "plain", "Line 2: it has other scopes"),
        ("{}", "native", "Line 1: id: Field required"),
        ("nothing", "native", "Line 1: the line: Invalid JSON"),
    ],
)
@pytest.mark.usefixtures("database_url")
def test_what_is_no_such_file_or_too_weak_is_refused(text: str, format: str, why: str) -> None:
    said = refused(text, format=format)
    assert why in said
    assert len(text) < 3 or text not in said


async def test_what_can_be_guessed_comes_by_force(server: Server) -> None:
    brought("changeme", "--force", format="plain")
    brought(table({"key": sha("sk-1234").hex()}), "--force")
    assert await server.admits("changeme", "sk-1234") == "++"


def test_random_keys_are_not_weak() -> None:
    made = [token_urlsafe(16) for _ in range(2000)] + [new_secret() for _ in range(2000)]
    assert sum(map(is_weak, made)) < 4
    assert is_weak("")


@pytest.mark.parametrize("options", [(), ("--format", "fastapi-simple-security")])
def test_a_file_that_is_none_is_told(
    database_url: sa.URL, tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / "latin").write_bytes(b"\xe9")
    for name in ("none", "latin"):
        command = ["keys", "import", f"{tmp_path / name}", *options]
        result = CliRunner().invoke(main, command, catch_exceptions=False)
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"{tmp_path / name}" in result.stderr.splitlines()[-1]


async def test_the_same_file_twice_changes_nothing_and_what_was_revoked_stays_so(
    server: Server,
) -> None:
    text = table(*({"digest": sha(key).hex(), "name": key[:3]} for key in (SKY, LETTERS)))
    assert brought(text, "--dry-run")["imported"] == 2
    assert await server.admits(SKY, LETTERS) == "--"
    brought(text)
    [sky] = [key for key in keys("list") if key["name"] == SKY[:3]]
    keys("revoke", sky["id"])
    before = keys("list"), keys("audit")
    for format, again in (("sha256", text), ("plain", f"{SKY} {LETTERS}")):
        assert brought(again, format=format)["here_before"] == 2
    assert (keys("list"), keys("audit")) == before
    assert await server.admits(SKY, LETTERS) == "-+"
    exported = CliRunner().invoke(main, ["keys", "export"]).stdout
    revived = re.sub(r',"revoked_at":"[^"]*"', "", exported)
    assert len(revived) < len(exported)
    assert brought(revived, format="native")["imported"] == 0
    assert await server.admits(SKY, LETTERS) == "-+"


async def test_an_import_that_is_interrupted_leaves_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert, asked = exchange._insert, []

    def interrupt(*arguments: Any) -> None:
        insert(*arguments)
        asked.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(exchange, "_insert", interrupt)
    result = bring(table(ROW))
    assert (result.exit_code, result.stdout, len(asked)) == (130, "", 1)
    assert result.stderr.splitlines()[-1] == "Interrupted: nothing has changed."
    assert keys("list") == []
    monkeypatch.undo()
    assert await server.admits(SKY) == "-"


async def test_a_key_twice_in_a_file_is_refused(server: Server) -> None:
    assert "the key of line 2 again" in refused(table(ROW, ROW))


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets the settings name another database of the same schema."""

    def move() -> None:
        monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/other.db")
        CliRunner().invoke(main, ["db", "upgrade"], catch_exceptions=False)

    return move


async def test_what_was_exported_comes_in_as_it_was(
    server: Server,
    start_server: Callable[..., Server],
    other: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.transfer.keys.AT_ONCE", 2)
    made = [keys("create", f"k{n}", "--scope", "a:b", "--limit", "9/hour") for n in range(5)]
    keys("create", "own", "--scope", "keys:own", "--owner", "acme", "--note", "who")
    renewed = keys("rotate", made[0]["id"])
    keys("pause", made[1]["id"])
    keys("revoke", made[2]["id"])
    keys("rotate", made[3]["id"], "--overlap", "0s")
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    usage = {"digest": sha(made[0]["key"]), "starts_at": hour, "hours": 1}
    usage |= {"served": 3, "refused": 2, "limited": 1}
    with transaction(server.keys.engine, write=True) as connection:
        connection.execute(sa.insert(api_key_usage).values(usage))
    exported = CliRunner().invoke(main, ["keys", "export", "--with-usage"]).stdout
    assert '"usage"' not in CliRunner().invoke(main, ["keys", "export"]).stdout
    secrets = [renewed["key"], *(key["key"] for key in made)]
    assert not [secret for secret in secrets if secret in exported]
    listed = keys("list")
    other()
    elsewhere = start_server()
    assert brought(exported, format="native")["imported"] == 6
    assert keys("list") == listed
    assert await elsewhere.admits(*secrets) == "++---+"
    assert CliRunner().invoke(main, ["keys", "export", "--with-usage"]).stdout == exported
    assert brought(exported.replace("\n", "\n\n"), format="native")["imported"] == 0
    assert await start_server().admits(*secrets) == "++---+"  # who reads all of it anew


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"secrets": [{"digest": "0" * 64}] * 2}, "one current secret"),
        ({"scopes": ["keys:own"]}, "needs an owner"),
        ({"revokedAt": "2020-01-01T00:00Z"}, "revokedAt: Extra inputs are not permitted"),
        ({"created_by": "a\nb"}, "created_by: Value error, write it in visible characters"),
        ({"paused_at": "9999-12-31T23:59:59-12:00"}, "no database has this time"),
        ({"restrictions": {"nobody": ["x"]}}, "Nothing here enforces 'nobody'"),
        ({"secrets": [{"digest": "0" * 64}]}, "another key here has the id"),
        ({"secrets": [{"digest": "0"}]}, "secrets.0.digest: String should match"),
    ],
)
@pytest.mark.usefixtures("database_url")
def test_a_line_that_no_export_has_written_is_refused(change: dict[str, Any], why: str) -> None:
    id = keys("create", "x")["id"]
    now = "2026-01-01T00:00:00Z"
    line: dict[str, Any] = {"id": "other", "name": "x", "created_by": "x", "created_at": now}
    line |= {"secrets": [{"digest": "1" * 64}]} | change
    for secret in line["secrets"]:
        secret["created_at"] = now
    if "another" in why:
        line["id"] = id
    assert why in refused(json.dumps(line), format="native")


ENDED = {
    "any column that says so": {"blocked": "false", "revoked": "true"},
    "any that does not say it is on": {"enabled": "true", "is_active": "false"},
    "a name in other letters": {"Blocked": "true"},
    "an end in other letters": {"ExpiresAt": "2020-01-01"},
    "the earliest end": {"expires_at": "2040-01-01", "expires": "2020-01-01"},
    "a time of its end": {"revoked_at": "2020-01-01"},
    "another time of it": {"deleted_at": "2020-01-01"},
    "an end by another name": {"expires_on": "2020-01-01"},
}


@pytest.mark.parametrize("row", ENDED.values(), ids=ENDED)
async def test_whatever_says_that_a_key_has_ended_counts(
    server: Server, row: dict[str, str]
) -> None:
    assert brought(table({"digest": sha(LETTERS).hex(), "name": "x"} | row))["of_them_ended"] == 1
    assert await server.admits(LETTERS) == "-"


async def test_a_key_of_api_keys_moves_to_where_no_api_keys_names_it(
    server: Server,
    start_server: Callable[..., Server],
    other: Callable[[], None],
    secrets: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("API_KEYS", ",".join(secrets))
    keys("create", "x")
    exported = CliRunner().invoke(main, ["keys", "export"]).stdout
    monkeypatch.setenv("API_KEYS", "")
    other()
    assert brought("\ufeff" + exported, format="native")["imported"] == 3
    assert await start_server().admits(*secrets) == "++"
    assert brought(exported, format="native")["imported"] == 0


# Nothing shows them.


async def test_nothing_that_a_caller_sends_shows_an_imported_key(
    server: Server, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = [SKY, LETTERS, DOTTED, token_urlsafe(48)]
    for secret in secrets:
        assert masked(f"/x/{secret}") == f"/x/{secret}"  # before
        assert await server.status(secret) == NO
    brought(table(*({"digest": sha(secret).hex()} for secret in secrets)))
    await server.store.refresh()
    caplog.clear()
    for secret in secrets:
        for path in (
            f"/secure-endpoint/{secret}",
            f"/{secret}",
            f"/x={secret}&y",
            f"/a.{secret},b",
        ):
            with trace.use_span(span := Span(url=f"http://x{path}?k={quote(secret, safe='')}")):
                for sent in ((), (secret.encode(),)):
                    answer = await answer_of(
                        server.api,
                        *sent,
                        path=path,
                        headers=[(b"x-request-id", secret.encode()[:64])],
                    )
                    assert secret not in f"{answer.headers}"
            assert secret not in f"{span.name} {span.attributes}"
            assert quote(secret, safe="") not in f"{span.attributes}"
            assert "[key]" in span.attributes["url"]
        await answer_of(server.api, path="/", method=secret)
        assert masked(f"GET {secret} {secret}") == "GET [key] [key]"
        assert masked(f"{'x' * 190}/{secret}") == f"{'x' * 190}/[key]"
        long = masked(f"{secret} " * 100 + "tail")
        assert secret[:16] not in long
    assert "[key]" in caplog.text
    assert not [secret for secret in secrets if secret in caplog.text]
    log = tmp_path / "log"
    log.write_text(
        "".join(f"GET /a?k={secret}&b\n{secret}, and 'x{secret}'\n" for secret in secrets)
    )
    found = [json.loads(CliRunner().invoke(main, ["keys", "scan", "--json", f"{log}"]).stdout)]
    assert [each["line"] for each in found[0]] == [*range(1, 9)]
    assert {each["why"] for each in found[0]} == {"known"}


async def test_a_text_without_imported_keys_is_shown_as_before(server: Server) -> None:
    path = "/".join(["a.b-c" * 7] * 20)
    before = masked(path)
    brought(table(ROW))
    await server.store.refresh()
    assert masked(path) == before


def test_a_server_that_runs_follows_an_import(database_url: sa.URL) -> None:
    with started(Replica(), Replica()) as replicas:
        brought(table(ROW))
        for replica in replicas:
            replica.until(200, SKY)
            assert replica.request(SKY[:-1] + "x") == NO
        service_ids = {key["id"] for key in keys("list") if key["name"] == "imported 2"}
        keys("revoke", service_ids.pop())
        for replica in replicas:
            replica.until(NO, SKY)


async def test_more_imported_keys_than_are_followed_one_by_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MOST_NEWS", 5)
    await server.store.refresh()
    secrets = [token_urlsafe(32) for _ in range(20)]
    brought("\n".join(secrets), format="plain")
    assert await server.admits(*secrets) == "+" * 20
    assert masked(secrets[0]) == "[key]"
    service: KeyService = server.keys
    assert len({key.id for key in service.all()}) == 20


def test_a_database_that_is_away_has_no_imported_keys(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text(SKY)
    result = CliRunner().invoke(main, ["keys", "scan", f"{file}"], catch_exceptions=False)
    assert (result.exit_code, result.output) == (0, "")


def test_a_database_that_does_not_answer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/none")
    file = tmp_path / "file"
    file.write_text(SKY)
    result = CliRunner().invoke(main, ["keys", "scan", f"{file}"], catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("Not every key is known here: DATABASE_URL: out of reach")
