"""What is unusual about how keys are used is found, and what is usual is not."""

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from app.auth.database import clock
from app.auth.database.engine import transaction
from app.auth.database.models import (
    api_key_networks,
    api_key_refusals,
    api_key_secrets,
    api_key_usage,
    api_keys,
    metadata,
)
from app.auth.key import digest, id_of, new_secret
from app.auth.keys.service import KeyService
from app.auth.keys.views import KeyView
from app.auth.store.cache import DatabaseKeyStore
from app.auth.usage.counts import add
from app.auth.usage.findings import MAX_REFUSALS, Finding, examine_usage, remember
from app.settings import load_settings
from tests.thorough.commands import keys, run
from tests.thorough.services import make_service

NOW = datetime(2026, 5, 30, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def connection() -> Iterator[sa.Connection]:
    engine = sa.create_engine("sqlite://")
    metadata.create_all(engine)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def a_key(connection: sa.Connection, id: str = "key", **more: Any) -> tuple[KeyView, bytes]:
    secret = digest(new_secret().encode())
    made = {"created_by": "test", "created_at": NOW - 90 * DAY}
    connection.execute(sa.insert(api_keys).values(id=id, name=id, scopes="", **made))
    row = {"digest": secret, "key_id": id, "created_at": NOW}
    connection.execute(sa.insert(api_key_secrets).values(row))
    told = dict.fromkeys(
        ("expires_at", "paused_at", "revoked_at", "old_key_expires_at", "old_key_last_used_at"),
        None,
    )
    times = {"issued_at": NOW, "last_used_at": NOW}
    lists: dict[str, Any] = {"scopes": [], "restrictions": {}}
    view = {
        "id": id,
        "name": id,
        "owner": "",
        "note": "",
        **lists,
        "status": "active",
        **made,
        **told,
        **times,
    }
    return KeyView.model_validate({**view, **more}), secret


def use(
    connection: sa.Connection, secret: bytes, ago: timedelta, served: int = 0, refused: int = 0
) -> None:
    when = (NOW - ago).replace(minute=0)
    row = {"digest": secret, "starts_at": when, "hours": 1, "served": served, "refused": refused}
    add(connection, api_key_usage, [row])


def found(connection: sa.Connection, *keys: KeyView, now: datetime = NOW) -> list[str]:
    return [each.problem for each in examine_usage(connection, keys, now)]


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"last_used_at": NOW - 29 * DAY}, ""),
        ({"last_used_at": NOW - 31 * DAY}, "silent for 30 days"),
        ({"last_used_at": None}, ""),  # `keys doctor` has another word for it
        ({"last_used_at": NOW - 31 * DAY, "status": "revoked"}, ""),
        (
            {"old_key_expires_at": NOW + 5 * HOUR, "old_key_last_used_at": NOW - HOUR / 2},
            "its old secret is still in use, and ends within six hours",
        ),
        ({"old_key_expires_at": NOW + 7 * HOUR, "old_key_last_used_at": NOW - HOUR / 2}, ""),
        ({"old_key_expires_at": NOW + 5 * HOUR, "old_key_last_used_at": NOW - 2 * HOUR}, ""),
        ({"old_key_expires_at": NOW + 5 * HOUR, "old_key_last_used_at": None}, ""),
    ],
)
def test_what_a_key_tells(connection: sa.Connection, more: dict[str, Any], problem: str) -> None:
    key, _ = a_key(connection, **more)
    assert found(connection, key) == ([problem] if problem else [])


@pytest.mark.parametrize(("age", "is_unusual"), [(6 * DAY, False), (8 * DAY, True)])
def test_a_new_key_has_no_habits_to_break(
    connection: sa.Connection, age: timedelta, is_unusual: bool
) -> None:
    key, secret = a_key(connection, created_at=NOW - age)
    use(connection, secret, HOUR, 5000)
    rows = [
        {"digest": secret, "starts_at": NOW.replace(hour=0), "network": f"{number}"}
        for number in range(50)
    ]
    connection.execute(sa.insert(api_key_networks), rows)
    assert len(found(connection, key)) == 2 * is_unusual


