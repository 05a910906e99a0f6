"""Break the generated guard on purpose, one way at a time: its own tests must notice each."""

import sys
from dataclasses import dataclass

from tests.project import ROOT, Project, render_afresh

FOLDER = ROOT / ".cache" / "mutants"


@dataclass(frozen=True)
class Mutant:
    what: str
    file: str
    old: str
    new: str


MUTANTS = [
    Mutant(
        "a request without a key gets in",
        "app/security.py",
        'return Refusal("no key")',
        'return Key("anybody")',
    ),
    Mutant(
        "the first of several keys counts",
        "app/security.py",
        "            if secret is not None:",
        "            if secret is False:",
    ),
    Mutant(
        "an unknown key gets in",
        "app/security.py",
        'return Refusal(f"unknown key {id_of(hashed)}")',
        'return Key("anybody")',
    ),
    Mutant(
        "a malformed key gets in",
        "app/security.py",
        'return Refusal("not a key")',
        'return Key("anybody")',
    ),
    Mutant(
        "a key counts in upper case too",
        "app/security.py",
        "hashed = digest(secret)",
        "hashed = digest(secret.lower())",
    ),
    Mutant(
        "a key is compared as text",
        "app/security.py",
        "hashed = digest(secret)",
        "hashed = digest(secret.decode().encode())",
    ),
    Mutant(
        "an unknown key costs another lookup",
        "app/security.py",
        "    if not is_canonical(",
        "    await keys.find(hashed)\n    if not is_canonical(",
    ),
    Mutant(
        "an included router is not guarded",
        "app/security.py",
        "        if _CALLER not in scope:",
        "        if False:",
    ),
    Mutant(
        "a mounted router is not guarded",
        "app/security.py",
        "await self.handle(scope, receive, send)",
        "await super().__call__(scope, receive, send)",
    ),
    Mutant(
        "nested routers check again",
        "app/security.py",
        "if _CALLER not in scope:",
        "if True:",
    ),
    Mutant(
        "the body is read before the check",
        "app/security.py",
        "            caller = await authenticate(",
        "            await receive()\n            caller = await authenticate(",
    ),
    Mutant(
        "the caller is told the reason",
        "app/security.py",
        "await _answer_to_a_stranger(scope)(scope, receive, send)",
        "await JSONResponse(caller.reason, MISSING_KEY_STATUS)(scope, receive, send)",
    ),
    Mutant(
        "a refused WebSocket is left hanging",
        "app/security.py",
        "return _refuse if can_respond else _hang_up",
        "return _refuse",
    ),
    Mutant(
        "a forgotten route does not stop the start-up",
        "app/security.py",
        "    if unguarded:",
        "    if not unguarded:",
    ),
    Mutant(
        "a plain router passes for a guarded one",
        "app/security.py",
        "elif not isinstance(router, GuardedRouter | PublicRouter):",
        "elif router.prefix == '/never':",
    ),
    Mutant(
        "a router inside a router is not looked into",
        "app/security.py",
        "yield from _unguarded_routes(included)",
        "pass",
    ),
    Mutant(
        "a frontend passes for guarded",
        "app/security.py",
        "yield from router._low_priority_routes",
        "pass",
    ),
    Mutant(
        "start-up does not check the routes",
        "app/main.py",
        "        check_routes(app, PUBLIC_PAGES)\n",
        "",
    ),
    Mutant(
        "start-up does not check that FastAPI asks the guard",
        "app/main.py",
        "        await check_guard()\n",
        "",
    ),
    Mutant(
        "the refusal is not documented",
        "app/security.py",
        "responses = {MISSING_KEY_STATUS: refusal, **",
        "responses = {**",
    ),
    Mutant(
        "the key is not documented",
        "app/security.py",
        'operation.setdefault("security", [{_caller.scheme_name: []}])',
        "pass",
    ),
    Mutant(
        "the log shows the key",
        "app/security.py",
        'f"unknown key {id_of(hashed)}"',
        'f"unknown key {secret!r}"',
    ),
    Mutant(
        "the caller holds the secret",
        "app/keys.py",
        "Key(id=id_of(digest(secret.encode())))",
        "Key(id=secret)",
    ),
    Mutant(
        "a settings error shows the value",
        "app/keys.py",
        "is not a random lower-case UUID4",
        "({secret}) is not a random lower-case UUID4",
    ),
    Mutant(
        "a made-up key is accepted",
        "app/keys.py",
        "len(set(secret)) > 6",
        "len(set(secret)) > 1",
    ),
    Mutant(
        "a broken edit drops the keys",
        "app/env_file.py",
        '            logger.error("%s. The last',
        '            self._keys = {}\n            logger.error("%s. The last',
    ),
    Mutant(
        "a change is never seen",
        "app/env_file.py",
        "        self._version = version\n        try:",
        "        self._version = version\n        return\n        try:",
    ),
    Mutant(
        "a change is only seen when somebody calls",
        "app/main.py",
        "        async with keys.follow():\n            yield",
        "        yield",
    ),
    Mutant(
        "editors do not wait for each other",
        "app/env_file.py",
        "os.O_WRONLY | os.O_CREAT | os.O_EXCL",
        "os.O_WRONLY | os.O_CREAT | os.O_TRUNC",
    ),
    Mutant(
        "the editor that is done removes another's lock",
        "app/env_file.py",
        "        lock.replace(path)\n",
        "        lock.replace(path)\n        time.sleep(0.001)\n        lock.unlink(missing_ok=True)\n",
    ),
    Mutant(
        "an edit forgets the mode",
        "app/env_file.py",
        "lock.chmod(stat.S_IMODE(status.st_mode))",
        "pass",
    ),
    Mutant(
        "a key that was listed twice survives",
        "app/cli.py",
        "    secrets[:] = kept",
        "    kept = kept or secrets\n    secrets.remove(next(s for s in secrets if s not in kept))",
    ),
]


def survives(project: Project, mutant: Mutant) -> bool:
    original = project.read(mutant.file)
    assert original.count(mutant.old) == 1, f"{mutant.what}: {mutant.old!r} is not there once"
    (project.path / mutant.file).write_text(original.replace(mutant.old, mutant.new), "utf-8")
    try:
        return not project.run(
            "uv", "run", "--no-sync", "pytest", "-x", "-q", "--no-cov", check=False
        ).returncode
    finally:
        (project.path / mutant.file).write_text(original, "utf-8")


def main() -> None:
    project = render_afresh(FOLDER)
    project.run("uv", "sync", "--quiet")
    project.run("uv", "run", "pytest", "-q", "--no-cov")
    survivors = 0
    for mutant in MUTANTS:
        survived = survives(project, mutant)
        survivors += survived
        print(f"{'SURVIVED' if survived else 'noticed ':<8}  {mutant.what}", flush=True)
    print(f"{len(MUTANTS)} mutants, {survivors} survived")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
