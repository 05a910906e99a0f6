"""Finds keys that need attention, and gives advice."""

import os
import shutil
import subprocess
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute

from app.auth.access.dependencies import scopes_of
from app.auth.access.routers import GuardedRouter
from app.auth.database import clock
from app.auth.database.engine import transaction
from app.auth.database.models import ENV_ID
from app.auth.key import Key
from app.auth.keys.service import MANAGE, KeyService
from app.auth.keys.views import KeyView
from app.auth.usage.anomalies import Finding, examine_usage

UNUSED = timedelta(days=7)  # after its creation
EXPIRING = timedelta(days=14)  # before its end
ROTATION = timedelta(days=90)  # the age at which a secret should be rotated


def diagnose(service: KeyService, routes: Sequence[BaseRoute]) -> list[Finding]:
    """The findings about the keys, the clocks, and how the keys are used."""
    now = clock.Clock()
    with transaction(service.engine) as connection:
        now.learn(clock.moments(connection))
    moment = datetime.fromtimestamp(now.now(), UTC)
    known = [key for key in service.all() if service.is_named(key.id)]
    enforced = [policy.name for policy in service.policies]
    findings = examine(known, scopes_asked_for(routes), moment, now.ahead, enforced)
    with transaction(service.engine) as connection:
        return [*findings, *examine_usage(connection, known, moment)]


def scopes_asked_for(routes: Sequence[BaseRoute]) -> set[str]:
    """The scopes that endpoints and routers ask for, also in mounted applications."""
    found: set[str] = set()
    for context in iter_route_contexts(routes):
        if isinstance(dependant := getattr(context, "dependant", None), Dependant):
            found.update(scopes_of(dependant))
    for route in routes:
        for inner in (getattr(route, "original_router", None), getattr(route, "app", None)):
            if isinstance(inner, GuardedRouter):  # its routes may have no dependencies
                found.update(inner.scopes)
            found |= scopes_asked_for(getattr(inner, "routes", ()))
    return found


def examine(
    keys: Iterable[KeyView],
    asked_for: Collection[str],
    now: datetime,
    ahead: str = "",
    enforced: Collection[str] = (),
) -> list[Finding]:
    """The findings about active keys. `ahead` is a future time that a wrong clock has written, in
    words; `enforced` are the names of the restrictions that policies enforce."""
    keys = [key for key in keys if key.status == "active"]
    findings = [
        Finding(id=key.id, name=key.name, problem=problem, advice=advice)
        for key in keys
        if not key.id.startswith(ENV_ID)
        for problem, advice in _problems(key, asked_for, now, enforced)
    ]
    return [*_of_all(keys, now, ahead), *findings]


def examine_file(file: Path) -> Iterator[Finding]:
    """Findings about `.env`: it holds keys, so only its owner may read it, and git must not."""
    if not file.is_file():
        return
    if os.name != "nt" and file.stat().st_mode & 0o077:
        yield Finding(
            id="", name="", problem=f"others may read {file.name}", advice=f"chmod 600 {file}"
        )
    if (git := shutil.which("git")) and _is_known_to(git, file):
        advice = f"git rm --cached {file.name}, and revoke the keys in it"
        yield Finding(id="", name="", problem=f"git knows {file.name}", advice=advice)


def _is_known_to(git: str, file: Path) -> bool:
    command = [git, "ls-files", "--error-unmatch", file.name]
    return subprocess.run(command, cwd=file.parent, capture_output=True).returncode == 0  # noqa: S603


def _of_all(keys: Sequence[KeyView], now: datetime, ahead: str) -> Iterator[Finding]:
    managers = [key for key in keys if _holds(key, MANAGE)]
    ends = [key.expires_at for key in managers if key.expires_at]
    if managers and len(ends) == len(managers) and max(ends) < now + EXPIRING:
        advice = "create a key that may manage keys and has no end"
        yield Finding(
            id="", name="", problem=f"no manager after {max(ends):%Y-%m-%d}", advice=advice
        )
    if ahead:
        yield Finding(id="", name="", problem=f"a clock has said {ahead}", advice="set the clocks")


def _problems(
    key: KeyView, asked_for: Collection[str], now: datetime, enforced: Collection[str]
) -> Iterator[tuple[str, str]]:
    if unenforced := sorted(key.restrictions.keys() - set(enforced)):
        yield (
            f"refused, for nothing here enforces its {', '.join(unenforced)}",
            "install the part that does, or revoke the key",
        )
    if not key.last_used_at and key.created_at < now - UNUSED:
        yield "never used", "revoke it if nobody has it"
    if key.expires_at and key.expires_at < now + EXPIRING:
        yield f"expires on {key.expires_at:%Y-%m-%d}", "create another key and move its caller"
    if key.issued_at < now - ROTATION:
        yield f"not rotated since {key.issued_at:%Y-%m-%d}", "rotate it"
    if "*" in key.scopes:
        yield "too many scopes: all there are", "create a key with the ones that it needs"
    elif unasked := [scope for scope in key.scopes if not _is_of_use(scope, asked_for)]:
        yield f"scopes that no endpoint asks for: {' '.join(unasked)}", "create a key without them"


def _holds(key: KeyView, scope: str) -> bool:
    return Key(key.id, key.name, frozenset(key.scopes)).covers(scope)


def _is_of_use(scope: str, asked_for: Collection[str]) -> bool:
    return any(Key("", "", frozenset([scope])).covers(asked) for asked in asked_for)
