"""Render the default project, start it, show over HTTP who gets in, and stop it."""

import sys
import time

from tests.project import ROOT, Project, get, render_afresh

HEADER = "api-key"


def installed_project() -> Project:
    say("cookiecutter --no-input .")
    project = render_afresh(ROOT / ".cache" / "demo")
    say("uv sync")
    project.run("uv", "sync", "--quiet")
    return project


def say(command: str) -> None:
    print(f"\n$ {command}", flush=True)


class Caller:
    """Calls the service, shows the answer, and remembers whether it was the expected one."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.surprises = 0

    def expect(self, status: int, path: str, who: str, key: str | None = None) -> None:
        got, _, body = get(self.url + path, {} if key is None else {HEADER: key})
        print(f"GET {path:<17} {who:<23} {got} {body}", flush=True)
        if got != status:
            self.surprises += 1
            print(f"    expected {status}")


def main() -> None:
    project = installed_project()
    first, second = project.keys
    say("uv run fastapi run")
    with project.serving("uv", "run", "fastapi", "run", "--port", "{port}") as url:
        caller = Caller(url)
        caller.expect(200, "/", "anybody")
        caller.expect(403, "/secure-endpoint", "no key")
        caller.expect(403, "/secure-endpoint", "a wrong key", first[::-1])
        caller.expect(200, "/secure-endpoint", "the first key of .env", first)
        caller.expect(200, "/secure-endpoint", "the second key of .env", second)

        lost = project.manage_keys("list")[0]["id"]
        say(f"uv run {project.command} keys rotate {lost}")
        replacement = project.manage_keys("rotate", lost)["key"]
        time.sleep(1)  # what a running service may take to follow
        caller.expect(403, "/secure-endpoint", "the first key, lost", first)
        caller.expect(200, "/secure-endpoint", "its replacement", replacement)
    print("\nThe service is stopped.")
    sys.exit(caller.surprises)


if __name__ == "__main__":
    main()
