"""How keys are used: counted once; and what `doctor` finds."""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.auth import GuardedRouter, require
from app.auth.database.models import api_key_usage
from app.auth.key import digest
from app.auth.usage.report import of_key
from tests.callers import ask, keys, on, run, with_endpoints
from tests.conftest import Server

WEEK, DAY, HOUR = timedelta(days=7), timedelta(days=1), timedelta(hours=1)
NOW = datetime(2030, 6, 15, 12, tzinfo=UTC)
ME = "tests"


async def test_a_request_counts_once(server: Server, start_server: Callable[[], Server]) -> None:
    able, unable = (server.keys.create("key", scopes, actor=ME) for scopes in (["a:b"], []))
    for each in (server, start_server()):
        nested = with_endpoints(GuardedRouter(dependencies=[require("a:b")] * 2))
        each.api.include_router(on(GuardedRouter(dependencies=[require("a:b")]), nested))
        async with each.store.follow():  # what is left is written at the stop
            for type in ("http", "websocket"):
                await each.store.flush()
                for key in (able, unable, able):
                    await ask(each.api, key.key.encode(), path="/x", type=type)
    used = [of_key(server.keys.engine, key.id, WEEK) for key in (able, unable)]
    assert [(each.served, each.refused, each.total) for each in used] == [(8, 0, 8), (0, 4, 4)]


# What `doctor` finds.


@pytest.mark.skipif(os.name == "nt", reason="Windows has other modes")
def test_the_doctor_fails_while_there_is_work(server: Server, working_directory: Path) -> None:
    assert keys("doctor") == []
    assert run("keys", "doctor").exit_code == 0
    key = server.keys.create("billing", ["*"], actor=ME)
    row = {"starts_at": datetime.now(UTC), "hours": 1, "served": 0, "refused": 100}
    with server.keys.engine.begin() as connection:
        row |= {"digest": digest(key.key.encode())}
        connection.execute(sa.insert(api_key_usage).values(row))
    (working_directory / ".env").touch(0o644)
    result = run("keys", "doctor", "--json")
    assert result.exit_code == 1
    assert [(each["id"], each["problem"]) for each in json.loads(result.stdout)] == [
        ("", "others may read .env"),
        (key.id, "too many scopes: all there are"),
        (key.id, "refused 100 times in a day for want of a scope"),
    ]