@pytest.mark.parametrize(
    ("before", "lately", "is_unusual"),
    [(200, 2001, True), (200, 1999, False), (0, 1001, True), (0, 999, False), (50, 900, False)],
)
def test_a_sudden_multiple_of_its_own_rate(
    connection: sa.Connection, before: int, lately: int, is_unusual: bool
) -> None:
    key, secret = a_key(connection)
    use(connection, secret, 20 * DAY, before)
    use(connection, secret, 40 * DAY, 10 * lately)  # too long ago to tell
    use(connection, secret, 2 * HOUR, lately)
    assert bool(found(connection, key)) is is_unusual


def test_what_is_refused_is_found_by_key_and_by_network(connection: sa.Connection) -> None:
    (one, first), (other, second) = a_key(connection, "one"), a_key(connection, "other")
    use(connection, first, HOUR, refused=100)
    use(connection, second, HOUR, refused=99)
    row = {"starts_at": NOW - HOUR, "hours": 1, "reason": "no key"}
    for network, refused in (("192.0.2.0/24", MAX_REFUSALS), ("198.51.100.0/24", MAX_REFUSALS - 1)):
        add(connection, api_key_refusals, [{**row, "network": network, "refused": refused}])
    assert found(connection, one, other) == [
        "refused 100 times in a day for want of a scope",
        "1000 requests or more without a key from 192.0.2.0/24 in a day",
    ]
    assert found(connection, one, other, now=NOW + 2 * DAY) == []


def use_from(connection: sa.Connection, secret: bytes, ago: timedelta, networks: int) -> None:
    day = (NOW - ago).replace(hour=0)
    row = {"digest": secret, "starts_at": day}
    rows = [{**row, "network": f"10.0.{number}.0/24"} for number in range(networks)]
    connection.execute(sa.insert(api_key_networks), rows)


@pytest.mark.parametrize(
    ("before", "lately", "is_unusual"),
    [
        (4, 13, True),
        (4, 12, False),
        (0, 11, True),
        (0, 10, False),
        (3, 10, False),
        (50, 100, False),
    ],
)
def test_use_from_far_more_networks_than_before(
    connection: sa.Connection, before: int, lately: int, is_unusual: bool
) -> None:
    key, secret = a_key(connection)
    use(connection, secret, HOUR, 1)
    use_from(connection, secret, 40 * DAY, 100)  # too long ago to tell
    if before:
        use_from(connection, secret, 5 * DAY, before)
    use_from(connection, secret, HOUR, lately)
    problem = "used from three times as many networks as on any day of a month"
    assert found(connection, key) == [problem] * is_unusual


def test_networks_of_an_evening_are_not_forgotten_at_midnight(connection: sa.Connection) -> None:
    key, secret = a_key(connection)
    use(connection, secret, 13 * HOUR, 1)
    use_from(connection, secret, 13 * HOUR, 11)
    assert len(found(connection, key)) == 1
    assert len(found(connection, key, now=NOW - 13 * HOUR)) == 1
    assert found(connection, key, now=NOW + DAY) == []


# In the log.


def test_what_is_unusual_is_told_when_it_begins_and_once(connection: sa.Connection) -> None:
    def finding(id: str, problem: str) -> Finding:
        return Finding(id=id, name=id, problem=problem, advice="ask")

    one, other = finding("one", "busy"), finding("", "1000 requests")
    assert remember(connection, [one, other], NOW) == [other, one]
    assert remember(connection, [one, other], NOW) == []
    assert remember(connection, [one, finding("one", "silent")], NOW) == [finding("one", "silent")]
    assert remember(connection, [], NOW) == []
    assert remember(connection, [one], NOW) == [one]  # it begins again


async def test_of_several_servers_one_says_it(
    key_service: KeyService, database_url: sa.URL, caplog: pytest.LogCaptureFixture
) -> None:
    stores = [make_service(load_settings()).keys for _ in range(2)]
    issued = key_service.create("key", ["a:b"], actor="test")
    gone = key_service.create("gone", ["a:b"], actor="test")
    key_service.revoke(gone.id, actor="test")
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    row = {"starts_at": now, "hours": 1, "served": 0, "refused": 100}
    with transaction(key_service.engine, write=True) as connection:
        for each in (issued, gone):
            add(connection, api_key_usage, [{**row, "digest": digest(each.key.encode())}])
    for _ in range(2):
        for store in stores:
            assert isinstance(store, DatabaseKeyStore)
            store.usage._notice_at = 0.0
            await store.flush()
    (said,) = [each for each in caplog.records if each.message.startswith("Unusual")]
    assert said.levelname == "WARNING"
    problem = "refused 100 times in a day for want of a scope"
    assert said.message == (
        f"Unusual ({issued.id}): {problem}; its owner tries what it may not; see the log."
    )
    assert vars(said).items() >= {"key_id": issued.id, "problem": problem}.items()


