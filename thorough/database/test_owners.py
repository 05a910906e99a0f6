"""Whose a key is: in an endpoint, in reports, and in the log and in metrics if asked for."""

import json
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app import metrics
from app.auth import Caller, GuardedAPI, GuardedRouter
from app.settings import load_settings
from tests.callers import answer_of
from tests.metrics.test_metrics import samples
from tests.thorough.commands import keys, run
from tests.thorough.services import make_service

START = Callable[..., GuardedAPI]


async def endpoint(caller: Caller) -> str:
    return caller.owner


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, database_url: Any) -> START:
    def started(**settings: str) -> GuardedAPI:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        api, router = make_service(load_settings()), GuardedRouter()
        router.add_api_route("/x", endpoint)
        api.include_router(router)
        return api

    return started


def made(*options: str) -> dict[str, Any]:
    key: dict[str, Any] = keys("create", "x", *options)
    return key


async def test_an_endpoint_knows_whose_key_calls(start: START) -> None:
    api = start()
    for options, owner in (["--owner", "acme"], "acme"), ([], ""):
        answer = await answer_of(api, made(*options)["key"].encode(), path="/x")
        assert json.loads(answer.body) == owner


@pytest.mark.parametrize("shown", [False, True])
async def test_lines_and_metrics_name_owners_if_asked_for(
    start: START, caplog: pytest.LogCaptureFixture, shown: bool
) -> None:
    api = start(SHOW_OWNERS=f"{shown}")
    caplog.set_level(logging.INFO, "app.requests")
    ours, theirs = made("--owner", "acme"), made()
    watcher = made("--scope", "metrics:read")
    transport = httpx.ASGITransport(api)
    headers = {"api-key": watcher["key"]}
    async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers) as it:
        before = await samples(it)
        for _ in range(2):
            await answer_of(api, ours["key"].encode(), path="/x")
        await answer_of(api, theirs["key"].encode(), path="/x")
        after = await samples(it)
    ends = [record.getMessage().partition("ms, ")[2] for record in caplog.records]
    of_acme, nobodys = f"key {ours['id']}" + " of acme" * shown, f"key {theirs['id']}"
    assert ends[1:4] == [of_acme, of_acme, nobodys]
    owners = [getattr(record, "owner", "") for record in caplog.records]
    assert owners[1:4] == (["acme", "acme", ""] if shown else [""] * 3)
    sample = ("api_owner_requests_total", "served", "acme")
    assert after.get(sample, 0) - before.get(sample, 0) == 2 * shown


def test_beyond_a_thousand_owners_the_rest_counts_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "_known_owners", {f"{number}" for number in range(1_000)})
    metrics._add_owner("one too many", "served")(1)
    labels = [sample.labels["owner"] for sample in next(iter(metrics._owners.collect())).samples]
    assert "others" in labels
    assert "one too many" not in labels


def test_usage_and_lists_are_of_one_owner_if_asked_for(start: START) -> None:
    start()
    ours, theirs = made("--owner", "acme"), made("--owner", "acmee")
    assert [key["id"] for key in keys("list", "--owner", "acme")] == [ours["id"]]
    assert keys("list", "--owner", "") == []
    usage = keys("usage", "--owner", "acme")
    assert (usage["strangers"], usage["strangers_refused"]) == ([], 0)
    assert theirs["id"] not in run("keys", "usage", "--owner", "acme").output
