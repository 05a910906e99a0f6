"""`/console` of a generated service, in a real browser: `make browser`."""

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from tests.browser import HOST, new_page, watched
from tests.project import ROOT, Project, get, render, run

pytestmark = [pytest.mark.slow, pytest.mark.browser]

SERVER = ("uv", "run", "--no-sync", "uvicorn", "app.main:app", "--port", "{port}")
NAME = "Name who uses it"  # what the field is called

# What the keys of PAST are asked for, so that the doctor has little to say.
ROUTES = """

for scope in ("invoices:read", "orders:read", "orders:write", "profile:read", "reports:read"):

    @guarded.get(f"/{scope.replace(':', '/')}", dependencies=[require(scope)])
    async def endpoint() -> None: ...
"""
# Keys as they are after two weeks of work: weekdays are busier than weekends, and days than nights.
PAST = """
from datetime import UTC, datetime, timedelta
from math import pi, sin

import sqlalchemy as sa

from app.auth.usage import counts as usage
from app.auth.database.engine import transaction
from app.auth.database.models import api_key_refusals, api_key_secrets, api_key_usage
from app.auth.keys.service import open_service
from app.settings import load_settings

service = open_service(load_settings(), migrate=True)
now = datetime.now(UTC)
hour = now.replace(minute=0, second=0, microsecond=0)


def make(name, *scopes, ends=None):
    ends = ends and now + timedelta(days=ends)
    return service.create(name, scopes, expires_at=ends, actor="cli:ada").id


def week(at, number):
    of_day = 0.55 + 0.45 * sin((at.hour - 8) / 24 * 2 * pi)
    uneven = 1 + (at.day * 31 + at.hour * 17 + number * 7) % 23 / 60
    return of_day * (0.35 if at.weekday() > 4 else 1) * uneven


keys = [  # and the requests of a busy hour, and how many of them are refused
    (make("billing", "invoices:*"), 400, 0),
    (make("web shop", "orders:*", ends=75), 2500, 0),
    (make("nightly report", "reports:read", ends=9), 40, 0),
    (make("Hafen & S\u00f6hne", "orders:read", ends=200), 120, 16),
    (make("mobile app", "orders:read", "profile:*"), 1400, 2),
    (make("ops on call", "keys:manage"), 6, 0),
    (make("importer", "orders:write"), 30, 0),
]
service.rotate(keys[0][0], overlap=timedelta(hours=30), actor="cli:ada")
service.revoke(keys[-1][0], actor="cli:grace")
for (id, _, _), owner in zip(keys, ("finance", "shop", "finance", "Hafen & S\u00f6hne")):
    service.update(id, lambda key: {"owner": owner}, actor="cli:ada")
with transaction(service.engine, write=True) as connection:
    for number, (id, busy, refused) in enumerate(keys):
        secret = api_key_secrets.c
        digests = connection.scalars(sa.select(secret.digest).where(secret.key_id == id)).all()
        ended = 90 if id == keys[-1][0] else 0
        hours = [hour - timedelta(hours=each) for each in range(ended, 14 * 24)]
        rows = [
            {
                **{"digest": digests[at.hour % len(digests)], "starts_at": at, "hours": 1},
                **{"served": int(busy * week(at, number)), "refused": int(refused * week(at, 3))},
            }
            for at in hours
        ]
        usage.add(connection, api_key_usage, rows)
        last = sa.update(api_key_secrets).where(secret.key_id == id)
        used_at = now - timedelta(hours=ended, minutes=2 + 45 * number)
        connection.execute(last.values(last_used_at=used_at))
    strangers = [
        ("203.0.113.0/24", "no key", 15),
        ("198.51.100.0/24", "unknown key", 3),
        ("2001:db8:7::/48", "not a key", 1),
    ]
    for network, reason, count in strangers:
        rows = [
            {
                **{"network": network, "reason": reason, "starts_at": at, "hours": 1},
                "refused": int(count * week(at, 5) + 0.5),
            }
            for at in hours
        ]
        usage.add(connection, api_key_refusals, rows)
"""
MANY = """
from datetime import UTC, datetime
from hashlib import sha256

import sqlalchemy as sa

from app.auth.database.engine import transaction
from app.auth.database.models import api_key_events, api_key_secrets, api_keys
from app.auth.keys.service import open_service
from app.settings import load_settings

now = datetime.now(UTC)
keys = [
    {"id": f"{n:016x}", "name": f"client {n}", "scopes": "", "created_by": "x", "created_at": now}
    for n in range(10_000)
]
secrets = [
    {"digest": sha256(key["id"].encode()).digest(), "key_id": key["id"], "created_at": now}
    for key in keys
]
with transaction(open_service(load_settings(), migrate=True).engine, write=True) as connection:
    connection.execute(sa.insert(api_keys), keys)
    connection.execute(sa.insert(api_key_secrets), secrets)
    latest = connection.scalar(sa.select(sa.func.max(api_key_events.c.id))) or 0
    event = {"at": now, "stamp": b"8 random", "action": "created", "actor": "x"}
    events = [{**event, "id": id, "key_id": key["id"]} for id, key in enumerate(keys, latest + 1)]
    connection.execute(sa.insert(api_key_events), events)
"""


