"""The rule of access: who gets in, and what a caller who does not can learn."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from math import inf
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from fastapi import Depends, FastAPI, Security, WebSocket
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app.auth import Caller, GuardedAPI, GuardedRouter, get_caller
from app.auth.database.clock import DAY
from app.auth.database.engine import connect
from app.auth.database.models import ENV_ID, api_key_events, api_key_servers
from app.auth.errors import ConflictError, InvalidError
from app.auth.key import Key, digest, id_of, new_secret, with_prefix
from app.auth.keys.service import KeyService
from app.auth.store.cache import DatabaseKeyStore
from app.constants import MISSING_KEY_STATUS
from app.policies import make_policies
from app.settings import load_settings
from tests.callers import PROBE, Answer, ask, status_of
from tests.thorough.databases import Backup
from tests.thorough.services import make_service, patient_settings

SPELLINGS: dict[str, Callable[[str], str]] = {
    "canonical": lambda secret: secret,
    "with a prefix": lambda secret: with_prefix(secret, "acme"),
    "with a wrong checksum": lambda secret: with_prefix(secret, "acme")[:-1] + "?",
    "in upper case": lambda secret: secret.upper(),
    "in braces": lambda secret: "{" + secret + "}",
    "without hyphens": lambda secret: secret.replace("-", ""),
    "as a bearer": lambda secret: f"Bearer {secret}",
    "cut short": lambda secret: secret[:-1],
    "with more behind": lambda secret: f"{secret}0",
    "twice in one header": lambda secret: f"{secret}, {secret}",
}


@dataclass
class Clock:
    """Time that passes when it is told to, in the whole service."""

    now: float = field(default_factory=lambda: datetime.now(UTC).timestamp())

    def datetime(self) -> datetime:
        return datetime.fromtimestamp(self.now, UTC)


@contextmanager
def fake_clock() -> Iterator[Clock]:
    clock = Clock()
    with patch("app.auth.database.clock.time", lambda: clock.now):
        yield clock


@pytest.fixture
def clock() -> Iterator[Clock]:
    with fake_clock() as clock:
        yield clock


def never_issued(key_service: KeyService, clock: Clock, env: list[str]) -> str:
    return new_secret()


def in_api_keys(key_service: KeyService, clock: Clock, env: list[str]) -> str:
    return env[0]


def in_api_keys_revoked(key_service: KeyService, clock: Clock, env: list[str]) -> str:
    key_service.revoke(ENV_ID + id_of(digest(env[0].encode())), actor="test")
    return env[0]


def created(key_service: KeyService, clock: Clock, env: list[str]) -> str:
    return key_service.create("key", expires_at=in_two_hours(clock), actor="test").key


def expired(key_service: KeyService, clock: Clock, env: list[str]) -> str:
    secret = created(key_service, clock, env)
    clock.now += 7200
    return secret


def revoked(key_service: KeyService, clock: Clock, env: list[str]) -> str:
    issued = key_service.create("key", actor="test")
    key_service.revoke(issued.id, actor="test")
    return issued.key


def paused(key_service: KeyService, clock: Clock, env: list[str]) -> str:
    issued = key_service.create("key", actor="test")
    key_service.pause(issued.id, actor="test")
    return issued.key


def resumed(key_service: KeyService, clock: Clock, env: list[str]) -> str:
    issued = key_service.create("key", actor="test")
    key_service.pause(issued.id, actor="test")
    key_service.resume(issued.id, actor="test")
    return issued.key


def prolonged(key_service: KeyService, clock: Clock, env: list[str]) -> str:
    issued = key_service.create("key", expires_at=in_two_hours(clock), actor="test")
    later = in_two_hours(clock) + timedelta(hours=1)
    key_service.update(issued.id, lambda _: {"expires_at": later}, actor="test")
    clock.now += 7200
    return issued.key


def shortened(key_service: KeyService, clock: Clock, env: list[str]) -> str:
    issued = key_service.create("key", actor="test")
    end = in_two_hours(clock)
    key_service.update(issued.id, lambda _: {"expires_at": end}, actor="test")
    clock.now += 7200
    return issued.key


def prolonged_while_overlapping(key_service: KeyService, clock: Clock, env: list[str]) -> str:
    """The old secret ends when it was to end, whatever becomes of the key."""
    issued = key_service.create("key", expires_at=in_two_hours(clock), actor="test")
    key_service.rotate(issued.id, overlap=timedelta(hours=48), actor="test")
    key_service.update(issued.id, lambda _: {"expires_at": None}, actor="test")
    clock.now += 7200
    return issued.key


def rotated(key_service: KeyService, clock: Clock, env: list[str]) -> str:
    id = key_service.create("key", actor="test").id
    return key_service.rotate(id, actor="test").key


def in_two_hours(clock: Clock) -> datetime:
    return clock.datetime() + timedelta(hours=2)


def overlapping(key_service: KeyService, clock: Clock, env: list[str]) -> str:
    issued = key_service.create("key", expires_at=in_two_hours(clock), actor="test")
    key_service.rotate(issued.id, overlap=timedelta(hours=1), actor="test")
    clock.now += 3599
    return issued.key


def expired_while_overlapping(key_service: KeyService, clock: Clock, env: list[str]) -> str:
    issued = key_service.create("key", expires_at=in_two_hours(clock), actor="test")
    key_service.rotate(issued.id, overlap=timedelta(days=2), actor="test")
    clock.now += 7200
    return issued.key


def overlapped(key_service: KeyService, clock: Clock, env: list[str]) -> str:
    secret = overlapping(key_service, clock, env)
    clock.now += 1
    return secret


def dropped_old(key_service: KeyService, clock: Clock, env: list[str]) -> str:
    issued = key_service.create("key", actor="test")
    for _ in range(2):
        key_service.rotate(issued.id, drop="old", actor="test")
    return issued.key


def dropped_new(key_service: KeyService, clock: Clock, env: list[str]) -> str:
    id = key_service.create("key", actor="test").id
    secret = key_service.rotate(id, actor="test").key
    key_service.rotate(id, drop="new", actor="test")
    return secret


def within_its_bounds(key_service: KeyService, clock: Clock, env: list[str]) -> str:
    bounds = {"networks": ["10.0.0.0/8", "127.0.0.1"], "limits": ["99/second", "99/month"]}
    return key_service.create("key", restrictions=bounds, actor="test").key


def from_elsewhere(key_service: KeyService, clock: Clock, env: list[str]) -> str:
    bounds = {"networks": ["10.0.0.0/8"]}
    return key_service.create("key", restrictions=bounds, actor="test").key


def restricted_by_what_nothing_enforces(
    key_service: KeyService, clock: Clock, env: list[str]
) -> str:
    part = SimpleNamespace(name="tides", parse=list)  # gone when the key is used
    with patch.object(key_service, "policies", [part]):
        return key_service.create("key", restrictions={"tides": ["low"]}, actor="test").key


STANDINGS: dict[Callable[[KeyService, Clock, list[str]], str], bool] = {
    in_api_keys: True,
    created: True,
    rotated: True,
    overlapping: True,
    resumed: True,
    prolonged: True,
    within_its_bounds: True,
    from_elsewhere: False,
    restricted_by_what_nothing_enforces: False,
    never_issued: False,
    in_api_keys_revoked: False,
    expired: False,
    expired_while_overlapping: False,
    revoked: False,
    paused: False,
    shortened: False,
    prolonged_while_overlapping: False,
    overlapped: False,
    dropped_old: False,
    dropped_new: False,
}


@pytest.mark.parametrize("standing", STANDINGS, ids=lambda standing: standing.__name__)
async def test_access_if_and_only_if_all_conditions_hold(
    service: GuardedAPI,
    key_service: KeyService,
    clock: Clock,
    secrets: list[str],
    standing: Callable[[KeyService, Clock, list[str]], str],
) -> None:
    secret = standing(key_service, clock, secrets)
    await service.keys.lookup(b"")  # it has been at work before
    for spelling, spell in SPELLINGS.items():
        for copies in (0, 1, 2):
            status = await status_of(service, *[spell(secret).encode()] * copies)
            right = copies == 1 and spelling in ("canonical", "with a prefix")
            granted = right and STANDINGS[standing]
            assert status == (200 if granted else MISSING_KEY_STATUS), (spelling, copies)


async def test_two_different_valid_keys_are_one_too_many(
    service: FastAPI, secrets: list[str]
) -> None:
    assert await status_of(service, *map(str.encode, secrets)) == MISSING_KEY_STATUS


async def test_a_key_that_api_keys_no_longer_names_ends(
    database_url: sa.URL, secrets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for named, status in ((secrets, 200), (secrets[1:], MISSING_KEY_STATUS), (secrets, 200)):
        monkeypatch.setenv("API_KEYS", ",".join(named))
        service = make_service(patient_settings())
        assert await status_of(service, secrets[0].encode()) == status


async def test_a_key_of_api_keys_that_was_paused_or_narrowed_stays_so_whoever_names_it(
    key_service: KeyService, secrets: list[str], ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key_service.pause(ids[0], actor="test")
    key_service.update(ids[1], lambda _: {"scopes": ["a"]}, force=True, actor="test")
    for named in (secrets, [], secrets):
        monkeypatch.setenv("API_KEYS", ",".join(named))
        service = make_service(patient_settings())
        is_named = bool(named)
        for secret, expected in zip(secrets, (MISSING_KEY_STATUS, 200), strict=True):
            status = await status_of(service, secret.encode())
            assert status == (expected if is_named else MISSING_KEY_STATUS)
        status = await status_of(service, secrets[1].encode(), path="/api-keys")
        assert status == (403 if is_named else MISSING_KEY_STATUS)
    key_service.resume(ids[0], actor="test")
    assert await status_of(make_service(patient_settings()), secrets[0].encode()) == 200


async def test_a_managed_key_that_api_keys_names_too_stays_what_it_is(
    key_service: KeyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued = key_service.create("key", ["a"], actor="test")
    monkeypatch.setenv("API_KEYS", issued.key)
    for status in (200, MISSING_KEY_STATUS):
        service = make_service(patient_settings())
        assert await status_of(service, issued.key.encode()) == status
        assert await status_of(service, issued.key.encode(), path="/api-keys") != 200
        key_service.revoke(issued.id, actor="test")


# Scopes.


def with_scopes(service: FastAPI) -> None:
    def needs(*scopes: str) -> Callable[..., object]:
        def dependency(caller: Annotated[Key, Security(get_caller, scopes=scopes)]) -> None: ...

        return dependency

    inner = GuardedRouter(dependencies=[Security(get_caller, scopes=["router"])])

    @inner.get("/read", dependencies=[Security(get_caller, scopes=["reports:read"])])
    async def read() -> str:
        return "You have access!"

    @inner.get("/nested", dependencies=[Depends(needs("nested", "reports:read"))])
    async def nested(caller: Caller) -> str:
        return "You have access!"

    @inner.websocket("/ws")
    async def websocket(
        websocket: WebSocket, _: Annotated[Key, Security(get_caller, scopes=["reports:read"])]
    ) -> None:
        await websocket.accept()

    service.include_router(inner, prefix="/r", dependencies=[Depends(needs("include"))])


@pytest.mark.parametrize(
    ("path", "held", "missing"),
    [
        ("/r/read", ["*"], None),
        ("/r/read", ["include", "router", "reports:read"], None),
        ("/r/read", ["include", "router", "reports:*"], None),
        ("/r/read", ["include", "router", "reports:write"], "reports:read"),
        ("/r/read", ["include", "router", "reports"], "reports:read"),
        ("/r/read", ["include", "reports:*"], "router"),
        ("/r/read", ["router", "reports:*"], "include"),
        ("/r/nested", ["include", "router", "reports:*"], "nested"),
        ("/r/nested", ["include", "nested", "router", "reports:*"], None),
        ("/r/ws", ["include", "router", "reports:read"], None),
        ("/r/ws", ["include", "router"], "reports:read"),
        ("/r/ws", ["router", "reports:read"], "include"),
    ],
)
async def test_a_caller_needs_every_scope_that_is_asked_for(
    service: GuardedAPI, key_service: KeyService, path: str, held: list[str], missing: str | None
) -> None:
    with_scopes(service)
    secret = key_service.create("key", held, actor="test").key.encode()

    if path == "/r/ws":
        extensions: dict[str, Any] = {"websocket.http.response": {}}
        sent = await ask(service, secret, path=path, type="websocket", extensions=extensions)
        assert isinstance(sent, list)
        start = "websocket.http.response.start" if missing else "websocket.accept"
        assert sent[0]["type"] == start
        assert await ask(service, secret, path=path, type="websocket") == (
            [{"type": "websocket.close", "code": 1008, "reason": ""}] if missing else sent
        )
        return
    answer = await ask(service, secret, path=path)
    assert isinstance(answer, Answer)
    assert answer.status == (403 if missing else 200)
    if missing:
        assert answer.body == b'{"detail":"Missing scope: %b"}' % missing.encode()


async def test_a_missing_scope_refuses_before_anything_is_read_or_run(
    service: GuardedAPI, key_service: KeyService
) -> None:
    ran: list[str] = []

    async def dependency() -> None:
        ran.append("dependency")

    router = GuardedRouter(dependencies=[Depends(dependency)])

    @router.post("/items")
    async def create_item(item: dict[str, str]) -> None:
        ran.append("handler")

    needed = Security(get_caller, scopes=["items:write"])
    service.include_router(router, dependencies=[needed])
    secret = key_service.create("key", ["items:read"], actor="test").key.encode()

    # `ask` fails the test if the body is read.
    assert await status_of(service, secret, path="/items", method="POST") == 403
    assert ran == []


def test_scopes_are_in_the_document(service: GuardedAPI) -> None:
    with_scopes(service)
    operation = service.openapi()["paths"]["/r/nested"]["get"]
    (security,) = operation["security"]
    assert set(security["APIKeyHeader"]) == {"include", "router", "nested", "reports:read"}
    assert {"403", "503"} <= set(operation["responses"])


# The whole life of a key.

BEGINNING = datetime(2030, 1, 1, tzinfo=UTC).timestamp()
HERE, ELSEWHERE = "127.0.0.1/32", "10.0.0.0/8"
UPDATES = st.fixed_dictionaries(
    {},
    optional={
        "scopes": st.frozensets(st.sampled_from(["a", "b:*", "keys:manage"])),
        "hours": st.none() | st.integers(-1, 48),  # from now to its end; None for none
        "networks": st.sampled_from([(), (HERE,), (ELSEWHERE,), (ELSEWHERE, HERE)]),
        "owner": st.sampled_from(["", "acme"]),
    },
)
MINUTES = st.one_of(
    st.integers(-10, 10),
    st.integers(-24 * 60, 48 * 60),
    st.sampled_from([-4, 4]).map(lambda years: years * 365 * 24 * 60),
)


@dataclass
class Secret:
    """What ought to be true of one secret. Times are in seconds since the epoch."""

    issued_at: float
    expires_at: float = inf
    has_ended: bool = False  # whatever any clock says


@dataclass
class Model:
    """What ought to be true of one key."""

    id: str
    expires_at: float
    secrets: dict[str, Secret]  # in the order of their issue
    scopes: frozenset[str] = frozenset()
    networks: tuple[str, ...] = ()
    owner: str = ""
    is_paused: bool = False
    is_revoked: bool = False

    def has_ended(self, now: float) -> bool:
        return self.is_revoked or self.expires_at <= now

    def is_active(self, now: float) -> bool:
        return not (self.has_ended(now) or self.is_paused)

    def in_force(self, now: float) -> list[str]:
        valid = (s for s, is_ in self.secrets.items() if not is_.has_ended and is_.expires_at > now)
        return list(valid) if self.is_active(now) else []


def not_before(moments: Iterable[float], now: float) -> float:
    """What counts as the time where clocks have said these moments before, and one says now."""
    return max([now, *(moment for moment in moments if moment <= now + DAY.total_seconds())])


class LifeOfKeys(RuleBasedStateMachine):
    """All that can happen to keys, by any process, against a model of what ought to be true.

    In the database that the settings name; each example begins with no keys in it.
    """

    secrets = Bundle("secrets")  # all that were ever issued
    empty: ClassVar[dict[sa.URL, Backup]] = {}
    latest: float  # what the service knows of the time

    @initialize(target=secrets)
    def start(self) -> str:
        secret = new_secret()
        hashed = digest(secret.encode())
        # And with so much patience that no busy machine decides it.
        settings = {"api_keys": frozenset([hashed]), "key_max_staleness": 60.0}
        self.settings = load_settings().model_copy(update=settings)
        self.url = self.settings.database_url
        self.empty.setdefault(self.url, Backup(self.url)).restore()
        self.ending = ExitStack()
        self.runner = self.ending.enter_context(asyncio.Runner())
        # The service is on one machine, and the command line on another.
        self.server_time = self.command_time = BEGINNING
        self.is_commanding = False
        self.ending.enter_context(patch("app.auth.database.clock.time", self.time))
        self.key_service = KeyService(self.settings, make_policies(self.settings))
        self.key_service.engine = connect(self.url, pooled=True)
        self.ending.callback(self.key_service.engine.dispose)
        self.open_service()
        secrets, scopes = {secret: Secret(BEGINNING)}, frozenset("*")
        in_api_keys = Model(ENV_ID + id_of(hashed), inf, secrets, scopes)
        self.models = {secret: in_api_keys}  # of those that the database knows, by their secrets
        self.issued = [secret]
        self.backups: list[tuple[Backup, dict[str, Model]]] = []
        return secret

    def teardown(self) -> None:
        self.ending.close()

    # Time.

    def time(self) -> float:
        return self.command_time if self.is_commanding else self.server_time

    def moments(self) -> list[float]:
        """What the database knows of it."""
        events = api_key_events.c
        latest = sa.select(events.at).order_by(events.id.desc()).limit(100)
        seen = sa.select(api_key_servers.c.seen_at)
        with self.key_service.engine.begin() as connection:
            moments = [*connection.scalars(latest), *connection.scalars(seen)]
        return [moment.timestamp() for moment in moments]

    def look_at_the_clock(self) -> float:
        """What counts as now for the service, as any of its calls would ask."""
        known = not_before([self.latest], self.server_time)
        told = not_before([self.latest, *self.moments()], self.server_time)
        self.latest = self.store._clock.now()
        assert self.latest in (known, told)
        return self.latest

    @contextmanager
    def command(self) -> Iterator[float]:
        """In another process, which shares nothing with the service but the database: its now."""
        self.is_commanding = True
        try:
            yield not_before(self.moments(), self.command_time)
        finally:
            self.is_commanding = False

    @rule(server=MINUTES, command=MINUTES)
    def time_passes_or_goes_back(self, server: int, command: int) -> None:
        self.server_time += 60 * server
        self.command_time += 60 * command
        self.look_at_the_clock()

    # The service.

    def open_service(self) -> None:
        self.service = make_service(self.settings)
        assert isinstance(self.service.keys, DatabaseKeyStore)
        self.store = self.service.keys
        self.ending.callback(self.store.close)
        self.runner.run(self.store.refresh())
        self.latest = not_before(self.moments(), self.server_time)
        assert self.store._clock.now() == self.latest

    @rule()
    def write_when_keys_were_used(self) -> None:
        self.runner.run(self.store.flush())

    @rule(is_killed=st.booleans())
    def restart(self, is_killed: bool) -> None:
        if not is_killed:
            self.runner.run(self.store.flush(stopping=True))
        self.store.close()
        self.open_service()

    @rule(secret=secrets, copies=st.integers(0, 2), spell=st.sampled_from([*SPELLINGS.values()]))
    def call(self, secret: str, copies: int, spell: Callable[[str], str]) -> None:
        right = copies == 1 and spell in (SPELLINGS["canonical"], SPELLINGS["with a prefix"])
        granted = right and self.is_in_force(secret, self.refresh())
        if granted and (networks := self.models[secret].networks):
            granted = HERE in networks
        status = self.runner.run(status_of(self.service, *[spell(secret).encode()] * copies))
        assert status == (200 if granted else MISSING_KEY_STATUS)

    @rule()
    def call_with_all(self) -> None:
        now = self.refresh()
        for secret in self.issued:
            found = self.runner.run(self.store.lookup(digest(secret.encode())))
            assert isinstance(found, Key) == self.is_in_force(secret, now)
            if isinstance(found, Key):  # with its rights as they are now
                model, networks = self.models[secret], found.restrictions.get("networks", ())
                assert (found.scopes, found.owner) == (model.scopes, model.owner)
                assert {*networks} == {*model.networks}

    def refresh(self) -> float:
        """What counts as now for the service, which has heard of everything."""
        self.runner.run(self.store.refresh())
        return self.look_at_the_clock()

    def is_in_force(self, secret: str, now: float) -> bool:
        return secret in self.models and secret in self.models[secret].in_force(now)

    # Changes, from the command line. What brings keys adds their models, as `create_key` does.

    @rule(target=secrets, hours=st.none() | st.integers(1, 48))
    def create(self, hours: int | None) -> str:
        return self.create_key(hours)

    def create_key(self, hours: int | None = None) -> str:
        with self.command() as now:
            end = now + hours * 3600 if hours else inf
            expires_at = datetime.fromtimestamp(end, UTC) if hours else None
            issued = self.key_service.create("key", expires_at=expires_at, actor="test")
        self.models[issued.key] = Model(issued.id, end, {issued.key: Secret(now)})
        self.issued.append(issued.key)
        return issued.key

    @rule(
        target=secrets,
        secret=secrets,
        hours=st.integers(0, 48),
        drop=st.sampled_from([None, "old", "new"]),
    )
    def rotate(
        self, secret: str, hours: int, drop: Literal["old", "new"] | None
    ) -> MultipleResults[str]:
        if not (model := self.models.get(secret)):
            return multiple()
        rotate = partial(
            self.key_service.rotate, model.id, overlap=timedelta(hours=hours), drop=drop, actor=""
        )
        with self.command() as now:
            in_force = model.in_force(now)
            ambiguous = len(in_force) == 2 and not drop
            if model.id.startswith(ENV_ID) or not model.is_active(now) or ambiguous:
                with pytest.raises(ConflictError):
                    rotate()
                return multiple()
            issued = rotate()
        if len(in_force) == 2:
            model.secrets[in_force.pop(0 if drop == "old" else 1)].has_ended = True
        for each in in_force:
            ends_at = min(now + hours * 3600, model.expires_at)
            model.secrets[each].expires_at = min(model.secrets[each].expires_at, ends_at)
        self.put_down_what_has_expired(model, now)
        model.secrets[issued.key] = Secret(now)
        self.models[issued.key] = model
        self.issued.append(issued.key)
        return multiple(issued.key)

    def put_down_what_has_expired(self, model: Model, now: float) -> None:
        for secret in model.secrets.values():
            secret.has_ended |= secret.expires_at <= now

    @rule(secret=secrets, which=st.sampled_from(["old", "new"]))
    def drop(self, secret: str, which: Literal["old", "new"]) -> None:
        if not (model := self.models.get(secret)):
            return
        with self.command() as now:
            in_force = model.in_force(now)
            if len(in_force) < 2:
                with pytest.raises(ConflictError):
                    self.key_service.drop(model.id, which, actor="test")
                return
            self.key_service.drop(model.id, which, actor="test")
        self.put_down_what_has_expired(model, now)
        model.secrets[in_force[0 if which == "old" else 1]].has_ended = True

    @contextmanager
    def change(self, model: Model) -> Iterator[float]:
        """A command that a key which has ended refuses; the model changes only without an error."""
        with self.command() as now:
            if model.has_ended(now):
                with pytest.raises(ConflictError, match="create another key"):
                    yield now
            else:
                yield now

    @rule(secret=secrets, update=UPDATES)
    def update(self, secret: str, update: dict[str, Any]) -> None:
        if not (model := self.models.get(secret)):
            return
        with self.change(model) as now:
            fields = {name: update[name] for name in ("scopes", "owner") if name in update}
            if "networks" in update:
                fields["restrictions"] = {"networks": update["networks"]}
            if "hours" in update:
                hours = update["hours"]
                end = inf if hours is None else now + hours * 3600
                fields["expires_at"] = None if hours is None else datetime.fromtimestamp(end, UTC)
                if end <= now and not model.has_ended(now):
                    with pytest.raises(InvalidError, match="in the future"):
                        self.key_service.update(model.id, lambda _: fields, force=True, actor="")
                    return
            self.key_service.update(model.id, lambda _: fields, force=True, actor="test")
            model.scopes = update.get("scopes", model.scopes)
            model.owner = update.get("owner", model.owner)
            model.networks = update.get("networks", model.networks)
            model.expires_at = end if "hours" in update else model.expires_at

    @rule(secret=secrets)
    def pause(self, secret: str) -> None:
        if model := self.models.get(secret):
            with self.change(model):
                self.key_service.pause(model.id, force=True, actor="test")
                model.is_paused = True

    @rule(secret=secrets)
    def resume(self, secret: str) -> None:
        if model := self.models.get(secret):
            with self.change(model):
                self.key_service.resume(model.id, actor="test")
                model.is_paused = False

    @rule(secret=secrets)
    def revoke(self, secret: str) -> None:
        if model := self.models.get(secret):
            with self.command():
                self.key_service.revoke(model.id, force=True, actor="test")
            model.is_revoked = True

    @rule(secret=secrets)
    def revoke_what_was_issued_before(self, secret: str) -> None:
        if not (known := self.models.get(secret)):
            return
        issued_at = known.secrets[secret].issued_at
        with self.command():
            self.key_service.revoke_issued_before(
                datetime.fromtimestamp(issued_at, UTC), force=True, actor="test"
            )
        for model in {model.id: model for model in self.models.values()}.values():
            left = [each for each in model.secrets.values() if not each.has_ended]
            outdated = [each for each in left if each.issued_at < issued_at]
            if outdated and len(outdated) == len(left):
                model.is_revoked = True
            elif not model.is_revoked:
                for each in outdated:
                    each.has_ended = True

    # Another history.

    def count_events(self) -> int:
        with self.key_service.engine.begin() as connection:
            return connection.scalar(sa.select(sa.func.max(api_key_events.c.id))) or 0

    @precondition(lambda self: len(self.backups) < 2)
    @rule()
    def back_up(self) -> None:
        self.backups.append((Backup(self.url), deepcopy(self.models)))

    @precondition(lambda self: self.backups)
    @rule(
        target=secrets,
        backup=st.integers(0, 1),
        another_file=st.booleans(),
        more=st.integers(-2, 2),
    )
    def restore(self, backup: int, another_file: bool, more: int) -> MultipleResults[str]:
        """And change something, until as many events are there as before, or more, or fewer."""
        self.call_with_all()  # so that the service knows them all
        before = self.count_events()
        copy, models = self.backups[min(backup, len(self.backups) - 1)]
        if another_file and self.url.get_backend_name() == "sqlite":
            copy.replace()
        else:
            copy.restore()
        self.models = deepcopy(models)
        lost = before - self.count_events()
        created = [self.create_key() for _ in range(lost + more)]
        self.call_with_all()
        return multiple(*created)


def test_access_follows_the_whole_life_of_keys(database_url: sa.URL) -> None:
    examples = 20 if database_url.get_backend_name() == "sqlite" else 6
    run_state_machine_as_test(
        LifeOfKeys,
        settings=hypothesis_settings(max_examples=examples, stateful_step_count=30),
    )


# What a caller can learn.


async def test_refusals_look_alike_whatever_the_reason(
    service: GuardedAPI,
    key_service: KeyService,
    clock: Clock,
    secrets: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "app")
    valid, unknown = secrets[0].encode(), new_secret().encode()
    standings = (revoked, expired, paused)
    gone, late, resting = (f(key_service, clock, secrets).encode() for f in standings)
    ids = {key.status: key.id for key in key_service.all()}
    callers: dict[str, list[bytes]] = {
        "no key": [],
        f"unknown key ({id_of(digest(unknown))})": [unknown],
        f"revoked key ({ids['revoked']})": [gone],
        f"expired key ({ids['expired']})": [late],
        f"paused key ({ids['paused']})": [resting],
        "not a key": [b"\xe9\x00"],
        "more than one key": [valid, valid],
    }

    same = [(b"x-request-id", b"same")]
    answers = {await ask(service, *sent, headers=same) for sent in callers.values()}

    assert len(answers) == 1
    # Only the log knows better.
    refusals = [message for message in caplog.messages if message.startswith("Refused")]
    for message, reason in zip(refusals, callers, strict=True):
        assert message == f"Refused http {PROBE!r}: {reason}."


async def test_known_and_unknown_keys_cost_the_same_work(
    service: GuardedAPI, key_service: KeyService, clock: Clock, secrets: list[str]
) -> None:
    work = []
    for secret in (secrets[0], new_secret(), revoked(key_service, clock, secrets)):
        with (
            patch("app.auth.access.rule.digest", side_effect=digest) as digests,
            patch.object(service.keys, "lookup", side_effect=service.keys.lookup) as lookups,
        ):
            await status_of(service, secret.encode())
        work.append((digests.call_count, lookups.call_count))
    assert work == [(1, 1)] * 3
