"""Render the default project, start it, show over HTTP the life of a key, and stop it."""

import sys
from typing import Any

from tests.project import ROOT, Project, get, render_afresh

HEADER = "api-key"
REPORTS = """

from app.auth import Caller, require


@guarded.get("/reports", dependencies=[require("reports:read")])
async def reports(caller: Caller) -> dict[str, str]:
    return {"reports_for": caller.name}
"""


def installed_project() -> Project:
    say("cookiecutter --no-input .")
    project = render_afresh(ROOT / ".cache" / "demo")
    with (project.path / "app" / "routes.py").open("a", encoding="utf-8") as routes:
        routes.write(REPORTS)
    say("uv sync")
    project.run("uv", "sync", "--quiet")
    return project


def say(command: str) -> None:
    print(f"\n$ {command}", flush=True)


class Demo:
    """Calls the service, shows the answers, and remembers whether they were the expected ones."""

    def __init__(self, project: Project, url: str) -> None:
        self.project = project
        self.url = url
        self.surprises = 0

    def expect(self, status: int, who: str, key: str | None = None, path: str = "") -> None:
        path = path or "/secure-endpoint"
        got, _, body = get(self.url + path, {} if key is None else {HEADER: key})
        print(f"GET {path:<17} {who:<26} {got} {body:.60}", flush=True)
        if got != status:
            self.surprises += 1
            print(f"    expected {status}")

    def keys(self, *arguments: str) -> Any:
        say(f"uv run {self.project.command} keys {' '.join(arguments)}")
        return self.project.manage_keys(*arguments)


def main() -> None:
    project = installed_project()
    say("uv run fastapi run")
    with project.serving("uv", "run", "fastapi", "run", "--port", "{port}") as url:
        demo = Demo(project, url)
        demo.expect(200, "anybody", path="/")
        demo.expect(403, "no key")
        demo.expect(200, "a key of .env", project.keys[0])

        other = demo.keys("create", "other", "--scope", "invoices:read")
        demo.expect(403, "other, without the scope", other["key"], path="/reports")
        key = demo.keys("create", "billing", "--scope", "reports:read", "--expires-in", "90d")
        demo.expect(200, "billing, with the scope", key["key"], path="/reports")
        demo.expect(200, "billing", key["key"])
        new = demo.keys("rotate", key["id"], "--overlap", "24h")
        demo.expect(200, "billing, old secret", key["key"])
        demo.expect(200, "billing, new secret", new["key"])
        demo.keys("revoke", key["id"])
        demo.expect(403, "billing, old secret", key["key"])
        demo.expect(403, "billing, new secret", new["key"])
        for event in demo.keys("audit", key["id"]):
            print(f"{event['at'][:19]} {event['action']} by {event['actor']}")
    print("\nThe service is stopped.")
    sys.exit(demo.surprises)


if __name__ == "__main__":
    main()