@dataclass(frozen=True)
class Service(Project):
    """A generated service that runs."""

    url: str

    def console(self, prefix: str = "", host: str = HOST) -> str:
        return f"http://{host}:{urlsplit(self.url).port}{prefix}/console"

    def status(self, key: str) -> int:
        return get(f"{self.url}/secure-endpoint", {"api-key": key})[0]

    def create(self, name: str, *scopes: str) -> dict[str, Any]:
        options = [option for scope in scopes for option in ("--scope", scope)]
        made: dict[str, Any] = self.manage_keys("create", name, *options)
        return made


@pytest.fixture(scope="module")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    answers = {"management": "yes", "limits": "yes"}
    project = render(template, tmp_path_factory.mktemp("console"), answers)
    routes = project.read("app/routes.py")
    routes = re.sub(r"(?m)^(from app\.auth import .*)$", r"\1, require", routes)
    (project.path / "app/routes.py").write_text(routes + ROUTES, "utf-8")
    project.run("uv", "sync", "--quiet", "--no-dev")
    return project


@pytest.fixture(scope="module")
def service(project: Project) -> Iterator[Service]:
    project.run("uv", "run", "--no-sync", "python", "-c", PAST)
    with project.serving(*SERVER, "--root-path", "/shop") as url:
        yield Service(project.path, url)


@pytest.fixture
def page() -> Iterator[Page]:
    with new_page(viewport={"width": 1280, "height": 900}) as page:
        yield page


def unlock(page: Page, address: str, key: str) -> None:
    page.goto(address)
    page.get_by_label("Key", exact=True).fill(key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Lock", exact=True)).to_be_visible()


def click(page: Page, name: str, role: Literal["button", "link"] = "button") -> None:
    page.get_by_role(role, name=name, exact=True).first.click()


def open_key(page: Page, name: str) -> None:
    page.get_by_role("table", name="Keys").get_by_role("link", name=name, exact=True).click()
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Revoke")).to_be_visible()


def keep_secret(page: Page) -> str:
    """The one that is shown; it is gone when the dialog is closed."""
    dialog = page.get_by_role("dialog", name="The secret of")
    secret = dialog.locator("code").inner_text()
    dialog.get_by_role("button", name="I have kept it").click()
    expect(dialog).to_have_count(0)
    expect(page.locator("body")).not_to_contain_text(secret)
    assert not shows(page, secret)
    return secret


def shows(page: Page, text: str) -> bool:
    """Anywhere: in the text, in an attribute, in a field, in the address."""
    fields = page.evaluate("[...document.querySelectorAll('input')].map((field) => field.value)")
    return text in page.content() or text in page.url or text in "".join(fields)


def waited(page: Page) -> None:
    """The dialog says so until the change holds on every server, and stays meanwhile."""
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("status")).to_have_text("Waiting until every server follows…")
    page.keyboard.press("Escape")
    expect(dialog).to_be_visible()


