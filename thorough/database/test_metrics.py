"""What Prometheus is told: exact over processes, and in series that no stranger makes."""

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import httpx
import pytest
from fastapi import WebSocket
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, Counter, Metric, generate_latest
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as text_metrics
from starlette.responses import PlainTextResponse, StreamingResponse

from app import metrics
from app.auth import GuardedAPI, GuardedRouter, PublicRouter, require
from app.auth.access.rule import OUT_OF_REACH
from app.auth.errors import SettingsError, StoreUnavailableError
from app.auth.key import Key, new_secret
from app.auth.keys.service import KeyService
from app.auth.log import RequestRecord
from app.auth.store.cache import DatabaseKeyStore
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS
from tests.callers import PROBE, Keys, answer_of, ask, status_of
from tests.thorough.commands import ROOT
from tests.thorough.replicas import PATIENCE, Line, Replica, started
from tests.thorough.servers import Service

Series = tuple[str, ...]  # a name, and the values of its labels in the order of their names
Told = Callable[[], dict[Series, float]]


def series(families: Iterable[Metric]) -> dict[Series, float]:
    return {
        (each.name, *(value for _, value in sorted(each.labels.items()))): each.value
        for family in families
        for each in family.samples
        if each.name.startswith("api_")
    }


def ours() -> dict[Series, float]:
    metrics._add_up()
    return series(metrics._ours.collect())


@pytest.fixture
def told() -> Told:
    """What was counted here since the test began."""
    before = ours()

    def since() -> dict[Series, float]:
        now = ours()
        counted = {each: value - before.get(each, 0.0) for each, value in now.items()}
        return {
            each: value
            for each, value in counted.items()
            if value and each[0].endswith(("_total", "_count"))
        }

    return since


