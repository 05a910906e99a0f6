"""The rule of access: who gets in, and what a caller who does not can learn."""

import asyncio
import json
import logging
from collections.abc import Callable
from unittest.mock import patch

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from typer.testing import CliRunner

from app.auth import GuardedAPI
from app.auth.config import sources
from app.auth.key import digest, id_of, new_secret, with_prefix
from app.auth.store.env_file import edit_keys
from app.auth.store.env_store import EnvKeyStore
from app.cli import main
from app.constants import MISSING_KEY_STATUS
from app.settings import load_settings
from tests.callers import PROBE, ask, status_of
from tests.thorough.services import make_service

SPELLINGS: dict[str, Callable[[str], str]] = {
    "canonical": lambda secret: secret,
    "with a prefix": lambda secret: with_prefix(secret, "acme"),
    "with a prefix in upper case": lambda secret: with_prefix(secret, "acme").upper(),
    "with another prefix": lambda secret: f"b{with_prefix(secret, 'acme')}",
    "in upper case": lambda secret: secret.upper(),
    "in braces": lambda secret: "{" + secret + "}",
    "without hyphens": lambda secret: secret.replace("-", ""),
    "as a URN": lambda secret: f"urn:uuid:{secret}",
    "as a bearer": lambda secret: f"Bearer {secret}",
    "quoted": lambda secret: f'"{secret}"',
    "cut short": lambda secret: secret[:-1],
    "with more behind": lambda secret: f"{secret}0",
    "twice in one header": lambda secret: f"{secret}, {secret}",
}


def end(secret: str) -> None:
    edit_keys(lambda listed: [key for key in listed if key != secret])


@pytest.mark.parametrize("copies", [0, 1, 2])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("standing", ["in force", "revoked", "never issued"])
async def test_access_if_and_only_if_all_conditions_hold(
    service: GuardedAPI, secrets: list[str], copies: int, spelling: str, standing: str
) -> None:
    secret = new_secret() if standing == "never issued" else secrets[0]
    if standing == "revoked":
        end(secret)

    status = await status_of(service, *[SPELLINGS[spelling](secret).encode()] * copies)

    known = spelling in ("canonical", "with a prefix")
    granted = copies == 1 and known and standing == "in force"
    assert status == (200 if granted else MISSING_KEY_STATUS)


async def test_two_different_valid_keys_are_one_too_many(
    service: GuardedAPI, secrets: list[str]
) -> None:
    assert await status_of(service, *map(str.encode, secrets)) == MISSING_KEY_STATUS


class LifeOfKeys(RuleBasedStateMachine):
    """Every way that `.env` changes while the service runs, against lists of what it says."""

    secrets = Bundle("secrets")  # all that were ever issued

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.good: list[str] = []  # the list when it was last read without a fault
        self.named: list[str] = []  # what can be read in it now
        self.state = "good"  # or "broken", or "missing"

    def teardown(self) -> None:
        self.runner.close()

    @initialize(target=secrets)
    def start(self) -> str:
        first = new_secret()
        self.write([first])
        self.restart()
        return first

    def write(self, keys: list[str], *behind: str) -> None:
        sources.ENV_FILE.write_text(f"API_KEYS={','.join([*keys, *behind])}\n")
        self.named = keys
        self.state = "broken" if behind else "good"
        if not behind:
            self.good = keys

    @rule()
    def restart(self) -> None:
        if self.state == "good" and self.good:
            self.service = make_service(load_settings())

    @rule(target=secrets)
    def create(self) -> str:
        listed = [] if self.state == "missing" else self.good
        if secret := self.command("create"):
            self.good = self.named = [*listed, secret]
            self.state = "good"
        return secret or new_secret()

    @rule(target=secrets, secret=secrets)
    def rotate(self, secret: str) -> str:
        new = self.command("rotate", id_of(digest(secret.encode())), of=secret)
        if new:
            self.good = self.named = [*(key for key in self.good if key != secret), new]
        return new or new_secret()

    @rule(secret=secrets)
    def revoke(self, secret: str) -> None:
        self.command("revoke", id_of(digest(secret.encode())), of=secret)
        if self.state == "good":
            self.good = self.named = [key for key in self.good if key != secret]

    @rule(kept=st.sets(st.integers(0, 3)), added=secrets)
    def break_the_list(self, kept: set[int], added: str) -> None:
        """By hand: some keys go, one that may have ended comes, and a typo."""
        self.write([*(key for n, key in enumerate(self.named) if n in kept), added], "oops")

    @rule()
    def mend_the_list(self) -> None:
        self.write(self.named)

    @rule()
    def remove_the_file(self) -> None:
        sources.ENV_FILE.unlink(missing_ok=True)
        self.state = "missing"

    @rule(secret=secrets, copies=st.integers(0, 2), shout=st.booleans())
    def call(self, secret: str, copies: int, shout: bool) -> None:
        spelled = secret.upper() if shout else secret
        status = self.runner.run(status_of(self.service, *[spelled.encode()] * copies))
        known = not shout and secret in self.named and secret in self.good
        if copies == 1 and self.state == "missing":
            assert status == 503
        else:
            assert status == (200 if copies == 1 and known else MISSING_KEY_STATUS)

    @invariant()
    def the_service_looks(self) -> None:
        if hasattr(self, "service"):
            reachable = self.runner.run(self.service.keys.is_reachable())
            assert reachable == (self.state != "missing")

    def command(self, *arguments: str, of: str | None = None) -> str | None:
        result = CliRunner().invoke(main, ["keys", *arguments, "--json"])
        works = self.state == "good" and of in [None, *self.good]
        works = works or (self.state == "missing" and of is None)
        assert result.exit_code == (0 if works else 1), result.output
        return json.loads(result.stdout).get("key") if works else None


def test_access_follows_every_change_to_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.auth.cli.commands.wait_for_servers", lambda: None)
    run_state_machine_as_test(
        LifeOfKeys, settings=hypothesis_settings(max_examples=25, stateful_step_count=25)
    )


async def test_refusals_look_alike_whatever_the_reason(
    service: GuardedAPI, secrets: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")
    revoked, valid = (secret.encode() for secret in secrets)
    end(secrets[0])
    unknown = new_secret().encode()
    callers: dict[str, list[bytes]] = {
        "no key": [],
        f"unknown key ({id_of(digest(unknown))})": [unknown],
        f"unknown key ({id_of(digest(revoked))})": [revoked],
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


async def test_unknown_and_revoked_keys_cost_the_same_work(
    service: GuardedAPI, secrets: list[str]
) -> None:
    end(secrets[0])
    work = []
    for secret in (secrets[0], new_secret()):
        with (
            patch("app.auth.access.rule.digest", side_effect=digest) as digests,
            patch.object(service.keys, "cached", side_effect=service.keys.cached) as recalls,
            patch.object(service.keys, "lookup", side_effect=service.keys.lookup) as lookups,
        ):
            await status_of(service, secret.encode())
        work.append([mock.call_count for mock in (digests, recalls, lookups)])
    assert work == [[1, 1, 1], [1, 1, 1]]


async def test_a_valid_key_costs_one_digest_and_no_look_at_the_file(
    service: GuardedAPI, secrets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.auth.store.env_file.MAX_AGE", 3600.0)
    assert await status_of(service, secrets[0].encode()) == 200
    with (
        patch("app.auth.access.rule.digest", side_effect=digest) as digests,
        patch.object(EnvKeyStore, "lookup") as lookups,
    ):
        assert await status_of(service, secrets[0].encode()) == 200
    assert (digests.call_count, lookups.call_count) == (1, 0)