def test_what_was_used_is_drawn_and_told(service: Service, page: Page) -> None:
    unlock(page, service.console(), service.keys[0])
    used = next(key for key in service.manage_keys("usage")["keys"] if key["name"] == "mobile app")
    row = page.get_by_role("row", name="mobile app")
    label = row.get_by_role("img").get_attribute("aria-label") or ""
    assert re.fullmatch(r"[\d,]+ requests in 14 days, [\d,]+ of them served", label)
    assert row.get_by_role("img").locator("> *").count() == 14
    expect(page.locator("#findings")).to_contain_text("expires on")
    expect(page.locator("#strangers tr").first).to_contain_text("203.0.113.0/24")
    show(page)

    open_key(page, "mobile app")
    told = page.locator("#totals dd")
    expect(told).to_have_text([f"{used['served']:,}", f"{used['refused']:,}", "0"])
    assert page.locator(".bars > *").count() == 7 * 24 + 1
    hours = {}
    for days, unit in (("24 hours", 25), ("31 days", 32), ("90 days", 91)):
        page.get_by_label("Of how many days").select_option(days)
        expect(page.locator(".bars > *")).to_have_count(unit)
        hours[days] = int(told.first.inner_text().replace(",", ""))
    assert hours["24 hours"] < used["served"] < hours["31 days"] == hours["90 days"]
    page.get_by_text("As a table").click()
    rows = page.get_by_role("table", name="Usage by time").locator("tbody tr")
    served = [text.replace(",", "") for text in rows.locator("td:nth-of-type(1)").all_inner_texts()]
    assert sum(map(int, served)) == hours["90 days"]


def show(page: Page) -> None:
    """Keep a picture, as `docs/console.png` is one: of the page as it is seen without scrolling."""
    pages = page.get_by_role("navigation").bounding_box()
    assert pages
    page.set_viewport_size({"width": 1280, "height": int(pages["y"] + pages["height"]) + 24})
    folder = ROOT / ".cache"
    folder.mkdir(exist_ok=True)
    page.screenshot(path=folder / "console.png")


def test_the_life_of_a_key(service: Service, page: Page) -> None:
    complaints = watched(page, "/shop")
    manager = service.keys[0]
    unlock(page, service.console("/shop"), manager)

    click(page, "New key")
    page.get_by_label(NAME).fill("warehouse")
    page.get_by_label("Scopes optional").fill("orders:read  reports:read")
    page.get_by_label("Ends optional").fill("2040-12-31T23:59")
    click(page, "Make it")
    click(page, "Copy")  # which a browser lets no page do that came without TLS
    expect(page.get_by_role("dialog").get_by_role("status")).to_contain_text("Selected")
    first = f"{page.evaluate('getSelection().toString()')}".strip()
    assert keep_secret(page) == first
    assert service.status(first) == 200
    expect(page.get_by_role("heading", name="warehouse")).to_be_focused()
    facts = page.locator("#facts")
    expect(facts).to_contain_text("orders:read reports:read")
    expect(facts).to_contain_text("31 Dec 2040, 23:59")

    click(page, "Rotate")
    page.get_by_label("The present secret ends").select_option("in an hour")
    page.get_by_role("dialog").get_by_role("button", name="Rotate").click()
    second = keep_secret(page)
    assert [service.status(key) for key in (first, second)] == [200, 200]
    expect(facts).to_contain_text("Old secret ends")

    click(page, "Rotate")  # while two are in force
    page.get_by_role("dialog").get_by_role("button", name="Rotate").click()
    expect(page.get_by_role("dialog")).to_be_visible()  # for it wants to know which one to drop
    page.get_by_label("The old one").check()
    page.get_by_role("dialog").get_by_role("button", name="Rotate").click()
    waited(page)
    third = keep_secret(page)
    assert [service.status(key) for key in (first, second, third)] == [403, 200, 200]

    click(page, "Rotate")
    page.get_by_label("The new one, for it got lost").check()
    page.get_by_label("Only end it").check()
    expect(page.get_by_label("The present secret ends")).to_be_hidden()
    page.get_by_role("dialog").get_by_role("button", name="Rotate").click()
    waited(page)
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert [service.status(key) for key in (second, third)] == [200, 403]

    click(page, "Revoke")
    dialog = page.get_by_role("dialog", name="Revoke “warehouse”?")
    expect(dialog.get_by_role("button", name="Keep it")).to_be_focused()
    dialog.get_by_role("button", name="Revoke warehouse").click()
    waited(page)
    expect(page.locator("#status")).to_have_text("revoked")
    expect(page.get_by_role("button", name="Revoke")).to_have_count(0)
    assert service.status(second) == 403
    events = page.get_by_role("table", name="What was done to the key").locator("td:first-of-type")
    expect(events).to_have_text(["revoked", "dropped new", "rotated", "rotated", "created"])

    # The key is in the memory of this page, and nowhere else.
    assert not shows(page, manager)
    kept = "[localStorage.length, sessionStorage.length, document.cookie]"
    assert page.evaluate(kept) == [0, 0, ""]
    assert page.context.cookies() == []
    assert complaints == []
    click(page, "Lock")
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    page.reload()
    expect(page.get_by_label("Key", exact=True)).to_have_value("")
    expect(page.get_by_role("button", name="Lock", exact=True)).to_have_count(0)
    assert complaints == []


