"""Where no lifespan runs, requests do what it would have done: usage is written all the same."""

import asyncio
import time
from typing import Any
from unittest.mock import patch

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from app.auth import GuardedAPI
from app.auth.database.models import LEAST_STALENESS
from app.auth.errors import StoreUnavailableError
from app.auth.keys.service import KeyService
from app.auth.store.cache import DatabaseKeyStore
from app.auth.usage import report
from app.constants import API_KEY_HEADER
from app.settings import load_settings
from tests.callers import PROBE, status_of
from tests.thorough.replicas import Replica, started, wait_for
from tests.thorough.servers import LiveServer
from tests.thorough.services import make_service
from tests.thorough.test_usage import WEEK

SAID = "No lifespan runs here"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request finds a flush due."""
    monkeypatch.setattr("app.auth.store.cache.FLUSH_EVERY", 0.0)


def served(key_service: KeyService, id: str) -> int:
    return report.of_key(key_service.engine, id, WEEK).served


def test_each_request_in_a_loop_of_its_own(
    service: GuardedAPI,
    store: DatabaseKeyStore,
    key_service: KeyService,
    caplog: pytest.LogCaptureFixture,
) -> None:
    issued = key_service.create("key", actor="test")
    for _ in range(3):
        assert asyncio.run(status_of(service, issued.key.encode())) == 200
        store._trusted_until = 0.0
    assert served(key_service, issued.id) == 2  # all but the one that wrote
    assert key_service.get(issued.id).last_used_at
    assert [record.levelname for record in caplog.records if SAID in record.message] == ["WARNING"]
    # Nobody can know that it still runs: changes do not wait for it, and it trusts no longer.
    assert store._staleness() == key_service.longest_staleness() == LEAST_STALENESS


def test_what_a_loop_has_left_undone_holds_up_no_other(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    issued = key_service.create("key", actor="test")
    store.max_staleness = store._timeout = 30.0

    async def leave() -> None:
        request = asyncio.create_task(status_of(service, issued.key.encode()))
        while not store._asking:
            await asyncio.sleep(0)
        left.append(request)

    left: list[Any] = []
    abandoned = asyncio.new_event_loop()
    abandoned.run_until_complete(leave())
    began_at = time.monotonic()
    assert asyncio.run(status_of(service, issued.key.encode())) == 200
    assert time.monotonic() - began_at < 20
    abandoned.run_until_complete(left[0])  # it may go on as well
    abandoned.close()


async def test_a_write_that_fails_or_hangs_refuses_nobody(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    issued = key_service.create("key", actor="test")
    store._timeout = 1.0
    gone: Any = {"side_effect": StoreUnavailableError("gone")}
    for write in ("write", "add"):
        with patch.object(store._queries, write, **gone):
            store._trusted_until = 0.0
            assert await status_of(service, issued.key.encode()) == 200
    with patch.object(store._queries, "write", lambda *_: time.sleep(6)):
        began_at = time.monotonic()
        store._trusted_until = 0.0
        assert await status_of(service, issued.key.encode()) == 200
        assert time.monotonic() - began_at < 5
    store._timeout = 30.0
    store._trusted_until = 0.0
    assert await status_of(service, issued.key.encode()) == 200
    assert served(key_service, issued.id) == 3


async def test_requests_in_several_loops_at_once_count_once(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    issued = key_service.create("key", actor="test")

    def call(_: int) -> None:
        for _ in range(10):
            store._trusted_until = 0.0
            assert asyncio.run(status_of(service, issued.key.encode())) == 200

    await asyncio.gather(*(asyncio.to_thread(call, each) for each in range(4)))
    await store.flush()
    assert served(key_service, issued.id) == 40


def test_mounted_in_another_application(service: GuardedAPI, key_service: KeyService) -> None:
    issued = key_service.create("key", ["metrics:read"], actor="test")
    outer = FastAPI()
    outer.mount("/mounted", service)
    headers = {API_KEY_HEADER: issued.key}
    with LiveServer(outer) as live, httpx.Client(base_url=live.url, headers=headers) as client:
        for _ in range(5):
            assert client.get(f"/mounted{PROBE}").status_code == 200
            time.sleep(LEAST_STALENESS)
        assert served(key_service, issued.id) >= 4
        told = client.get("/mounted/metrics").text
    assert f'api_key_requests_total{{key_id="{issued.id}",outcome="served"}} 5.0' in told
    assert "api_key_usage_age_seconds +Inf" not in told


def test_servers_that_run_none(key_service: KeyService, database_url: sa.URL) -> None:
    issued = key_service.create("key", actor="test")
    servers = [Replica("--lifespan", "off", TEST_FLUSH_EVERY="0.2") for _ in range(4)]
    with started(*servers):
        for server in servers:
            assert [server.request(issued.key) for _ in range(20)] == [200] * 20
        last = time.monotonic()
        wait_for(lambda: time.monotonic() > last + 0.4)
        for server in servers:
            assert server.request(issued.key) == 200  # finds that a flush is due
        assert served(key_service, issued.id) == 80
    assert key_service.get(issued.id).last_used_at


async def test_a_lifespan_that_runs_leaves_it_to_itself(
    database_url: sa.URL, key_service: KeyService, caplog: pytest.LogCaptureFixture
) -> None:
    issued = key_service.create("key", actor="test")
    service = make_service(load_settings())
    store = service.keys
    assert isinstance(store, DatabaseKeyStore)
    with patch("app.auth.store.cache.FLUSH_EVERY", 60.0):
        async with store.follow():
            for _ in range(3):
                store._trusted_until = 0.0
                assert await status_of(service, issued.key.encode()) == 200
            assert served(key_service, issued.id) == 0
    assert served(key_service, issued.id) == 3
    assert SAID not in caplog.text