async def test_keys_that_api_keys_no_longer_names_are_nobodys(
    key_service: KeyService,
    database_url: sa.URL,
    secrets: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key_service.import_env_keys()
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    row = {"starts_at": now, "hours": 1, "served": 0, "refused": 100}
    with transaction(key_service.engine, write=True) as connection:
        for secret in secrets:
            add(connection, api_key_usage, [{**row, "digest": digest(secret.encode())}])
    monkeypatch.setenv("API_KEYS", secrets[0])
    store = make_service(load_settings()).keys
    assert isinstance(store, DatabaseKeyStore)
    await store.flush()
    said = [each for each in caplog.messages if each.startswith("Unusual")]
    assert len(said) == 1
    assert id_of(digest(secrets[0].encode())) in said[0]


# Who cries wolf is not listened to.

Load = Callable[[random.Random, datetime], int]
WORKING_HOURS = range(8, 18)


def people(chance: random.Random, at: datetime) -> int:
    """Busy in working hours, with some days twice as busy as others."""
    busy = at.weekday() < 5 and at.hour in WORKING_HOURS
    return round(chance.gauss(300 if busy else 5, 60 if busy else 5))


def batches(chance: random.Random, at: datetime) -> int:
    """Once a night; once a week ten times as much."""
    return (40_000 if at.weekday() == 6 else 4_000) if at.hour == 3 else 0


def machines(chance: random.Random, at: datetime) -> int:
    """Day and night, and more and more of them."""
    return round(chance.gauss(2_000 + 50 * at.day, 200))


def bursts(chance: random.Random, at: datetime) -> int:
    """Now and then somebody tries something out."""
    return chance.randint(0, 900) if chance.random() < 0.02 else 0


def test_in_a_usual_month_nobody_cries_wolf(connection: sa.Connection) -> None:
    """Sixty keys, a month to learn and a month to watch, looked at every day."""
    chance = random.Random(1)  # noqa: S311
    loads = [people, batches, machines, bursts] * 15
    all_keys = [a_key(connection, f"key-{number}") for number in range(len(loads))]
    start = NOW - 60 * DAY
    rows = [
        {"digest": secret, "starts_at": at, "hours": 1, "served": count, "refused": 0}
        for (_, secret), load in zip(all_keys, loads, strict=True)
        for hour in range(60 * 24)
        if (count := max(0, load(chance, at := start + hour * HOUR)))
    ]
    connection.execute(sa.insert(api_key_usage), rows)
    # People call from where they happen to be, machines from where they are.
    networks = [
        {"digest": secret, "starts_at": start.replace(hour=0) + day * DAY, "network": f"{number}"}
        for (_, secret), load in zip(all_keys, loads, strict=True)
        for day in range(60)
        for number in range(max(1, round(chance.gauss(12, 4))) if load is people else 1)
    ]
    connection.execute(sa.insert(api_key_networks), networks)
    views = [view for view, _ in all_keys]
    cries = {
        (problem, (start + day * DAY).date())
        for day in range(30, 60)
        for problem in found(connection, *views, now=start + day * DAY)
    }
    assert cries == set()
    # And the thief, on any of those days, is seen: ten times what the key has ever done.
    seen = 0
    for number, (view, secret) in enumerate(all_keys[:4]):
        use(connection, secret, 2 * HOUR, served=500_000)
        seen += view.id in {each.id for each in examine_usage(connection, views, NOW)}
        assert seen == number + 1


@pytest.mark.usefixtures("service")
def test_the_doctor_tells_of_it(key_service: KeyService) -> None:
    issued = key_service.create("key", ["a:b"], actor="test")
    secret = digest(issued.key.encode())
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    row = {"digest": secret, "starts_at": now, "hours": 1, "served": 0, "refused": 100}
    with transaction(key_service.engine, write=True) as connection:
        add(connection, api_key_usage, [row])
    with transaction(key_service.engine) as connection:
        findings = [*examine_usage(connection, key_service.all(), clock.now(connection))]
    assert [each.id for each in findings] == [issued.id]
    result = run("keys", "doctor")
    assert result.exit_code == 1
    assert "refused 100 times in a day" in result.stdout
    assert keys("usage", issued.id)["refused"] == 100