def test_a_key_is_changed_paused_and_resumed(service: Service, page: Page) -> None:
    complaints = watched(page)
    bounds = ["--scope", "reports:read", "--limit", "9/minute"]
    bounds += ["--expires-at", "2040-12-31T23:59:59"]
    made = service.manage_keys("create", "kiosk", *bounds)
    unlock(page, service.console(), service.keys[0])
    open_key(page, "kiosk")
    facts, status = page.locator("#facts"), page.locator("#status")
    expect(status).to_have_text("active")
    expect(page.get_by_role("button", name="Resume")).to_have_count(0)

    click(page, "Change")
    dialog = page.get_by_role("dialog", name="Change “kiosk”")
    expect(dialog.get_by_label("Scopes optional")).to_have_value("reports:read")
    dialog.get_by_label("Scopes optional").fill("reports:read orders:read")
    dialog.get_by_label("Owner optional").fill("acme")
    dialog.get_by_label("Note optional").fill("at the <b>entrance</b>")
    click(page, "Change it")
    waited(page)
    for fact in ("orders:read reports:read", "Owneracme", "Noteat the <b>entrance</b>"):
        expect(facts).to_contain_text(fact)
    now = service.manage_keys("show", made["id"])
    assert now["expires_at"] == "2040-12-31T23:59:59Z"  # what nobody has typed stays
    assert now["limits"] == ["9/minute"]

    click(page, "Change")
    for label in ("Note optional", "Ends optional", "Limits optional"):
        dialog.get_by_label(label).fill("")
    click(page, "Change it")
    expect(facts).to_contain_text("Endsnever")
    expect(facts).not_to_contain_text("Limits")
    expect(facts).not_to_contain_text("Note")

    click(page, "Pause")
    click(page, "Pause kiosk")
    waited(page)
    expect(status).to_have_text("paused")
    expect(facts).to_contain_text("Paused")
    assert service.status(made["key"]) == 403
    expect(page.get_by_role("button", name="Rotate")).to_have_count(0)
    click(page, "Resume")
    click(page, "Resume kiosk")
    waited(page)
    expect(status).to_have_text("active")
    assert service.status(made["key"]) == 200
    events = page.get_by_role("table", name="What was done to the key")
    expect(events.locator("td:first-of-type")).to_have_text(
        ["resumed", "paused", "updated", "updated", "created"]
    )
    expect(events).to_contain_text('scopes: ["reports:read"] → ["orders:read","reports:read"]')
    expect(events).to_contain_text("owner: “” → “acme”")
    click(page, "All keys", "link")
    expect(page.get_by_role("row", name="kiosk")).to_contain_text("acme")
    assert complaints == []


def test_a_key_of_an_owner_shows_the_keys_of_this_owner(service: Service, page: Page) -> None:
    of = ("--owner", "beta")
    own = service.manage_keys("create", "beta's page", "--scope", "keys:own", *of)
    service.manage_keys("create", "beta's shop", *of)
    unlock(page, service.console(), own["key"])
    expect(page.locator("#keys th a")).to_have_text(["beta's page", "beta's shop"])
    expect(page.locator("#findings")).to_have_text("")
    click(page, "New key")
    page.get_by_label(NAME).fill("beta's till")
    click(page, "Make it")
    keep_secret(page)
    expect(page.locator("#facts")).to_contain_text("Ownerbeta")
    for billing in service.manage_keys("list"):
        if billing["name"] == "billing":
            page.goto(f"{service.console()}#{billing['id']}")
    expect(page.locator("#message")).to_contain_text("No key has the id")
    service.manage_keys("revoke", own["id"])