@pytest.fixture
def api(keys: Keys) -> GuardedAPI:
    api = GuardedAPI(keys, observers=[metrics.observe])
    guarded, public = GuardedRouter(), PublicRouter()

    @guarded.get("/items/{id}")
    async def item(id: str) -> str:
        return id

    @guarded.get("/failing")
    async def failing() -> None:
        raise RuntimeError("failed")

    @guarded.get("/scoped", dependencies=[require("reports:read")])
    async def scoped() -> None: ...

    @guarded.websocket("/live")
    async def live(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    @public.get("/open/{name}")
    async def open_to_all(name: str) -> None: ...

    guarded.mount("/mounted", PlainTextResponse("mounted"))
    api.include_router(guarded)
    api.include_router(public)
    return api


# What counts.


async def test_each_request_counts_by_route_and_by_key(
    api: GuardedAPI, keys: Keys, told: Told
) -> None:
    secret = keys.issue()
    for path in ("/items/1", "/items/2", "/scoped", "/mounted/a/b", "/open/x", "/nothing/here"):
        await ask(api, secret, path=path, body=b"")
    with pytest.raises(RuntimeError):
        await ask(api, secret, path="/failing")
    await ask(api, secret, path="/live", type="websocket")
    for path in ("/items/1", "/open/x", "/nothing/here"):
        await ask(api, path=path, body=b"")
    refused = f"{MISSING_KEY_STATUS}"
    assert told() == {
        ("api_requests_total", "GET", "/items/{id}", "200"): 2,
        ("api_requests_total", "GET", "/items/{id}", refused): 1,
        ("api_requests_total", "GET", "/scoped", "403"): 1,
        ("api_requests_total", "GET", "/mounted/{path}", "200"): 1,
        ("api_requests_total", "GET", "/open/{name}", "200"): 2,
        ("api_requests_total", "GET", "", "404"): 2,
        ("api_requests_total", "GET", "/failing", "500"): 1,
        ("api_requests_total", "WS", "/live", "101"): 1,
        ("api_request_seconds_count", "/items/{id}"): 2,
        ("api_request_seconds_count", "/mounted/{path}"): 1,
        ("api_request_seconds_count", "/open/{name}"): 2,
        ("api_request_seconds_count", ""): 2,
        ("api_request_seconds_count", "/failing"): 1,
        ("api_request_seconds_count", "/live"): 1,
        ("api_key_requests_total", "key-0", "served"): 7,
        ("api_key_requests_total", "key-0", "refused"): 1,
        ("api_key_refusals_total", "missing scope reports:read"): 1,
        ("api_key_refusals_total", "no key"): 1,
    }


async def test_what_a_limit_refuses_is_told_apart(
    service: GuardedAPI, key_service: KeyService, told: Told
) -> None:
    made = key_service.create("key", restrictions={"limits": ["1/hour"]}, actor="test")
    for _ in range(3):
        await status_of(service, made.key.encode())
    assert told().items() >= {
        (("api_key_requests_total", made.id, "served"), 1),
        (("api_key_requests_total", made.id, "limited"), 2),
        (("api_key_refusals_total", "over its limit"), 2),
    }


async def test_keys_beyond_the_first_ten_thousand_are_told_together(
    api: GuardedAPI, keys: Keys, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (
        Key(f"{number}", "", frozenset()) for number in (uuid4(), uuid4(), uuid4())
    )
    monkeypatch.setattr(metrics, "MOST_KEYS", len(metrics._keys) + 1)
    for key in (first, second, third, first):
        metrics.observe(RequestRecord("", "GET", key, route="/", status=200))
    counted = {each: value for each, value in told().items() if each[0].startswith("api_key_")}
    assert counted == {
        ("api_key_requests_total", first.id, "served"): 2,
        ("api_key_requests_total", "others", "served"): 2,
    }


async def test_a_request_that_gets_no_answer_counts_too(
    api: GuardedAPI, keys: Keys, told: Told
) -> None:
    router = GuardedRouter()

    @router.websocket("/gone")
    async def gone(socket: WebSocket) -> None:
        raise RuntimeError("failed")

    api.include_router(router)
    with pytest.raises(RuntimeError):
        await ask(api, keys.issue(), path="/gone", type="websocket")
    assert told()["api_requests_total", "WS", "/gone", "0"] == 1


async def test_a_stream_counts_when_it_begins(api: GuardedAPI, keys: Keys, told: Told) -> None:
    seen = []
    router = GuardedRouter()

    async def parts() -> Any:
        seen.append(told())
        yield "one"

    router.add_api_route("/parts", lambda: StreamingResponse(parts()))
    api.include_router(router)
    await ask(api, keys.issue(), path="/parts", body=b"")
    assert seen == [told()]
    assert seen[0]["api_request_seconds_count", "/parts"] == 1


async def test_the_seconds_are_those_until_the_answer_begins(api: GuardedAPI, keys: Keys) -> None:
    secret, name = keys.issue(), "api_request_seconds"
    before = ours()
    with patch("app.auth.access.request_log.perf_counter", side_effect=[10.0, 10.3, 99.0, 99.0]):
        await ask(api, secret, path="/items/1")
    after = ours()
    took = {
        label: after[name + label, *more] - before.get((name + label, *more), 0.0)
        for label, *more in (
            ("_sum", "/items/{id}"),
            ("_bucket", "0.25", "/items/{id}"),
            ("_count", "/items/{id}"),
        )
    }
    assert took == {"_sum": pytest.approx(0.3), "_bucket": 0, "_count": 1}
    assert after[name + "_bucket", "0.5", "/items/{id}"] == after[name + "_count", "/items/{id}"]


# In series that are few.


@pytest.fixture(scope="module")
def counting() -> GuardedAPI:
    api = GuardedAPI(Keys(), observers=[metrics.observe])
    public = PublicRouter()
    public.add_api_route("/{name}", lambda name: None)
    api.include_router(public)
    return api


@given(
    path=st.text(max_size=30),
    method=st.text(st.characters(codec="ascii"), min_size=1, max_size=10),
    sent=st.binary(max_size=40),
    id=st.binary(max_size=70),
    type=st.sampled_from(["http", "websocket"]),
)
async def test_whatever_a_stranger_sends_is_no_label(
    counting: GuardedAPI, path: str, method: str, sent: bytes, id: bytes, type: str
) -> None:
    before = set(ours())
    headers = [(b"x-request-id", id), (b"user-agent", sent)]
    await ask(counting, sent, path=f"/{path}", method=method, headers=headers, type=type, body=b"")
    for name, *labels in set(ours()) - before:
        if name == "api_requests_total":
            assert labels[0] in {*metrics._METHODS, "other"}
            assert labels[1] in {"", "/{name}"}
            assert re.fullmatch("0|[1-5][0-9][0-9]", labels[2])
        else:
            assert name.startswith(("api_request_seconds", "api_key_refusals"))
            assert labels[-1] in {"", "/{name}", "no key", "not a key", "unknown key"}


async def test_a_database_out_of_reach_is_one_reason_whatever_it_says(
    api: GuardedAPI, keys: Keys, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "app")
    for path, type in (("/items/1", "http"), ("/scoped", "http"), ("/live", "websocket")):
        down = StoreUnavailableError(f"DATABASE_URL: out of reach, says {path}")
        with patch.object(keys, "lookup", side_effect=down):
            await ask(api, new_secret().encode(), path=path, type=type)
        assert f"{down}" in caplog.text
    refusals = {each: value for each, value in told().items() if "refusals" in each[0]}
    assert refusals == {("api_key_refusals_total", OUT_OF_REACH): 3}


async def test_an_ended_key_is_told_by_its_reason_alone(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService, told: Told
) -> None:
    issued = key_service.create("gone", actor="test")
    assert await status_of(service, issued.key.encode()) == 200
    key_service.revoke(issued.id, actor="test")
    await store.refresh()
    assert await status_of(service, issued.key.encode()) == MISSING_KEY_STATUS
    counted = told()
    assert counted["api_key_requests_total", issued.id, "served"] == 1
    assert ("api_key_requests_total", issued.id, "refused") not in counted
    assert counted["api_key_refusals_total", "revoked key"] == 1


# Who is told.


async def test_it_is_for_callers_with_the_scope(
    client: httpx.AsyncClient, client_with: Callable[..., httpx.AsyncClient]
) -> None:
    assert (await client.get("/metrics")).status_code == MISSING_KEY_STATUS
    refused = await client_with("metrics:write", "keys:*").get("/metrics")
    assert (refused.status_code, refused.json()) == (403, {"detail": "Missing scope: metrics:read"})
    answer = await client_with("metrics:read").get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    names = {family.name for family in text_metrics(answer.text)}
    assert names >= {"api_requests", "api_request_seconds", "api_key_requests", "api_key_refusals"}
    assert "_created" not in answer.text


async def test_whoever_asks_for_openmetrics_gets_it(
    client_with: Callable[..., httpx.AsyncClient],
) -> None:
    accept = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    answer = await client_with("metrics:read").get("/metrics", headers=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    told = series(open_metrics(answer.text))
    assert told["api_key_refusals_total", OUT_OF_REACH] >= 0
    assert ("api_keys_age_seconds",) in told


async def test_what_you_count_yourself_is_told_as_well(
    client_with: Callable[..., httpx.AsyncClient],
) -> None:
    orders = Counter("orders", "Orders that came in")
    orders.inc(3)
    try:
        assert "orders_total 3.0" in (await client_with("*").get("/metrics")).text
    finally:
        REGISTRY.unregister(orders)


async def test_a_page_of_somebody_else_does_not_make_it_public(store: DatabaseKeyStore) -> None:
    service = GuardedAPI(store, public_paths=["/metrics"])
    service.include_router(metrics.router)
    service.add_route("/metrics", lambda _: PlainTextResponse("theirs"))
    assert await status_of(service, path="/metrics") == MISSING_KEY_STATUS


async def test_an_exporter_that_is_open_to_all_tells_no_key(
    api: GuardedAPI, keys: Keys, told: Told
) -> None:
    await status_of(api, keys.issue(), path="/items/1")
    assert ("api_key_requests_total", "key-0", "served") in told()
    assert b"api_key" not in generate_latest()


async def test_no_key_and_nothing_that_was_sent_is_told(
    service: GuardedAPI, key_service: KeyService
) -> None:
    reader = key_service.create("reader of metrics", ["metrics:read"], actor="test")
    unknown = new_secret()
    for secret in (reader.key, unknown):
        for path in (PROBE, f"/{secret}", f"/api-keys/{secret}"):
            await ask(service, secret.encode(), path=path, body=b"", query_string=secret.encode())
    body = (await answer_of(service, reader.key.encode(), path="/metrics", body=b"")).body.decode()
    assert reader.id in body
    for secret in (reader.key, unknown, reader.key[:8], unknown[:8]):
        assert secret not in body
    assert reader.name not in body


async def test_to_tell_it_takes_no_question_to_the_database(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    reader = key_service.create("reader", ["metrics:read"], actor="test").key.encode()
    assert await status_of(service, reader, path="/metrics", body=b"") == 200
    store._trusted_until = float("inf")
    with patch.object(store, "_queries", None):
        assert await status_of(service, reader, path="/metrics", body=b"") == 200


async def test_it_tells_how_old_the_keys_and_the_written_usage_are(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    reader = key_service.create("reader", ["metrics:read"], actor="test").key.encode()

    async def ages() -> tuple[float, float]:
        body = (await answer_of(service, reader, path="/metrics", body=b"")).body.decode()
        told = series(text_metrics(body))
        return told["api_keys_age_seconds",], told["api_key_usage_age_seconds",]

    read, written = await ages()
    assert 0 <= read < 60
    assert written == float("inf")  # it has not begun to
    await store.flush()
    _, before = await ages()
    with patch.object(store._queries, "write", side_effect=StoreUnavailableError("read-only")):
        await store.flush()
    failed_at = time.monotonic()
    _, after = await ages()
    assert before < after
    await store.refresh()
    await store.flush()
    read, written = await ages()
    assert max(read, written) <= time.monotonic() - failed_at


# Several processes.


def scraped(server: Replica, key: str) -> dict[Series, float]:
    answer = httpx.get(f"http://127.0.0.1:{server.port}/metrics", headers={API_KEY_HEADER: key})
    assert answer.status_code == 200, answer.text
    return series(text_metrics(answer.text))


def processes(folder: Path) -> set[int]:
    """Those that have counted anything."""
    return {int(path.stem.partition("_")[2]) for path in folder.glob("counter_*.db")}


def counted_by(process: int, requests: float, folder: Path) -> None:
    counted = MmapedDict(f"{folder}/counter_{process}.db")
    counted.write_value(mmap_key("api_requests", "api_requests_total", [], [], ""), requests, 0.0)
    counted.close()


def test_sums_are_exact_over_workers_and_no_death_takes_anything_back(
    key_service: KeyService, tmp_path: Path
) -> None:
    folder = tmp_path / "made" / "at the start"
    issued = key_service.create("caller", ["metrics:read"], actor="test")
    probe = ("api_requests_total", "GET", PROBE, "200")
    seconds = ("api_request_seconds_count", PROBE)
    workers = Replica("--workers", "2", PROMETHEUS_MULTIPROC_DIR=f"{folder}")

    def call(times: int) -> int:
        line = Line(workers.port)
        served = sum(line.request(issued.key) == 200 for _ in range(times))
        line.close()
        return served

    with started(workers), ThreadPoolExecutor(4) as threads:
        workers.until(200, issued.key)
        begun, calls = scraped(workers, issued.key), 0
        while calls < 400 or len(processes(folder)) < 2:
            calls += sum(threads.map(call, [25] * 4))
            assert calls < 100_000
        told = scraped(workers, issued.key)
        assert (told[probe] - begun[probe], told[seconds] - begun[seconds]) == (calls, calls)
        served = ("api_key_requests_total", issued.id, "served")
        assert told[served] - begun[served] == calls + 1  # who asked before

        dead = min(processes(folder))
        os.kill(dead, signal.SIGKILL)
        give_up_at = time.monotonic() + PATIENCE
        while len(processes(folder)) < 3:  # until another one is at work in its place
            assert time.monotonic() < give_up_at
            with suppress(httpx.TransportError):  # where the dead one was to answer
                before, told = told, scraped(workers, issued.key)
                assert told[probe] >= before[probe]
        assert told[probe] - begun[probe] >= calls
        before = scraped(workers, issued.key)
        assert sum(threads.map(call, [25] * 4)) == 100
        assert scraped(workers, issued.key)[probe] - before[probe] == 100


SEVERAL = "One of several processes is asked for all: set PROMETHEUS_MULTIPROC_DIR"


def test_one_of_several_that_knows_only_itself_says_so(key_service: KeyService) -> None:
    key = key_service.create("caller", ["metrics:read"], actor="test").key
    workers = Replica("--workers", "2")
    with started(workers):
        workers.until(200, key)
        headers = {API_KEY_HEADER: key}
        answer = httpx.get(f"http://127.0.0.1:{workers.port}/metrics", headers=headers)
    assert (answer.status_code, answer.json()) == (503, {"detail": SEVERAL})


async def test_so_does_one_of_gunicorn(
    client_with: Callable[..., httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reader = client_with("metrics:read")
    monkeypatch.setitem(sys.modules, "gunicorn", sys)
    monkeypatch.setattr("app.metrics.os.getppid", lambda: 0)  # whose children nobody knows
    answer = await reader.get("/metrics")
    assert (answer.status_code, answer.json()) == (503, {"detail": SEVERAL})
    (tmp_path / "metrics").mkdir()
    monkeypatch.setenv(metrics.FOLDER, f"{tmp_path}/metrics")
    answer = await reader.get("/metrics")
    assert set(series(text_metrics(answer.text))) == {
        ("api_keys_age_seconds",),
        ("api_key_usage_age_seconds",),
    }


@pytest.mark.parametrize(
    ("script", "count", "is_one_of_several"),
    [("sleep 60; true", 1, False), ("sleep 60 & sleep 60; true", 2, True)],
)
def test_the_children_of_the_server_are_counted(
    monkeypatch: pytest.MonkeyPatch, script: str, count: int, is_one_of_several: bool
) -> None:
    monkeypatch.setattr("app.metrics.parent_process", lambda: True)
    with subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True) as server:
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
        while len(children.read_text().split()) < count:
            time.sleep(0.01)
        monkeypatch.setattr("app.metrics.os.getppid", lambda: server.pid)
        assert metrics._is_one_of_several() is is_one_of_several
        os.killpg(server.pid, signal.SIGKILL)


ASK_CHILDREN = """
import sys
from multiprocessing import get_context
from app.metrics import _is_one_of_several

def ask(number, asked, all_have):
    asked.put(_is_one_of_several())
    all_have.wait()

if __name__ == "__main__":
    spawn, count = get_context("spawn"), int(sys.argv[1])
    asked, all_have = spawn.Queue(), spawn.Event()
    children = [spawn.Process(target=ask, args=(n, asked, all_have)) for n in range(count)]
    for child in children:
        child.start()
    print([asked.get() for _ in children], flush=True)
    all_have.set()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_worker_that_is_the_only_one_answers_for_all(tmp_path: Path) -> None:
    program = tmp_path / "ask.py"
    program.write_text(ASK_CHILDREN)
    for count in (1, 2):
        result = subprocess.run(
            [sys.executable, f"{program}", f"{count}"],
            env={**os.environ, "PYTHONPATH": f"{ROOT}"},
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        )
        assert result.stdout == f"{[count == 2] * count}\n"


def test_serve_makes_the_folder_that_its_workers_share(tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    service = Service(tmp_path)
    folders = {"TMPDIR": f"{tmp_path}/temporary"}
    with service.serving(workers=2, **folders) as server:
        headers = {API_KEY_HEADER: service.key}
        (folder,) = (tmp_path / "temporary").iterdir()
        calls = 0
        while calls < 20 or len(processes(folder)) < 2:
            assert service.status("/secure-endpoint", **headers) == 200
            calls += 1
        port = service.connect().port
        told = httpx.get(f"http://127.0.0.1:{port}/metrics", headers=headers).text
        counted = series(text_metrics(told))
        assert counted["api_requests_total", "GET", "/secure-endpoint", "200"] == calls
        server.terminate()
        assert server.wait(PATIENCE) == 0
    assert [*(tmp_path / "temporary").iterdir()] == []


def test_a_full_disk_loses_what_is_counted_anew_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, told: Told
) -> None:
    metrics._tell_lost.cache_clear()
    monkeypatch.setattr(metrics, "_AT_ONCE", 0)
    monkeypatch.setenv(metrics.FOLDER, f"{tmp_path}")
    known, new = (RequestRecord("", "GET", route=f"/{uuid4()}", status=200) for _ in range(2))
    metrics.observe(known)
    free = SimpleNamespace(free=metrics.LEAST_FREE - 1)
    with monkeypatch.context() as patched:
        patched.setattr(metrics, "disk_usage", lambda _: free)
        for _ in range(2):
            metrics.observe(known)
            metrics.observe(new)
    assert len(caplog.messages) == 1
    metrics.observe(new)
    counted = {each[2]: value for each, value in told().items() if each[0].endswith("s_total")}
    assert counted == {known.route: 3, new.route: 1}


def test_a_service_lives_on_where_a_disk_is_full(tmp_path: Path) -> None:
    service, folder = Service(tmp_path), tmp_path / "small"
    folder.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", f"{folder}")
    if os.name == "nt" or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        headers = {API_KEY_HEADER: service.key}
        # As a summary of nobody, which holds nothing.
        with (
            service.serving(PROMETHEUS_MULTIPROC_DIR=f"{folder}") as server,
            (folder / "summary_0.db").open("wb", buffering=0) as file,
        ):
            with suppress(OSError):
                while True:
                    file.write(bytes(4096))
            for path in ("/secure-endpoint", "/", "/health/live", "/docs", "/openapi.json") * 3:
                assert service.status(path, **headers) == 200
            assert service.status("/metrics", **headers) == 200
            assert server.poll() is None
        assert service.said.count("is full") == 1
        with service.serving(PROMETHEUS_MULTIPROC_DIR=f"{folder}"):  # it starts again as well
            assert service.status("/secure-endpoint", **headers) == 200
    finally:
        subprocess.run(("umount", "--lazy", f"{folder}"), check=True)


@pytest.mark.skipif(os.name == "nt", reason="Windows lets not everybody make links")
async def test_a_process_that_begins_or_ends_takes_no_sums_away(
    client_with: Callable[..., httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "metrics"
    monkeypatch.setenv(metrics.FOLDER, f"{folder}")
    metrics.prepare()
    counted_by(1, 7.0, folder)
    (folder / "counter_2.db").touch()  # it may be killed just then
    (folder / "gauge_livesum_3.db").symlink_to(folder / "gone")  # listed, and then not there
    answer = await client_with("metrics:read").get("/metrics")
    assert answer.status_code == 200
    assert series(text_metrics(answer.text))["api_requests_total",] == 7


NO_FOLDER = "PROMETHEUS_MULTIPROC_DIR: name a folder for this alone, which the service may write to"


@pytest.mark.parametrize("folder", ["", ".", "file", "file/below"])
def test_a_folder_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / "file").touch()
    (nowhere := tmp_path / "empty").mkdir()
    monkeypatch.chdir(nowhere)
    monkeypatch.setenv(metrics.FOLDER, folder and f"{tmp_path / folder}")
    with pytest.raises(SettingsError) as error:
        metrics.prepare()
    assert f"{error.value}" == NO_FOLDER


def test_a_folder_is_made_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "is" / "made"
    monkeypatch.setenv(metrics.FOLDER, f"{folder}")
    metrics.prepare()
    (folder / "counter_1.db").touch()
    metrics.prepare()
    assert [path.name for path in folder.iterdir()] == ["counter_1.db"]


def test_a_folder_that_cannot_be_used_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").touch()
    monkeypatch.setenv(metrics.FOLDER, f"{tmp_path}")
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(f"{ROOT}/app/main.py")
    assert (ended.value.code, *capsys.readouterr()) == (3, "", f"{NO_FOLDER}\n")
