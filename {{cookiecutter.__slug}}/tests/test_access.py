"""The rule of access: who gets in, and what a caller who does not can learn."""

import asyncio
import json
import logging
from collections.abc import Callable
from unittest.mock import patch

import pytest
from fastapi import FastAPI
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

from app.cli import main
from app.constants import MISSING_KEY_STATUS
from app.env_file import EnvKeyStore, edit_secrets
from app.keys import digest, key_of, new_secret
from app.settings import ENV_FILE, load_settings
from tests.servers import PROBE, ask, make_service, status_of

SPELLINGS: dict[str, Callable[[str], str]] = {
    "canonical": lambda secret: secret,
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


@pytest.mark.parametrize("copies", [0, 1, 2])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("standing", ["in force", "revoked", "never issued"])
async def test_access_if_and_only_if_all_conditions_hold(
    service: FastAPI, secrets: list[str], copies: int, spelling: str, standing: str
) -> None:
    secret = new_secret() if standing == "never issued" else secrets[0]
    if standing == "revoked":
        with edit_secrets() as editable:
            editable.remove(secret)

    status = await status_of(service, *[SPELLINGS[spelling](secret).encode()] * copies)

    granted = copies == 1 and spelling == "canonical" and standing == "in force"
    assert status == (200 if granted else MISSING_KEY_STATUS)


async def test_two_different_valid_keys_are_one_too_many(
    service: FastAPI, secrets: list[str]
) -> None:
    assert await status_of(service, *map(str.encode, secrets)) == MISSING_KEY_STATUS


class LifeOfKeys(RuleBasedStateMachine):
    """Every way that `.env` changes while the service runs, against a list of the keys in force."""

    secrets = Bundle("secrets")  # all that were ever issued

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.good_text: str | None = None  # of `.env`, while it is broken

    def teardown(self) -> None:
        self.runner.close()

    @initialize(target=secrets)
    def start(self) -> str:
        first = new_secret()
        ENV_FILE.write_text(f"API_KEYS={first}\n")
        self.in_force = [first]
        self.restart()
        return first

    @rule()
    def restart(self) -> None:
        if self.in_force and not self.good_text:
            self.service = make_service(load_settings())

    @rule(target=secrets)
    def create(self) -> str:
        if secret := self.command("create"):
            self.in_force.append(secret)
        return secret or new_secret()

    @rule(target=secrets, secret=secrets)
    def rotate(self, secret: str) -> str:
        new = self.command("rotate", key_of(secret).id, works=secret in self.in_force)
        if new:
            self.in_force.remove(secret)
            self.in_force.append(new)
        return new or new_secret()

    @rule(secret=secrets)
    def revoke(self, secret: str) -> None:
        self.command("revoke", key_of(secret).id, works=secret in self.in_force)
        if secret in self.in_force and not self.good_text:
            self.in_force.remove(secret)

    @rule()
    def break_the_file(self) -> None:
        if not self.good_text:
            self.good_text = ENV_FILE.read_text()
            ENV_FILE.write_text(f"API_KEYS={'x' * 5},{new_secret()}\n")

    @rule()
    def mend_the_file(self) -> None:
        if self.good_text:
            ENV_FILE.write_text(self.good_text)
            self.good_text = None

    @rule(secret=secrets, copies=st.integers(0, 2), shout=st.booleans())
    def call(self, secret: str, copies: int, shout: bool) -> None:
        spelled = secret.upper() if shout else secret
        status = self.runner.run(status_of(self.service, *[spelled.encode()] * copies))
        granted = copies == 1 and not shout and secret in self.in_force
        assert status == (200 if granted else MISSING_KEY_STATUS)

    @invariant()
    def the_service_looks(self) -> None:
        if hasattr(self, "service"):
            assert isinstance(self.service.keys, EnvKeyStore)
            self.service.keys.look_for_changes()

    def command(self, *arguments: str, works: bool = True) -> str | None:
        result = CliRunner().invoke(main, ["keys", *arguments, "--json"])
        assert result.exit_code == (0 if works and not self.good_text else 1)
        return json.loads(result.stdout).get("key") if result.exit_code == 0 else None


def test_access_follows_every_change_to_the_keys() -> None:
    run_state_machine_as_test(
        LifeOfKeys,
        settings=hypothesis_settings(max_examples=25, stateful_step_count=25, deadline=None),
    )


async def test_refusals_look_alike_whatever_the_reason(
    service: FastAPI, secrets: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")
    revoked, valid = (secret.encode() for secret in secrets)
    with edit_secrets() as editable:
        editable.remove(secrets[0])
    unknown = new_secret()
    callers: dict[str, list[bytes]] = {
        "no key": [],
        f"unknown key {key_of(unknown).id}": [unknown.encode()],
        f"unknown key {key_of(secrets[0]).id}": [revoked],
        "not a key": [b"\xe9\x00"],
        "more than one key": [valid, valid],
    }

    answers = {await ask(service, *sent) for sent in callers.values()}

    assert len(answers) == 1
    # Only the log knows better.
    refusals = [message for message in caplog.messages if message.startswith("Refused")]
    for message, reason in zip(refusals, callers, strict=True):
        assert message == f"Refused http {PROBE!r}: {reason}."


async def test_known_and_unknown_keys_cost_the_same_work(
    service: FastAPI, secrets: list[str]
) -> None:
    work = []
    for secret in (secrets[0], new_secret()):
        with (
            patch("app.security.digest", side_effect=digest) as digests,
            patch.object(
                EnvKeyStore, "find", autospec=True, side_effect=EnvKeyStore.find
            ) as lookups,
        ):
            await status_of(service, secret.encode())
        work.append((digests.call_count, lookups.call_count))
    assert work == [(1, 1), (1, 1)]