def test_limits_and_networks_hold_and_are_shown(service: Service, page: Page) -> None:
    unlock(page, service.console(), service.keys[0])
    click(page, "New key")
    page.get_by_label(NAME).fill("metered")
    page.get_by_label("Limits optional").fill("2/hour 50000/month")
    page.get_by_label("Networks optional").fill("127.0.0.0/8, 2001:db8::7")
    click(page, "Make it")
    near = keep_secret(page)
    facts = page.locator("#facts")
    expect(facts).to_contain_text("Limits2/hour, 50000/month")
    expect(facts).to_contain_text("Networks127.0.0.0/8, 2001:db8::7/128")
    assert [service.status(near) for _ in range(5)] == [200, 200, 429, 429, 429]

    click(page, "All keys", "link")
    click(page, "New key")
    page.get_by_label(NAME).fill("elsewhere")
    page.get_by_label("Networks optional").fill("192.0.2.0/24")
    click(page, "Make it")
    far = keep_secret(page)
    expect(facts).to_contain_text("Networks192.0.2.0/24")
    expect(facts).not_to_contain_text("Limits")
    assert service.status(far) == 403

    def used() -> bool:
        """Written down a few seconds later."""
        told = service.manage_keys("usage")["keys"]
        return any(key["name"] == "metered" and key["limited"] == 3 for key in told)

    give_up_at = time.monotonic() + 30
    while not used():
        assert time.monotonic() < give_up_at
        time.sleep(0.5)
    click(page, "All keys", "link")
    expect(page.locator("#totals")).to_contain_text("Over a limit3")
    open_key(page, "metered")
    expect(page.locator("#totals dd")).to_have_text(["2", "0", "3"])
    chart = page.get_by_role("img", name="2 served, 0 refused, 3 limited")
    expect(chart.locator(".limited")).to_have_count(1)
    expect(page.locator("#secrets td")).to_have_text(["yes", "2", "0", "3"])


def test_a_page_that_is_left_is_locked(service: Service, page: Page) -> None:
    unlock(page, service.console(), service.keys[0])
    page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    expect(page.get_by_label("Key", exact=True)).to_be_visible()
    assert not shows(page, "billing")


