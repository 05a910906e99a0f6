"""What the tests of pages have in common: a Chromium, and an eye on what a page does in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Page, Route, sync_playwright

HOST = "service.example"  # for the browser that is this machine; some things differ on localhost


@contextmanager
def new_page(**options: Any) -> Iterator[Page]:
    """The options are those of Playwright's `new_page`."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "A Chromium is needed, for example Debian's: apt-get install chromium"
    arguments = ["--no-sandbox", f"--host-resolver-rules=MAP {HOST} 127.0.0.1"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser.new_page(**options)
        browser.close()


def watched(page: Page, prefix: str = "", host: str = HOST) -> list[str]:
    """Fills while the page is used: with what violates its policy, with errors, and with requests
    to any other place, none of which leaves the browser. The prefix is taken away as by a proxy."""
    complaints: list[str] = []

    def only_the_service(route: Route) -> None:
        asked = urlsplit(route.request.url)
        if asked.hostname == host and asked.path.startswith(f"{prefix}/"):
            path = asked.path.removeprefix(prefix)
            route.continue_(url=asked._replace(path=path).geturl())
        else:
            complaints.append(route.request.url)
            route.abort()

    page.route("**/*", only_the_service)
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(f"{error}"))
    return complaints
