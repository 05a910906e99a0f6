"""Break the generated services on purpose, one way at a time: their own tests must notice each."""

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
    tests: str = ""  # the files that are enough; all of them if none is named


# What is in both flavours is broken in the small one, whose whole suite takes seconds.
ENV = [
    Mutant(
        "a request without a key gets in",
        "app/access.py",
        'return Refusal("no key")',
        'return Key("anybody")',
    ),
    Mutant(
        "the first of several keys counts",
        "app/access.py",
        "            if secret is not None:",
        "            if secret is False:",
    ),
    Mutant(
        "an unknown key gets in",
        "app/access.py",
        'return Refusal(f"unknown key {id_of(hashed)}")',
        'return Key("anybody")',
    ),
    Mutant(
        "a malformed key gets in",
        "app/access.py",
        'return Refusal("not a key")',
        'return Key("anybody")',
    ),
    Mutant(
        "a key counts in upper case too",
        "app/access.py",
        "hashed = digest(secret)",
        "hashed = digest(secret.lower())",
    ),
    Mutant(
        "a key is compared as text",
        "app/access.py",
        "hashed = digest(secret)",
        "hashed = digest(secret.decode().encode())",
    ),
    Mutant(
        "an unknown key costs another lookup",
        "app/access.py",
        "    if not is_canonical(",
        "    await keys.find(hashed)\n    if not is_canonical(",
    ),
    Mutant(
        "an included router is not guarded",
        "app/security.py",
        "        if CALLER not in scope:",
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
        "if CALLER not in scope:",
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
        "app/access.py",
        "(_answer if can_respond else _hang_up)",
        "JSONResponse(self.reason, MISSING_KEY_STATUS)",
    ),
    Mutant(
        "a refused WebSocket is left hanging",
        "app/access.py",
        "(_answer if can_respond else _hang_up)",
        "_answer",
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
        "responses = {**RESPONSES, **",
        "responses = {**",
    ),
    Mutant(
        "the key is not documented",
        "app/security.py",
        'operation.setdefault("security", [{get_caller.scheme_name: []}])',
        "pass",
    ),
    Mutant(
        "the log shows the key",
        "app/access.py",
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


# Broken in the flavour `database`, and noticed by the tests in the files that are named last.
DATABASE = [
    Mutant(
        "an expired key gets in",
        "app/access.py",
        "if found.ends_at <= now:",
        "if found.revoked:",
        "access",
    ),
    Mutant(
        "a revoked key gets in",
        "app/store.py",
        "ends_at = 0.0 if row.revoked_at else ",
        "ends_at = ",
        "access",
    ),
    Mutant(
        "an old secret never ends",
        "app/store.py",
        "(row.expires_at, row.secret_expires_at)",
        "(row.expires_at,)",
        "access",
    ),
    Mutant(
        "a key ends later than its end",
        "app/store.py",
        "min(ends, default=inf)",
        "max(ends, default=inf)",
        "access",
    ),
    Mutant(
        "a wrong checksum does not matter",
        "app/keys.py",
        " and _from_base62(checksum) == crc32((prefix + body).encode())",
        "",
        "keys",
    ),
    Mutant(
        "a scope covers what begins like it",
        "app/keys.py",
        'held.endswith(":*") and scope.startswith(held[:-1])',
        "scope.startswith(held)",
        "keys access",
    ),
    Mutant(
        "scopes are not asked for",
        "app/access.py",
        "        if not caller.covers(scope):",
        "        if False:",
        "access",
    ),
    Mutant(
        "a missing scope refuses after the body is read",
        "app/access.py",
        "if not (needed := sorted(set(scopes_of(dependant)))):",
        "if needed := []:",
        "access",
    ),
    Mutant(
        "an env key works although API_KEYS does not name it",
        "app/store.py",
        "row is None or (row.id.startswith(ENV_ID) and digest not in self._env_keys)",
        "row is None",
        "access",
    ),
    Mutant(
        "SQLite's commits are not noticed",
        "app/store.py",
        "            self._wal_index = memoryview(memory)",
        "            memoryview(memory)",
        "store",
    ),
    Mutant(
        "a running service keeps a transaction open",
        "app/store.py",
        "            connection.rollback()",
        "            pass",
        "store",
    ),
    Mutant(
        "nobody asks before somebody calls",
        "app/store.py",
        "            await asyncio.sleep(self._max_staleness / 4)",
        "            await asyncio.sleep(60)",
        "store",
    ),
    Mutant(
        "a change that was heard of is forgotten",
        "app/store.py",
        "            self._secrets.pop(digest, None)",
        "            pass",
        "store",
    ),
    Mutant(
        "a stale answer undoes a revocation",
        "app/store.py",
        "            if version >= self._version:",
        "            if True:",
        "store",
    ),
    Mutant(
        "old knowledge counts while the database is out of reach",
        "app/store.py",
        "self._trusted_until = asked_at + self._max_staleness",
        "self._trusted_until = asked_at + 60",
        "store",
    ),
    Mutant(
        "out of reach looks like a wrong key",
        "app/access.py",
        '    except StoreUnavailableError as error:\n        return Refusal(f"{error}", _out_of_reach)',
        '    except StoreUnavailableError as error:\n        return Refusal(f"{error}")',
        "store",
    ),
    Mutant(
        "every caller asks the database",
        "app/store.py",
        "        if not self._asking:\n            self._asking = ",
        "        if True:\n            self._asking = ",
        "store",
    ),
    Mutant(
        "an unknown key costs a query",
        "app/store.py",
        "        if not self._is_known(digest):\n            return None",
        "        pass",
        "store",
    ),
    Mutant(
        "a database that takes no writes counts as a surprise",
        "app/database.py",
        "(sa.exc.DBAPIError, sa.exc.TimeoutError)",
        "(sa.exc.OperationalError, sa.exc.TimeoutError)",
        "store",
    ),
    Mutant(
        "all uses are written in one transaction",
        "app/store.py",
        "range(0, len(uses), FLUSH_AT_ONCE)",
        "range(0, 1)",
        "store",
    ),
    Mutant(
        "memory has no bound",
        "app/store.py",
        "                del self._secrets[next(iter(self._secrets))]",
        "                pass",
        "store",
    ),
    Mutant(
        "a clock that goes back is followed",
        "app/store.py",
        "if (now := time()) > self._latest:",
        "if now := time():",
        "store",
    ),
    Mutant(
        "a restart forgets how late it was",
        "app/store.py",
        "latest.timestamp() if latest else 0.0",
        "0.0",
        "store",
    ),
    Mutant(
        "it is forgotten when keys were last used",
        "app/store.py",
        "            self.used = used | self.used",
        "            pass",
        "store",
    ),
    Mutant(
        "a stop forgets when keys were last used",
        "app/store.py",
        "                    task.cancel()\n            await self.flush()",
        "                    task.cancel()",
        "store",
    ),
    Mutant(
        "last used goes back",
        "app/store.py",
        '== sa.bindparam("used"), later)',
        '== sa.bindparam("used"))',
        "store",
    ),
    Mutant(
        "a change and its event are two transactions",
        "app/registry.py",
        "        event = {",
        "        self.connection.commit()\n        event = {",
        "changes",
    ),
    Mutant(
        "changes do not wait for each other",
        "app/registry.py",
        "sa.update(versions).values(version=versions.c.version + 1)",
        "sa.update(versions).where(versions.c.version < 0).values(version=0)",
        "changes",
    ),
    Mutant(
        "a rotation lets the old secret live longer",
        "app/registry.py",
        "where(secrets.c.digest == hashed, later)",
        "where(secrets.c.digest == hashed)",
        "changes access",
    ),
    Mutant(
        "a secret is said to outlive its key",
        "app/registry.py",
        "min(ends_at, key.expires_at or ends_at)",
        "ends_at",
        "changes",
    ),
    Mutant(
        "three secrets live at the same time",
        "app/registry.py",
        'change.end(in_force.pop(0 if drop == "old" else 1), change.now)',
        'in_force.pop(0 if drop == "old" else 1)',
        "access",
    ),
    Mutant(
        "a rotation drops the wrong one",
        "app/registry.py",
        'in_force.pop(0 if drop == "old"',
        'in_force.pop(0 if drop == "new"',
        "access",
    ),
    Mutant(
        "the last manager can be revoked",
        "app/registry.py",
        "if had_manager and not force and",
        "if False and",
        "api_keys",
    ),
    Mutant(
        "a revocation leaves no event",
        "app/registry.py",
        '        change.record("revoked", actor, ids)',
        "        pass",
        "changes",
    ),
    Mutant(
        "the database lets a revocation be undone",
        "app/migrations/versions/0001_api_keys.py",
        '"OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS DISTINCT FROM OLD.revoked_at"',
        '"OLD.id = NEW.name"',
        "changes",
    ),
    Mutant(
        "the database lets events be changed",
        "app/migrations/versions/0001_api_keys.py",
        '("api_key_events", "UPDATE", "true")',
        '("api_key_events", "UPDATE", "OLD.id < 0")',
        "changes",
    ),
    Mutant(
        "the database lets keys be deleted",
        "app/migrations/versions/0001_api_keys.py",
        '("api_keys", "DELETE", "true")',
        '("api_keys", "DELETE", "OLD.id = OLD.name")',
        "changes",
    ),
    Mutant(
        "secrets are stored in the clear",
        "app/registry.py",
        "            change.add(id, name, scopes, hashed, created_by=actor,",
        "            change.add(id, secret, scopes, hashed, created_by=actor,",
        "secrecy",
    ),
    Mutant(
        "managing keys needs no scope",
        "app/api_keys.py",
        "        Security(get_caller, scopes=[MANAGE]),\n",
        "",
        "api_keys",
    ),
    Mutant(
        "what is changed here is heard of later",
        "app/api_keys.py",
        "        await request.app.keys.catch_up()",
        "        pass",
        "api_keys",
    ),
    Mutant(
        "a manager grants what it lacks",
        "app/api_keys.py",
        "    require(caller, check_scopes(new.scopes))",
        "    pass",
        "api_keys",
    ),
    Mutant(
        "a manager takes over a key that may do more",
        "app/api_keys.py",
        "    require(caller, registry.get(id).scopes)",
        "    pass",
        "api_keys",
    ),
    Mutant(
        "a secret may be cached",
        "app/api_keys.py",
        '    response.headers["Cache-Control"] = "no-store"\n    return registry.create',
        "    return registry.create",
        "api_keys",
    ),
    Mutant(
        "of services that start on a new file, one gives up",
        "app/database.py",
        "            if monotonic() > give_up_at:",
        "            if True:",
        "changes",
    ),
    Mutant(
        "two migrate at the same time",
        "app/database.py",
        '        if engine.dialect.name == "postgresql":',
        "        if False:",
        "changes",
    ),
    Mutant(
        "a secret can be moved to another key",
        "app/migrations/versions/0001_api_keys.py",
        "NEW.digest <> OLD.digest OR NEW.key_id <> OLD.key_id OR OLD.expires_at",
        "NEW.digest <> OLD.digest OR OLD.expires_at",
        "changes",
    ),
    Mutant(
        "an older schema starts",
        "app/database.py",
        "            elif not _is_current(engine):",
        "            elif False:",
        "replicas",
    ),
]

SUITES: dict[str, list[Mutant]] = {"env": ENV, "database": DATABASE}


def survives(project: Project, mutant: Mutant) -> bool:
    original = project.read(mutant.file)
    assert original.count(mutant.old) == 1, f"{mutant.what}: {mutant.old!r} is not there once"
    (project.path / mutant.file).write_text(original.replace(mutant.old, mutant.new), "utf-8")
    tests = [f"tests/test_{name}.py" for name in mutant.tests.split()]
    command = ("uv", "run", "--no-sync", "pytest", "-x", "-q", "--no-cov", *tests)
    try:
        return not project.run(*command, check=False).returncode
    finally:
        (project.path / mutant.file).write_text(original, "utf-8")


def main() -> None:
    survivors = 0
    for flavour, mutants in SUITES.items():
        project = render_afresh(FOLDER / flavour, {"key_store": flavour})
        project.run("uv", "sync", "--quiet")
        project.run("uv", "run", "pytest", "-q", "--no-cov")
        for mutant in mutants:
            survived = survives(project, mutant)
            survivors += survived
            print(f"{'SURVIVED' if survived else 'noticed ':<8}  {mutant.what}", flush=True)
    print(f"{sum(map(len, SUITES.values()))} mutants, {survivors} survived")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