def test_a_secret_is_copied_where_a_browser_allows_it(service: Service, page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    complaints = watched(page, host="127.0.0.1")
    unlock(page, service.console(host="127.0.0.1"), service.keys[0])
    click(page, "New key")
    page.get_by_label(NAME).fill("copied")
    page.keyboard.press("Enter")
    click(page, "Copy")
    expect(page.get_by_role("dialog").get_by_role("status")).to_have_text("Copied.")
    page.keyboard.press("Escape")  # a slip, which does not lose it
    assert page.evaluate("navigator.clipboard.readText()") == keep_secret(page)
    assert complaints == []


def test_names_that_try_to_be_html_are_text(service: Service, page: Page) -> None:
    complaints = watched(page)
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    names = [
        "<img src=x onerror=alert(1)>",
        "<script>alert(2)</script>",
        "\"'><svg onload=alert(3)>",
        "javascript:alert(4)//${alert(5)}",
    ]
    for name in names:
        service.create(name, "*")  # of which the doctor has something to say
    unlock(page, service.console(), service.keys[0])
    page.get_by_role("searchbox").fill("alert(")
    expect(page.locator("#keys tr")).to_have_count(len(names))
    for name in names:
        open_key(page, name)
        click(page, "Rotate")
        expect(page.get_by_role("dialog", name=f"Rotate “{name}”")).to_be_visible()
        click(page, "Cancel")
        click(page, "Revoke")
        expect(page.get_by_role("button", name=f"Revoke {name}", exact=True)).to_be_visible()
        click(page, "Keep it")
        click(page, "All keys", "link")
    assert page.locator("main img, main script, main svg[onload]").count() == 0
    assert complaints == []
    for name in names:
        (key,) = (key for key in service.manage_keys("list") if key["name"] == name)
        service.manage_keys("revoke", key["id"])


@pytest.mark.parametrize("meanwhile", ["nothing is done", "a key is shown", "a key is made"])
def test_a_key_that_is_revoked_meanwhile_locks_the_page(
    service: Service, page: Page, meanwhile: str
) -> None:
    made = service.create("manager of a moment", "keys:manage")
    page.clock.install()
    unlock(page, service.console(), made["key"])
    expect(page.locator("#keys")).to_contain_text("web shop")
    if meanwhile == "a key is made":
        click(page, "New key")
        page.get_by_label(NAME).fill("never made")
    service.manage_keys("revoke", made["id"])

    if meanwhile == "nothing is done":
        page.clock.fast_forward(30_000)
    elif meanwhile == "a key is shown":
        page.get_by_role("link", name="web shop").first.click()
    else:
        click(page, "Make it")

    said = "Locked: Invalid or missing API Key. The key is forgotten."
    expect(page.locator("#message")).to_have_text(said)
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    assert page.get_by_role("dialog").count() == 0
    for text in (made["key"], "web shop", "billing", "manager of a moment", "never made"):
        assert not shows(page, text)
    expect(page.locator("main > *")).to_have_count(1)


def test_a_key_that_may_not_manage_opens_nothing(service: Service, page: Page) -> None:
    weak = service.create("weak", "reports:read")["key"]
    for key, reason in {
        weak: "Locked: Missing scope: keys:manage. The key is forgotten.",
        "0b0d9a52-6c1c-4f4e-9a53-7f6f1b8f7a11": "Locked: Invalid or missing",  # not-a-key
        "schlüssel 🔑": "No key looks like this.",
    }.items():
        page.goto(service.console())
        page.get_by_label("Key", exact=True).fill(key)
        click(page, "Unlock")
        expect(page.locator("#message")).to_contain_text(reason)
        expect(page.get_by_role("button", name="Lock", exact=True)).to_have_count(0)
        assert not shows(page, key)


def test_what_one_may_not_do_is_said_and_locks_nothing(service: Service, page: Page) -> None:
    manager = service.create("mere manager", "keys:manage")
    unlock(page, service.console(), manager["key"])
    click(page, "New key")
    page.get_by_label(NAME).fill("too much")
    page.get_by_label("Scopes optional").fill("reports:read")
    click(page, "Make it")
    said = page.get_by_role("dialog").get_by_role("status")
    expect(said).to_have_text("Missing scope: reports:read.")
    page.get_by_label("Scopes optional").fill("Reports")
    click(page, "Make it")
    expect(said).to_contain_text("'Reports' is not a scope")
    click(page, "Cancel")
    expect(page.get_by_role("button", name="New key")).to_be_focused()
    expect(page.get_by_role("button", name="Lock", exact=True)).to_be_visible()
    service.manage_keys("revoke", manager["id"])


def test_what_is_no_limit_and_no_network_is_said(service: Service, page: Page) -> None:
    unlock(page, service.console(), service.keys[0])
    click(page, "New key")
    page.get_by_label(NAME).fill("mistyped")
    said = page.get_by_role("dialog").get_by_role("status")
    for label, typed, answer in (
        ("Limits optional", "2/fortnight", "'2/fortnight' is not a limit; write one like"),
        ("Limits optional", "20000/minute", "'20000/minute' is too many: 10000 at most"),
        ("Networks optional", "10.0.0.7/8", "an address within a network; write 10.0.0.0/8."),
        ("Networks optional", "nearby", "'nearby' is no address; write one like 192.0.2.7"),
    ):
        page.get_by_label(label).fill(typed)
        click(page, "Make it")
        expect(said).to_contain_text(answer)
        page.get_by_label(label).fill("")
    click(page, "Cancel")
    page.get_by_role("searchbox").fill("mistyped")
    expect(page.get_by_text("No key has this")).to_be_visible()


def test_a_manager_with_limits_makes_no_key_without_and_is_told_when_to_try_again(
    service: Service, page: Page
) -> None:
    bounds = ("--scope", "keys:manage", "--limit", "60/hour", "--from", "127.0.0.0/8")
    manager = service.manage_keys("create", "bounded manager", *bounds)
    unlock(page, service.console(), manager["key"])
    click(page, "New key")
    page.get_by_label(NAME).fill("as free")
    said = page.get_by_role("dialog").get_by_role("status")
    click(page, "Make it")
    elsewhere = "No key that you manage may be used from elsewhere than yours: 127.0.0.0/8."
    expect(said).to_have_text(elsewhere)
    page.get_by_label("Networks optional").fill("127.0.0.1")
    click(page, "Make it")
    expect(said).to_have_text("No key that you manage may send more than yours: 60/hour.")
    page.get_by_label("Limits optional").fill("60/hour")
    click(page, "Make it")
    assert service.status(keep_secret(page)) == 200
    click(page, "All keys", "link")
    page.get_by_role("searchbox").fill("as free")
    expect(page.locator("#keys")).to_contain_text("as free")

    while service.status(manager["key"]) == 200:
        pass
    page.get_by_role("searchbox").fill("shop")
    over = re.compile(r"^Too many requests: 60/hour\. Try again in (1 hour|(60|59) minutes)\.$")
    expect(page.locator("#message")).to_have_text(over)
    expect(page.get_by_role("button", name="Lock", exact=True)).to_be_visible()
    click(page, "New key")
    page.get_by_label(NAME).fill("too late")
    click(page, "Make it")
    expect(said).to_have_text(over)
    service.manage_keys("revoke", manager["id"])


def test_a_database_out_of_reach_is_said(service: Service, page: Page) -> None:
    unlock(page, service.console(), service.keys[0])
    click(page, "New key")
    page.get_by_label(NAME).fill("waits")
    with closing(sqlite3.connect(service.path / "keys.db")) as busy:
        busy.execute("BEGIN IMMEDIATE")
        click(page, "Make it")
        said = page.get_by_role("dialog").get_by_role("status")
        again = "The keys are out of reach. Try again in 1 second."
        expect(said).to_have_text(again, timeout=30_000)
    click(page, "Make it")
    assert service.status(keep_secret(page)) == 200


def test_the_last_manager_is_revoked_with_a_second_confirmation(
    project: Project, page: Page, tmp_path: Path
) -> None:
    place: Any = {"DATABASE_URL": f"sqlite:///{tmp_path}/last.db"}
    project.run("uv", "run", "--no-sync", project.command, "db", "upgrade", **place)
    last = project.manage_keys("create", "last", "--scope", "keys:manage", **place)
    for key in project.manage_keys("list", **place):
        if key["id"] != last["id"]:
            project.manage_keys("revoke", key["id"], **place)
    with project.serving(*SERVER, **place) as url:
        service = Service(project.path, url)
        unlock(page, service.console(), last["key"])
        open_key(page, "last")
        click(page, "Revoke")
        force = page.get_by_label("Do it all the same")
        expect(force).to_be_hidden()
        click(page, "Revoke last")
        expect(page.get_by_role("dialog").get_by_role("status")).to_contain_text("would be left")
        click(page, "Revoke last")  # which is not enough
        assert service.status(last["key"]) == 200
        force.check()
        click(page, "Revoke last")
        expect(page.locator("#message")).to_contain_text("Locked: Invalid or missing API Key.")
        assert service.status(last["key"]) == 403


def tab_to(page: Page, name: str) -> None:
    """By the keyboard alone."""
    for _ in range(100):
        page.keyboard.press("Tab")
        told = page.evaluate(
            "(document.activeElement.labels?.[0] ?? document.activeElement).textContent"
        )
        if " ".join(told.split()) == name:
            return
    raise AssertionError(f"Tab does not lead to {name}")


def test_the_keyboard_is_enough(service: Service, page: Page) -> None:
    page.goto(service.console())
    page.keyboard.type(service.keys[0])
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Needs attention")).to_be_focused()
    tab_to(page, "New key")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="New key")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_label(NAME)).to_be_focused()
    page.keyboard.type("by keyboard")
    tab_to(page, "Scopes optional, separated by spaces")
    page.keyboard.type("reports:read")
    tab_to(page, "Make it")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Copy")).to_be_focused()
    secret = page.get_by_role("dialog").locator("code").inner_text()
    tab_to(page, "I have kept it")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="by keyboard")).to_be_focused()
    assert service.status(secret) == 200

    tab_to(page, "Revoke")
    page.keyboard.press("Enter")
    tab_to(page, "Revoke by keyboard")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("revoked")
    expect(page.get_by_role("heading", name="by keyboard")).to_be_focused()
    assert service.status(secret) == 403


