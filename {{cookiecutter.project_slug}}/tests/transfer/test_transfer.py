"""Keys that come from elsewhere, and a copy of the database."""

import hashlib
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner, Result

from app.auth.key import masked
from app.cli import main
from tests.callers import keys
from tests.conftest import Server

ELSEWHERE = "acme_SkyQp4v7Zr9Lm2Xc8Kd3Wt6Hb"  # not-a-key


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.auth.cli.context.sleep", lambda _: None)


def bring(text: str, *options: str) -> Result:
    return CliRunner().invoke(main, ["keys", "import", "-", *options], input=text)


def stored(key: str) -> str:
    return f"token,key_alias,blocked\n{hashlib.sha256(key.encode()).hexdigest()},acme,\n"


async def test_a_key_from_elsewhere_gets_in_and_no_log_shows_it(server: Server) -> None:
    assert bring(stored(ELSEWHERE), "--format", "sha256").exit_code == 0
    assert await server.admits(ELSEWHERE, ELSEWHERE[:-1]) == "+-"
    assert masked(f"/secure-endpoint/{ELSEWHERE}?x") == "/secure-endpoint/[key]?x"


async def test_what_was_revoked_does_not_come_back(server: Server) -> None:
    bring(stored(ELSEWHERE), "--format", "sha256")
    [id] = [key["id"] for key in keys("list") if key["name"] == "acme"]
    keys("revoke", id)
    exported = CliRunner().invoke(main, ["keys", "export"]).stdout
    before = keys("list")
    assert bring(stored(ELSEWHERE), "--format", "sha256").exit_code == 0
    assert bring(ELSEWHERE, "--format", "plain").exit_code == 0
    assert bring(exported).exit_code == 0
    assert keys("list") == before
    assert await server.admits(ELSEWHERE) == "-"


async def test_everything_is_copied_into_an_empty_database(
    server: Server, database_url: sa.URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = keys("create", "billing")
    before = keys("list"), keys("audit")
    copy = ["db", "copy", "--to", f"sqlite:///{tmp_path}/copy.db"]
    assert [CliRunner().invoke(main, copy).exit_code for _ in range(2)] == [0, 1]
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/copy.db")
    assert (keys("list"), keys("audit")) == before
    assert await server.admits(created["key"]) == "+"
