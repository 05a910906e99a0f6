"""What Prometheus is told, and that no caller can add to it."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app import metrics
from app.auth import GuardedAPI
from app.auth.errors import SettingsError
from app.auth.key import new_secret
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS
from tests.callers import PROBE

ClientWith = Callable[..., httpx.AsyncClient]


async def samples(client: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    """By the name, and the values of its labels in the order of their names."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_only_a_key_with_the_scope_sees_them(
    client: httpx.AsyncClient, client_with: ClientWith
) -> None:
    assert (await client.get("/metrics")).status_code == MISSING_KEY_STATUS
    assert (await client_with("other").get("/metrics")).status_code == 403
    assert (await client_with("metrics:read").get("/metrics")).status_code == 200


async def test_requests_and_uses_of_keys_are_counted(
    service: GuardedAPI, client: httpx.AsyncClient, client_with: ClientWith
) -> None:
    watcher, caller = client_with("metrics:read"), client_with()
    before = await samples(watcher)
    for _ in range(3):
        assert (await caller.get(PROBE)).status_code == 200
    assert (await client.get(PROBE)).status_code == MISSING_KEY_STATUS
    after, keys = await samples(watcher), service.state.key_service.all()

    def grown(*sample: str) -> float:
        return after.get(sample, 0) - before.get(sample, 0)

    assert grown("api_requests_total", "GET", PROBE, "200") == 3
    assert grown("api_requests_total", "GET", PROBE, str(MISSING_KEY_STATUS)) == 1
    assert grown("api_request_seconds_count", PROBE) == 3
    assert grown("api_key_refusals_total", "no key") == 1
    assert [grown("api_key_requests_total", each.id, "served") for each in keys].count(3) == 1
    assert after["api_keys_age_seconds",] >= 0


async def test_a_caller_makes_no_series(client: httpx.AsyncClient, client_with: ClientWith) -> None:
    watcher = client_with("metrics:read")
    known = {API_KEY_HEADER: new_secret()}
    for _ in range(2):  # the first answer is a series of its own
        await client.request("BREW", "/nothing/at/first", headers=known)
        before = await samples(watcher)
    for number in range(5):
        headers = {API_KEY_HEADER: new_secret(), "User-Agent": f"agent {number}"}
        await client.request(f"BREW{number}", f"/nothing/{number}", headers=headers)
    assert (await samples(watcher)).keys() == before.keys()


async def test_a_child_process_does_not_speak_for_all(
    monkeypatch: pytest.MonkeyPatch, client_with: ClientWith
) -> None:
    monkeypatch.setattr(metrics, "_is_one_of_several", lambda: True)
    answer = await client_with("metrics:read").get("/metrics")
    assert answer.status_code == 503
    assert metrics.FOLDER in answer.json()["detail"]


def test_a_folder_with_other_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(metrics.FOLDER, f"{tmp_path / 'new'}")
    metrics.prepare()
    (tmp_path / "new" / "keys.db").touch()
    with pytest.raises(SettingsError, match=metrics.FOLDER):
        metrics.prepare()