def visit(page: Page, service: Service) -> Iterator[str]:
    """Everything there is to see, one after the other."""
    page.goto(service.console())
    yield "locked"
    unlock(page, service.console(), service.keys[0])
    expect(page.locator(".spark")).to_have_count(page.locator("#keys tr").count())
    expect(page.locator("#strangers tr")).not_to_have_count(0)
    yield "overview"
    click(page, "New key")
    yield "new key"
    click(page, "Cancel")
    open_key(page, "billing")
    expect(page.locator("#secrets tr")).not_to_have_count(0)
    page.get_by_text("As a table").click()
    yield "key"
    click(page, "Change")
    yield "change"
    click(page, "Cancel")
    click(page, "Pause")
    yield "pause"
    click(page, "Keep it")
    click(page, "Rotate")
    expect(page.get_by_label("The old one")).to_be_focused()
    yield "rotate"
    click(page, "Cancel")
    click(page, "Revoke")
    yield "revoke"
    click(page, "Keep it")


def test_a_phone_scrolls_nothing_sideways(service: Service, page: Page) -> None:
    made = [service.create(letter * 100, f"{letter.lower() * 50}:read") for letter in "WM"]
    for key in made:
        service.manage_keys("update", key["id"], "--owner", "W" * 100, "--note", "w" * 300)
    page.set_viewport_size({"width": 360, "height": 740})
    for view in visit(page, service):
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, view
        for card in page.locator(".card").all():
            widths = card.evaluate("card => [card.scrollWidth, card.clientWidth]")
            assert widths[0] <= widths[1], view
    for key in made:
        service.manage_keys("revoke", key["id"])


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("axe")
    run("npm", "install", "--ignore-scripts", "--no-audit", "axe-core@4", cwd=folder)
    return (folder / "node_modules/axe-core/axe.min.js").read_text("utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_either_theme(service: Service, axe: str, scheme: str) -> None:
    rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    check = "rules => axe.run(document, { runOnly: rules }).then((result) => result)"
    with new_page(color_scheme=scheme, reduced_motion="reduce", bypass_csp=True) as page:
        grounds = set()
        for view in visit(page, service):
            page.evaluate(axe)
            result = page.evaluate(check, rules)
            found = [
                (each["id"], node["html"], node["failureSummary"])
                for each in result["violations"]
                for node in each["nodes"]
            ]
            assert found == [], view
            passed = {each["id"] for each in result["passes"]}
            assert {"color-contrast", "button-name"} <= passed, view
            grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert grounds == {"rgb(246, 247, 248)" if scheme == "light" else "rgb(20, 23, 27)"}


def test_ten_thousand_keys_are_paged_and_searched(
    project: Project, page: Page, tmp_path: Path
) -> None:
    place: Any = {"DATABASE_URL": f"sqlite:///{tmp_path}/many.db"}
    project.run("uv", "run", "--no-sync", "python", "-c", MANY, **place)
    with project.serving(*SERVER, **place) as url:
        complaints = watched(page)
        unlock(page, Service(project.path, url).console(), project.keys[0])
        rows, where = page.locator("#keys tr"), page.locator("#page")
        expect(where).to_have_text("Keys 1 to 25")
        expect(rows.first).to_contain_text("client 0")
        expect(page.locator(".spark")).to_have_count(25)
        next, previous = (page.get_by_role("button", name=name) for name in ("Next", "Previous"))
        expect(previous).to_be_disabled()
        next.dblclick()  # the second one asks for the same page
        expect(where).to_have_text("Keys 26 to 50")
        expect(rows.first).to_contain_text("client 25")
        next.click()
        expect(where).to_have_text("Keys 51 to 75")
        previous.click()
        expect(rows.first).to_contain_text("client 25")

        # Back from a key, the place in the list is kept.
        page.locator("#keys a").first.click()
        click(page, "All keys", "link")
        expect(where).to_have_text("Keys 26 to 50")

        search = page.get_by_role("searchbox")
        search.press_sequentially("CLIENT 999")
        expect(rows).to_have_count(11)  # 999, and 9990 to 9999
        expect(where).to_have_text("Keys 1 to 11")
        expect(next).to_be_disabled()
        search.fill(f"{1234:016x}")
        expect(rows).to_have_count(1)
        expect(rows).to_contain_text("client 1234")
        search.fill("%")
        expect(page.get_by_text("No key has this")).to_be_visible()
        search.fill("")
        expect(where).to_have_text("Keys 1 to 25")
        assert complaints == []
