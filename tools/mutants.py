"""Break the generated services on purpose, one way at a time: tests must notice each.

A lean mutant has to be noticed by the project's own suite, any other one by the thorough tests
that it names. Words after the command choose the mutants that are described with one of them;
`lean` and `thorough` choose a class.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass

from tests.project import EVERYTHING, ROOT, Project, environment, render_afresh, with_tools
from tools.render import silence

FOLDER = ROOT / ".cache" / "mutants"
PATIENCE = 300  # seconds for the tests of one mutant: what hangs has noticed it too
OPTIONS = ("-q", "-x", "-p", "no:cacheprovider")


@dataclass(frozen=True)
class Mutant:
    what: str
    file: str
    old: str
    new: str
    tests: str  # the thorough tests that are enough: `store` is test_store.py
    lean: bool = False


# Each flavour has a `main.py` of its own.
RESTARTED = Mutant(
    "a supervisor starts it again",
    "app/main.py",
    "sys.exit(3)",
    "sys.exit(1)",
    "settings",
    lean=True,
)

# What is in both flavours is broken in the small one, whose tests are fast.
ENV = [
    # An empty value is none.
    Mutant(
        "an empty value of a setting counts",
        "app/auth/config/sources.py",
        "if value or name in NEVER_EMPTY}",
        "}",
        "sources",
        lean=True,
    ),
    Mutant(
        "an empty DATABASE_URL is the default",
        "app/auth/config/sources.py",
        "if value or name in NEVER_EMPTY}",
        "if value}",
        "sources",
    ),
    Mutant(
        "after a pause nobody waits for the vault",
        "app/vaults/key_store.py",
        "await asyncio.wait([asyncio.wrap_future(self._answered)], timeout=IO_TIMEOUT)",
        "await asyncio.sleep(0)",
        "vault_keys",
    ),
    # Access if and only if.
    Mutant(
        "a request without a key gets in",
        "app/auth/access/rule.py",
        "        return offered\n    hashed",
        '        return Key("", "", frozenset())\n    hashed',
        "access",
        lean=True,
    ),
    Mutant(
        "an unknown key gets in",
        "app/auth/access/rule.py",
        "    if decision is UNKNOWN:\n",
        "    if decision is UNKNOWN:\n"
        '        return Admission(Key("", "", frozenset()))\n'
        "    if decision is UNKNOWN:\n",
        "access",
        lean=True,
    ),
    Mutant(
        "of several keys one counts",
        "app/auth/access/rule.py",
        "            if secret is not None:",
        '            if secret == b"":',
        "access",
        lean=True,
    ),
    Mutant(
        "a key counts in upper case too",
        "app/auth/key.py",
        "sha256(secret)",
        "sha256(secret.lower())",
        "access",
        lean=True,
    ),
    Mutant(
        "a wrong checksum does not matter",
        "app/auth/key.py",
        " and _from_base62(checksum) == crc32((prefix + body).encode())",
        "",
        "access",
        lean=True,
    ),
    Mutant(
        "a change is never seen",
        "app/auth/store/env_store.py",
        "== self._seen:",
        "== self._seen or self._seen:",
        "access",
        lean=True,
    ),
    # When a command has ended a key, no server accepts it any more; a new one is accepted at once.
    Mutant(
        "what was read is trusted for ever",
        "app/auth/store/env_store.py",
        "if time.monotonic() < self._trusted_until else None",
        "if self._trusted_until else None",
        "store",
        lean=True,
    ),
    Mutant(
        "a new key gets in later",
        "app/auth/store/env_store.py",
        "        self._look()  # also",
        "        if time.monotonic() >= self._trusted_until:\n            self._look()  # also",
        "store",
        lean=True,
    ),
    Mutant(
        "who ends a key waits for less than servers trust what they know",
        "app/auth/store/env_file.py",
        "time.sleep(MAX_AGE + coarsest_tick_of_a_clock)",
        "time.sleep(coarsest_tick_of_a_clock)",
        "processes",
    ),
    Mutant(
        "a revocation does not wait",
        "app/auth/cli/commands.py",
        "_without(id, listed))\n        _wait()",
        "_without(id, listed))",
        "keys_command",
        lean=True,
    ),
    # A revoked key stays revoked, also if `.env` is broken right after.
    Mutant(
        "a broken list lets in whatever it names",
        "app/auth/store/env_store.py",
        "{each: key for each, key in self._good_keys.items() if each in named}",
        "_by_digest(named)",
        "store",
    ),
    Mutant(
        "a change is only seen when somebody calls",
        "app/auth/store/env_store.py",
        "asyncio.create_task(self._watch())",
        "asyncio.create_task(asyncio.sleep(0))",
        "store",
    ),
    # Nobody gets in on old knowledge.
    Mutant(
        "what a vault said last counts from its answer on, not from the question",
        "app/vaults/key_store.py",
        'asked_at, ""',
        'time.monotonic(), ""',
        "vault_keys",
    ),
    Mutant(
        "a vault that is silent holds up the end",
        "app/vaults/key_store.py",
        'name="api-keys-vault", daemon=True',
        'name="api-keys-vault"',
        "vault_keys",
    ),
    Mutant(
        "a vault that is silent holds up the start",
        "app/vaults/client.py",
        "answers.get(timeout=TIMEOUT)",
        "answers.get(timeout=60)",
        "vault",
    ),
    Mutant(
        "a vault's error is told in its own words",
        "app/vaults/client.py",
        "type(error).__name__",
        "repr(error)",
        "vault",
    ),
    Mutant(
        "while the file is out of reach the last keys count",
        "app/auth/store/env_store.py",
        "        self._take(*_read())\n",
        "        try:\n"
        "            self._take(*_read())\n"
        "        except StoreUnavailableError:\n"
        "            return\n",
        "store",
        lean=True,
    ),
    Mutant(
        "out of reach looks like a wrong key",
        "app/auth/access/rule.py",
        "Refusal(OUT_OF_REACH, answer=_out_of_reach, ",
        "Refusal(OUT_OF_REACH, ",
        "store",
        lean=True,
    ),
    Mutant(
        "the watcher dies of what it does not know",
        "app/auth/store/env_store.py",
        "except Exception as error:",
        "except StoreUnavailableError as error:",
        "store",
    ),
    # A command does what it says and nothing else, or fails and changes nothing.
    Mutant(
        "a key that was listed twice survives",
        "app/auth/cli/commands.py",
        "kept = [key for key in listed if _id(key) != id]",
        "kept = [key for n, key in enumerate(listed) if _id(key) != id or key in listed[:n]]",
        "keys_command",
        lean=True,
    ),
    Mutant(
        "an edit does not look whether it says what was meant",
        "app/auth/store/env_file.py",
        "if _value_in(edited) == value:",
        "if _value_in(edited) is not None:",
        "env_file",
    ),
    Mutant(
        "an edit forgets the mode",
        "app/auth/store/env_file.py",
        "lock.chmod(stat.S_IMODE(status.st_mode))",
        "lock.chmod(0o600)",
        "env_file",
    ),
    Mutant(
        "a power cut brings back the old file",
        "app/auth/store/env_file.py",
        "            os.fsync(folder)  # or",
        "            pass  # or",
        "env_file",
    ),
    # Commands at the same time lose no key.
    Mutant(
        "editors do not wait for each other",
        "app/auth/store/env_file.py",
        "os.O_WRONLY | os.O_CREAT | os.O_EXCL",
        "os.O_WRONLY | os.O_CREAT | os.O_TRUNC",
        "env_file",
    ),
    Mutant(
        "the editor that is done removes another's lock",
        "app/auth/store/env_file.py",
        "        lock.replace(path)\n",
        "        lock.replace(path)\n        time.sleep(0.001)\n        lock.unlink(missing_ok=True)\n",
        "env_file processes",
    ),
    # A key is shown, or it was not made.
    Mutant(
        "a key is shown after it was made",
        "app/auth/store/env_file.py",
        "            show()\n",
        "        show()\n",
        "keys_command processes",
        lean=True,
    ),
    # Keys that the service does not follow are not changed, and the start says so.
    Mutant(
        "commands change a list that does not count",
        "app/auth/store/env_file.py",
        '    if place := "the environment" if in_environment() else',
        '    if place := "" if in_environment() else',
        "keys_command",
    ),
    Mutant(
        "the start does not say that the keys are not followed",
        "app/auth/store/env_store.py",
        "    if not settings.may_change:",
        "    if not settings.api_keys:",
        "processes",
    ),
    Mutant(
        "keys that were loaded are not followed",
        "app/auth/config/settings.py",
        'self._may_change = "_env_file" in values',
        'self._may_change = "_env_file" not in values',
        "store",
    ),
    # No header bytes make authentication fail otherwise than by refusing.
    Mutant(
        "a key is taken for text",
        "app/auth/key.py",
        "sha256(secret)",
        "sha256(secret.decode().encode())",
        "any_bytes",
        lean=True,
    ),
    Mutant(
        "a trailer passes for a header",
        "app/auth/access/rule.py",
        'elif chunked and "httptools" in sys.modules:',
        'elif chunked and "httptools" not in sys.modules:',
        "any_bytes",
    ),
    # A refused request is not read, and runs no handler and no dependency.
    Mutant(
        "the body is read before the check",
        "app/auth/access/middleware.py",
        "                caller = await authenticate(",
        "                await receive()\n                caller = await authenticate(",
        "guard",
        lean=True,
    ),
    Mutant(
        "a stranger is redirected",
        "app/auth/access/application.py",
        "            redirect_slashes=False,\n            **options,",
        "            redirect_slashes=True,\n            **options,",
        "guard",
        lean=True,
    ),
    Mutant(
        "a refused WebSocket is left hanging",
        "app/auth/access/rule.py",
        'return scope["type"] == "http" or',
        'return scope["type"] != "lifespan" or',
        "guard",
        lean=True,
    ),
    # Every route is guarded or explicitly public, or the service does not start.
    Mutant(
        "a forgotten route does not stop the start-up",
        "app/auth/access/application.py",
        "        if unclear:",
        "        if unclear == self.routes:",
        "guard",
        lean=True,
    ),
    Mutant(
        "a plain router passes for a guarded one",
        "app/auth/access/application.py",
        "        elif isinstance(router, GuardedRouter):",
        "        elif isinstance(router, APIRouter):",
        "guard",
        lean=True,
    ),
    Mutant(
        "a route passes for another that looks like it",
        "app/auth/access/application.py",
        "any(each is route for each in routes)",
        "any(each == route for each in routes)",
        "openapi",
    ),
    Mutant(
        "the routes are checked before a lifespan adds some",
        "app/auth/access/application.py",
        "                    state = await running.enter_async_context(lifespan(app))\n"
        "                    self.check_routes()  # now, for a lifespan may have added some\n",
        "                    self.check_routes()\n"
        "                    state = await running.enter_async_context(lifespan(app))\n",
        "guard",
        lean=True,
    ),
    Mutant(
        "a route that comes later is public",
        "app/auth/access/middleware.py",
        "        if self._api.is_public(route):",
        '        if not any(each is route for each in vars(self._api)["_guarded"]):',
        "guard",
        lean=True,
    ),
    Mutant(
        "a guarded router in a public one is public",
        "app/auth/access/routers.py",
        "        if isinstance(caller, Refusal):  # this",
        "        if caller is _NOBODY_ASKED:  # this",
        "guard",
        lean=True,
    ),
    Mutant(
        "a guarded router that is mounted is public",
        "app/auth/access/routers.py",
        "await (self._refusal(scope) or super().__call__)(scope, receive, send)",
        "await super().__call__(scope, receive, send)",
        "guard",
        lean=True,
    ),
    Mutant(
        "a route that chooses by more than the path is not asked",
        "app/auth/access/routers.py",
        "route.path if type(route).matches in _BY_PATH else",
        "route.path if isinstance(route, APIRoute) else",
        "guard",
    ),
    Mutant(
        "a path with a parameter has to be written as it is declared",
        "app/auth/access/routers.py",
        '"" if "{" in path else path for path in paths',
        "path for path in paths",
        "guard",
        lean=True,
    ),
    Mutant(
        "a request waits for the collector of garbage",
        "app/auth/access/request_log.py",
        "        del self.scope, self._send  #",
        "        del self.scope  #",
        "requests",
    ),
    # A release of FastAPI that goes past the guard does not start.
    Mutant(
        "the start-up does not ask whether FastAPI asks the guard",
        "app/auth/access/application.py",
        "                await check_guard(type(self))\n",
        "                pass\n",
        "guard",
        lean=True,
    ),
    Mutant(
        "the start-up overlooks strangers who get in",
        "app/auth/access/selfcheck.py",
        'strangers != {"/public"}',
        "not strangers",
        "guard",
        lean=True,
    ),
    # FastAPI reads what an endpoint asks for, and a key can lack the scopes, or nothing answers.
    Mutant(
        "annotations that cannot be read do not stop the start-up",
        "app/auth/access/selfcheck.py",
        "    if unread:",
        "    if unread and not has_scopes:",
        "selfcheck",
    ),
    Mutant(
        "annotations of what an endpoint depends on are not read",
        "app/auth/access/selfcheck.py",
        "        pending += dependant.dependencies\n",
        "",
        "selfcheck",
    ),
    Mutant(
        "annotations of routers are not read",
        "app/auth/access/selfcheck.py",
        'dependant_of([*included_with, *getattr(router, "dependencies", ())])',
        "dependant_of([])",
        "selfcheck",
    ),
    Mutant(
        "a dependency in a part of the annotations is lost",
        "app/auth/access/selfcheck.py",
        "_is_unresolved(annotation) or _has_dependency(annotation)",
        "_is_unresolved(annotation)",
        "selfcheck",
    ),
    Mutant(
        "annotations below a mount are not read",
        "app/auth/access/selfcheck.py",
        "        if app is not None:",
        "        if app is None:",
        "selfcheck",
    ),
    Mutant(
        "what comes later answers though its annotations cannot be read",
        "app/auth/access/selfcheck.py",
        "sum(map(len, self._lists)) != self._count",
        "self._count < 0",
        "selfcheck",
    ),
    Mutant(
        "what starts without a start-up answers though its annotations cannot be read",
        "app/auth/access/middleware.py",
        "            self._faulty_routes.refuse(scope)\n",
        "            pass\n",
        "selfcheck",
    ),
    Mutant(
        "the start-up does not ask for annotations that cannot be read",
        "app/auth/access/application.py",
        "        check_places(places_in(self), has_scopes=self.keys.has_scopes)\n",
        "",
        "selfcheck",
    ),
    Mutant(
        "annotations that FastAPI represents otherwise do not stop the start-up",
        "app/auth/access/selfcheck.py",
        '        or unread != ["key", "return"]\n',
        "",
        "guard",
    ),
    Mutant(
        "scopes that restrict nobody do not stop the start-up",
        "app/auth/access/selfcheck.py",
        "    if asked and not has_scopes:",
        "    if asked and has_scopes is None:",
        "selfcheck",
    ),
    Mutant(
        "keys of the flavour env can be asked for scopes",
        "app/auth/store/env_store.py",
        "    has_scopes = False",
        "    has_scopes = True",
        "store",
    ),
    # One check a request, however many requirements nest.
    Mutant(
        "an application in another one checks again",
        "app/auth/access/middleware.py",
        "        caller = scope.get(CALLER)\n        if caller is None:",
        "        caller = None\n        if caller is None:",
        "guard",
    ),
    # Refusals look alike, whatever the reason.
    Mutant(
        "the caller is told the reason",
        "app/auth/access/rule.py",
        "(self.answer if can_respond(scope) else _hang_up)",
        "(problem(MISSING_KEY_STATUS, self.reason) if can_respond(scope) else _hang_up)",
        "access",
        lean=True,
    ),
    # Unknown and revoked keys cost the same work; a valid one costs one digest.
    Mutant(
        "an unknown key costs another look",
        "app/auth/access/rule.py",
        "    if decision is UNKNOWN:\n",
        '    if decision is UNKNOWN and await keys.find(b""):\n',
        "access",
    ),
    Mutant(
        "a valid key costs a look at the file",
        "app/auth/store/env_store.py",
        "if time.monotonic() < self._trusted_until else None",
        "if time.monotonic() < 0 else None",
        "access",
        lean=True,
    ),
    # The refusal is documented on every guarded operation.
    Mutant(
        "the refusals are not documented",
        "app/auth/access/openapi.py",
        "{**jsonable_encoder(refusals), **operation",
        "{**operation",
        "openapi",
        lean=True,
    ),
    Mutant(
        "the document says nothing of what is left of a limit",
        "app/auth/access/openapi.py",
        "if guarded and told and",
        "if False and",
        "openapi",
    ),
    Mutant(
        "the router's 404 has another media type",
        "app/auth/access/application.py",
        "if type(error) is HTTPException:",
        "if False:",
        "openapi",
    ),
    Mutant(
        "the key is not documented",
        "app/auth/access/openapi.py",
        'operation.setdefault("security", [{name: []}] if guarded else [])',
        "pass",
        "openapi",
        lean=True,
    ),
    Mutant(
        "the document does not know routes that come later",
        "app/auth/access/application.py",
        "        if document is not known:",
        "        if not known:",
        "openapi",
    ),
    Mutant(
        "two operations have one id",
        "app/auth/access/openapi.py",
        "names[context.name] == 1 and ",
        "",
        "openapi",
    ),
    # No key in a log, an error or a document, nor in a request once it was checked.
    Mutant(
        "the log shows a key in a path",
        "app/auth/access/rule.py",
        'path, reason = masked(scope["path"])',
        'path, reason = scope["path"]',
        "traces",
        lean=True,
    ),
    Mutant(
        "a request's line shows a key in a path",
        "app/auth/access/request_log.py",
        'repr(masked(self.scope["path"]))',
        'repr(self.scope["path"])',
        "traces",
        lean=True,
    ),
    Mutant(
        "a span shows a key in a query",
        "app/auth/access/middleware.py",
        "set_attribute(name, masked(value))",
        "set_attribute(name, value)",
        "requests",
    ),
    Mutant(
        "a key that came as the request's id is repeated",
        "app/auth/access/request_log.py",
        " or any(_is_key(text, scope, keys) for text in spelled_in(id))",
        "",
        "requests",
    ),
    Mutant(
        "whatever comes as the request's id is believed",
        "app/auth/access/request_log.py",
        "not _BELIEVED.fullmatch(sent) or ",
        "",
        "requests",
    ),
    Mutant(
        "a copy of the scope hides the key from the log",
        "app/auth/access/middleware.py",
        "                record.key, record.digest = caller, offered[0]\n",
        "                record.digest = offered[0]\n",
        "requests",
    ),
    Mutant(
        "a mount hides the route from the log",
        "app/auth/access/rule.py",
        'if "app_root_path" in scope:',
        'if "app_root_path" in ():',
        "requests",
    ),
    Mutant(
        "an answer to an error has no headers",
        "app/auth/access/request_log.py",
        '            message["headers"] = self._with_headers(',
        '            status = message["status"]\n'
        '            message["headers"] = [] if status > 499 else self._with_headers(',
        "requests",
    ),
    Mutant(
        "an answer's own headers come twice",
        "app/auth/access/request_log.py",
        "if not _NAMES.isdisjoint(names):",
        "if not names:",
        "requests",
    ),
    Mutant(
        "an id that holds a key among other letters is repeated",
        "app/auth/key.py",
        'rf"(?=({_SECRET.pattern}|{_PREFIXED.pattern}))"',
        'rf"^(?=({_SECRET.pattern}|{_PREFIXED.pattern}))"',
        "requests",
    ),
    Mutant(
        "what is no address is told as one",
        "app/auth/access/request_log.py",
        """return f"{address_of(client) or ''}\"""",
        "return client",
        "logs",
    ),
    Mutant(
        "a method is told as it came",
        "app/auth/access/request_log.py",
        '_shown(scope["method"])',
        'scope["method"]',
        "logs",
    ),
    Mutant(
        "what a caller sent is told unprintable",
        "app/auth/key.py",
        "    if not shown.isprintable():\n        shown = repr(shown)[1:-1]\n",
        "",
        "logs",
    ),
    Mutant(
        "a library takes the lines over",
        "app/auth/log.py",
        "    logging.root.addHandler(ours)\n",
        "    logging.basicConfig()\n",
        "logs",
    ),
    Mutant(
        "a library's handler tells each line once more",
        "app/auth/log.py",
        "            logging.root.removeHandler(other)\n",
        "            pass\n",
        "logs",
    ),
    Mutant(
        "a format of the owner's is not left alone",
        "app/auth/log.py",
        '    if format == "own":\n        return\n    formatter = _FORMATTERS[format]',
        '    formatter = _FORMATTERS["text" if format == "own" else format]',
        "logs",
    ),
    Mutant(
        "successful probes are told",
        "app/auth/access/request_log.py",
        'if self.scope["path"] in self._log.probes and 0 < self.status < 400:',
        "if not self.status:",
        "logs",
    ),
    Mutant(
        "failed probes are not told",
        "app/auth/access/request_log.py",
        " and 0 < self.status < 400:",
        ":",
        "logs",
    ),
    Mutant(
        "a line waits for what is done in the background",
        "app/auth/access/request_log.py",
        '            if not message.get("more_body"):\n                self._tell()',
        "            pass",
        "logs",
    ),
    Mutant(
        "tracers see the trial of the guard",
        "app/auth/access/selfcheck.py",
        "unwrap(FastAPI.build_middleware_stack)(app)",
        "FastAPI.build_middleware_stack(app)",
        "traces",
    ),
    Mutant(
        "a route that would stop the start-up answers strangers",
        "app/auth/access/middleware.py",
        "        if answer is self._app:\n",
        "        if isinstance(caller, Key):\n",
        "selfcheck",
    ),
    Mutant(
        "the server's log shows a key in a path",
        "app/auth/log.py",
        'masked(text.partition("?")[0] if text.startswith("/") else text)',
        'text.partition("?")[0] if text.startswith("/") else text',
        "traces",
    ),
    Mutant(
        "the server's log shows the query",
        "app/auth/log.py",
        'text.partition("?")[0] if text.startswith("/") else text',
        "text",
        "logs",
    ),
    Mutant(
        "a settings error shows the value",
        "app/auth/key.py",
        "is not a random lower-case UUID4",
        "({secret}) is not a random lower-case UUID4",
        "settings",
    ),
    Mutant(
        "the request still holds the key",
        "app/auth/access/rule.py",
        "        del headers[place]",
        "        pass",
        "traces",
        lean=True,
    ),
    # No cache between keeps a guarded answer, unless the endpoint says so.
    Mutant(
        "caches keep the answer to a caller",
        "app/auth/access/request_log.py",
        "            headers.append(_NO_STORE)",
        "            pass",
        "traces",
        lean=True,
    ),
    Mutant(
        "caches keep an answer of which it is said for how long, but not for whom",
        "app/auth/access/request_log.py",
        "and not _FOR_WHOM.search(value):",
        'and value == b"":',
        "traces",
    ),
    # A bad setting ends the service in one helpful line, without its value; a supervisor too.
    Mutant(
        "a supervisor of workers that cannot start ends as if all were well",
        "app/auth/cli/serve.py",
        "if any(worker.exitcode == FAILED",
        "if all(worker.exitcode is None",
        "serve",
    ),
    Mutant(
        "the service closes connections before its proxy does",
        "app/auth/cli/serve.py",
        "timeout_keep_alive=keep_alive",
        "timeout_keep_alive=5",
        "serve",
        lean=True,
    ),
    Mutant(
        "a bad setting is told by each worker",
        "app/auth/cli/serve.py",
        "    config.load_app()",
        "    config.get_loop_factory()",
        "serve",
    ),
    Mutant(
        "a made-up key is accepted",
        "app/auth/key.py",
        "len(set(secret)) > 6",
        "len(set(secret)) > 1",
        "settings",
        lean=True,
    ),
    RESTARTED,
    # What `keys scan` finds.
    Mutant(
        "any UUID4 is taken for a key",
        "app/auth/cli/scan.py",
        'why = "next to its name" if uuid.start() in named else ""',
        'why = "next to its name"',
        "scan",
    ),
    Mutant(
        "a key between two blocks is missed",
        "app/auth/cli/scan.py",
        "text = text[-OVERLAP:]",
        'text = ""',
        "scan",
    ),
    # Who guesses is slowed, learns nothing, and takes no memory; valid keys get in.
    Mutant(
        "a valid key is refused where somebody guesses",
        "app/auth/access/rule.py",
        "    if slowed and not keys.may_exist(hashed):",
        "    if slowed:",
        "guesses",
    ),
    Mutant(
        "a guess costs a question however many there were",
        "app/auth/access/rule.py",
        "    if slowed and not keys.may_exist(hashed):",
        "    if slowed and not hashed:",
        "guesses",
    ),
    Mutant(
        "where somebody guesses a key that has ended is told apart",
        "app/auth/access/rule.py",
        "    attempts.add(client)\n    if slowed:\n        return _SLOWED\n",
        "    attempts.add(client)\n",
        "guesses",
    ),
    Mutant(
        "guesses that were slowed are forgotten",
        "app/auth/access/rule.py",
        "        attempts.add(client)\n        return _SLOWED",
        "        return _SLOWED",
        "guesses",
    ),
    Mutant(
        "one wrong key less is many",
        "app/auth/access/clients.py",
        "> BURST * REFILL",
        "> BURST * REFILL - REFILL",
        "guesses",
    ),
    Mutant(
        "who guessed for long waits for as long",
        "app/auth/access/clients.py",
        "min(until_full, BURST * REFILL)",
        "until_full",
        "guesses",
    ),
    Mutant(
        "guesses from everywhere take memory",
        "app/auth/access/clients.py",
        "    if len(self._full_at) >= MAX_ADDRESSES:",
        "    if len(self._full_at) >= 100 * MAX_ADDRESSES:",
        "guesses",
    ),
    Mutant(
        "who goes on to guess is forgotten for others",
        "app/auth/access/clients.py",
        "self._full_at.pop(source, None)",
        "self._full_at.get(source)",
        "guesses",
    ),
    Mutant(
        "what callers write for an address takes memory",
        "app/auth/access/clients.py",
        "client[:64]",
        "client",
        "guesses",
    ),
    Mutant(
        "callers without an address are slowed for each other",
        "app/auth/access/clients.py",
        "(source := _source(client)) == NO_ADDRESS",
        '(source := _source(client)) == ""',
        "guesses",
    ),
    Mutant(
        "each address of an IPv6 network guesses for itself",
        "app/auth/access/clients.py",
        "network_of(client, 32, 64)",
        "network_of(client, 32, 128)",
        "guesses",
    ),
    Mutant(
        "what forwards IPv4 as IPv6 is one address for all",
        "app/auth/access/clients.py",
        'getattr(address, "ipv4_mapped", None) or address',
        "address",
        "guesses",
    ),
    Mutant(
        "what stops the start-up is told with its frames",
        "app/auth/access/application.py",
        "and self._problem:",
        "and not self._problem:",
        "guard",
    ),
]


# Broken in the flavour `database`.
DATABASE = [
    # Scopes of a router hold for everything on it, or the service does not start.
    Mutant(
        "a scope covers what begins like it",
        "app/auth/key.py",
        'held.endswith(":*") and scope.startswith(held[:-1])',
        "scope.startswith(held)",
        "scopes",
        lean=True,
    ),
    Mutant(
        "endpoints do not ask for their scopes",
        "app/auth/access/dependencies.py",
        "        if lacking := caller.lacks(needed.scopes):",
        "        if lacking := caller.lacks([]):",
        "scopes",
        lean=True,
    ),
    Mutant(
        "a missing scope refuses after the body is read",
        "app/auth/access/routers.py",
        "return refusal_without(needed, request.scope) or await handle(request)",
        "return await handle(request)",
        "scopes",
        lean=True,
    ),
    Mutant(
        "scopes of a router do not hold for what is mounted on it",
        "app/auth/access/routers.py",
        "return refusal_without(self.scopes, scope) if self.scopes else None",
        "return None",
        "scopes",
        lean=True,
    ),
    Mutant(
        "scopes that are given to include_router do not hold for what is mounted",
        "app/auth/access/routers.py",
        "    if not scopes_in(dependencies):",
        "    if dependencies is None or scopes_in(dependencies):",
        "scopes",
        lean=True,
    ),
    Mutant(
        "scopes that do not hold do not stop the start-up",
        "app/auth/access/application.py",
        "        if loose:",
        "        if loose == self.routes:",
        "scopes",
        lean=True,
    ),
    # Access if and only if, over the whole life of a key.
    # A restriction that nothing enforces refuses.
    Mutant(
        "a restriction that nothing enforces lets its key in",
        "app/auth/access/rule.py",
        "    if unenforced:\n",
        "    if None:\n",
        "policies",
        lean=True,
    ),
    Mutant(
        "such a key gets in once it was looked up",
        "app/auth/access/middleware.py",
        "                and not caller.restrictions\n",
        "",
        "policies",
        lean=True,
    ),
    Mutant(
        "the database lets the id of a key be changed",
        "app/auth/database/migrate.py",
        " OR NEW.id <> OLD.id",
        "",
        "changes",
    ),
    Mutant(
        "a policy does not run with the service",
        "app/auth/access/application.py",
        "                    for policy in self.policies:\n"
        "                        await running.enter_async_context(policy.running())\n",
        "",
        "policies",
    ),
    Mutant(
        "without asyncio the start fails with a traceback",
        "app/auth/access/application.py",
        "                _check_asyncio()\n",
        "",
        "guard",
    ),
    Mutant(
        "a frontend is taken without a word",
        "app/auth/access/application.py",
        "    frontend = refuse_frontend\n",
        "",
        "guard",
    ),
    Mutant(
        "the size of a body counts before the key",
        "app/auth/access/application.py",
        "self.max_body_size = None",
        "pass",
        "guard",
    ),
    Mutant(
        "writers that wait take the threads of other endpoints",
        "app/database.py",
        ", max_concurrency=8",
        "",
        "tables",
    ),
    Mutant(
        "a refused WebSocket is an error of the server",
        "app/auth/access/rule.py",
        "_is_refused.set(True)",
        "pass",
        "guard",
    ),
    Mutant(
        "the doctor does not tell of a restriction that nothing enforces",
        "app/auth/usage/findings.py",
        "key.restrictions.keys() - set(enforced)",
        "key.restrictions.keys() - key.restrictions.keys()",
        "doctor",
    ),
    Mutant(
        "a key that expires while it is in use stays in",
        "app/auth/store/cache.py",
        "return secret.key if secret.ends_at > self._clock.now() else None",
        "return secret.key",
        "access",
        lean=True,
    ),
    Mutant(
        "an expired key gets in",
        "app/auth/store/cache.py",
        "        if secret.ends_at > self._clock.now():\n            return secret.key\n",
        "        if secret.ends_at > 0:\n            return secret.key\n",
        "access",
        lean=True,
    ),
    Mutant(
        "a revoked key gets in",
        "app/auth/store/queries.py",
        "        if row.revoked_at:",
        "        if row.revoked_at and row.ended_at:",
        "access",
        lean=True,
    ),
    Mutant(
        "a replaced secret gets in",
        "app/auth/store/queries.py",
        "        if row.ended_at:",
        "        if row.ended_at and row.revoked_at:",
        "access",
        lean=True,
    ),
    Mutant(
        "a secret has no end of its own",
        "app/auth/store/queries.py",
        "(row.expires_at, row.own_expires_at)",
        "(row.expires_at,)",
        "access",
        lean=True,
    ),
    Mutant(
        "a secret outlives its key",
        "app/auth/store/queries.py",
        "min(ends, default=inf)",
        "max(ends, default=inf)",
        "access",
        lean=True,
    ),
    Mutant(
        "a key gets in although API_KEYS no longer names it",
        "app/auth/store/queries.py",
        "if row.id.startswith(ENV_ID) and digest not in self._env_keys:",
        "if not row.id:",
        "access",
        lean=True,
    ),
    # When `revoke` has returned no server accepts the key; others wait for nothing.
    Mutant(
        "a revocation over HTTP does not wait",
        "app/management/router.py",
        "    if wait:\n",
        "    if not wait:\n",
        "api_keys",
    ),
    Mutant(
        "who revokes waits for the shortest bound of all servers",
        "app/auth/keys/views.py",
        "longest: float = max(",
        "longest: float = min(",
        "store",
        lean=True,
    ),
    Mutant(
        "a server trusts what it knows for longer than others wait",
        "app/auth/store/cache.py",
        "counted = self._counted if monotonic() < self.usage.counted_until else 0.0",
        "counted = self._max_staleness",
        "store",
        lean=True,
    ),
    Mutant(
        "a server trusts an answer from when it came",
        "app/auth/store/cache.py",
        "self._asked_at, self._trusted_until = asked_at, asked_at + self._staleness()",
        "self._asked_at, self._trusted_until = asked_at, monotonic() + self._staleness()",
        "store",
        lean=True,
    ),
    Mutant(
        "who revokes holds everybody up",
        "app/management/router.py",
        "        await sleep(await run_in_threadpool(service.longest_staleness))",
        '        __import__("time").sleep(service.longest_staleness())',
        "api_keys",
    ),
    # A restore is followed, and a standby lets nobody in.
    Mutant(
        "what was read is not compared with the events",
        "app/auth/store/queries.py",
        "if not all(whole):",
        "if whole is None:",
        "restore",
    ),
    Mutant(
        "the events of a backup count before its keys are there",
        "app/auth/store/queries.py",
        "changed=digests if issued == len(digests) else None",
        "changed=digests",
        "restore",
    ),
    Mutant(
        "a key whose row is missing is unknown",
        "app/auth/store/queries.py",
        "        if row is None:  # though its digest was read, and nothing deletes a key\n"
        "            raise StoreUnavailableError(UNFIT)\n",
        "        if row is None:\n            return None\n",
        "restore",
    ),
    Mutant(
        "a standby is as good as the primary",
        "app/auth/database/engine.py",
        '"target_session_attrs": "primary"',
        '"target_session_attrs": "any"',
        "restore",
    ),
    Mutant(
        "a standby behind a pooler is not noticed",
        "app/auth/store/queries.py",
        '"NOT pg_is_in_recovery() AND ',
        '"',
        "restore",
    ),
    Mutant(
        "a backup counts before its rules are there",
        "app/auth/store/queries.py",
        """ AND 'api_keys_stay' IN (SELECT tgname FROM pg_trigger)""",
        "",
        "restore",
    ),
    Mutant(
        "the -wal of another file is added to a backup",
        "app/auth/database/engine.py",
        "is_noted = _refuse_strange_wal(path, inode)",
        "is_noted = False",
        "restore",
    ),
    Mutant(
        "a restore does not wait for servers",
        "app/auth/cli/context.py",
        "    sleep(seconds)\n",
        "",
        "restore",
    ),
    Mutant(
        "a session reads the settings again",
        "app/database.py",
        "(settings.latest or settings.load_settings())",
        "settings.load_settings()",
        "tables",
        lean=True,
    ),
    # A revocation is final, also beside another history of the database.
    Mutant(
        "the database lets a revocation be undone",
        "app/auth/database/migrate.py",
        '"OLD.revoked_at IS NOT NULL OR NEW.id <> OLD.id"',
        '"OLD.id = NEW.name"',
        "changes",
        lean=True,
    ),
    Mutant(
        "the database lets keys be replaced",
        "app/auth/database/migrate.py",
        '("api_keys", "INSERT", "id = NEW.id")',
        '("api_keys", "INSERT", "id = NEW.name")',
        "changes",
        lean=True,
    ),
    Mutant(
        "what was read before a revocation undoes it",
        "app/auth/store/cache.py",
        "            if changes == self.changes:",
        "            if changes <= self.changes:",
        "store",
        lean=True,
    ),
    Mutant(
        "a change that was heard of is forgotten",
        "app/auth/store/cache.py",
        "            self._secrets.pop(digest, None)",
        "            pass",
        "store",
        lean=True,
    ),
    Mutant(
        "another history with as many events is not noticed",
        "app/auth/store/queries.py",
        "if news.position == known:",
        "if news.position.event == known.event:",
        "store",
        lean=True,
    ),
    # The database out of reach: 503, no access on old knowledge, and back by itself.
    Mutant(
        "old knowledge counts while the database is out of reach",
        "app/auth/store/cache.py",
        "        if secret is None or monotonic() > self._trusted_until:",
        "        if secret is None or monotonic() > self._trusted_until + 5.0:",
        "store",
        lean=True,
    ),
    Mutant(
        "a file that was replaced stays in use",
        "app/auth/database/engine.py",
        "    if file_of(path) != opened.file:",
        "    if opened.file is None:",
        "store",
    ),
    Mutant(
        "the background dies of what it does not know",
        "app/auth/store/cache.py",
        "        except Exception:\n",
        "        except LookupError:\n",
        "store",
    ),
    Mutant(
        "nobody asks before somebody calls",
        "app/auth/store/cache.py",
        "lambda: self._staleness() / 4",
        "lambda: 60.0",
        "store",
        lean=True,
    ),
    # What has ended stays so whatever a clock says.
    Mutant(
        "a clock that goes back is followed",
        "app/auth/database/clock.py",
        "if now < self._latest <= now + _DAY:",
        "if now < self._latest <= now:",
        "store",
        lean=True,
    ),
    Mutant(
        "a clock that was far ahead is followed",
        "app/auth/database/clock.py",
        "            if moment <= limit:",
        "            if moment:",
        "store",
    ),
    Mutant(
        "a restart forgets how late it was",
        "app/auth/store/cache.py",
        "self._clock.learn(await",
        "str(await",
        "store",
    ),
    Mutant(
        "what has expired is not put down as ended",
        "app/auth/keys/change.py",
        "        self.end(secret.key_id == id, secret.expires_at <= self.now)\n",
        "",
        "changes",
        lean=True,
    ),
    Mutant(
        "the database lets what has ended come back",
        "app/auth/database/migrate.py",
        '"OLD.ended_at IS NOT NULL AND NEW.ended_at IS DISTINCT FROM OLD.ended_at"',
        '"OLD.digest <> OLD.digest"',
        "changes",
        lean=True,
    ),
    # A rotation leaves one or two secrets, whatever happens meanwhile.
    Mutant(
        "the database lets a key have two current secrets",
        "app/auth/database/migrate.py",
        "CREATE UNIQUE INDEX",
        "CREATE INDEX",
        "changes",
    ),
    Mutant(
        "a change and its event are two transactions",
        "app/auth/keys/change.py",
        "            event = {",
        '            self.connection.exec_driver_sql("COMMIT")\n'
        '            self.connection.exec_driver_sql("BEGIN")\n'
        "            event = {",
        "changes",
        lean=True,
    ),
    Mutant(
        "changes do not wait for each other in PostgreSQL",
        "app/auth/database/engine.py",
        'if write and engine.dialect.name == "postgresql":',
        'if write is None and engine.dialect.name == "postgresql":',
        "changes",
    ),
    Mutant(
        "a rotation drops the wrong one",
        "app/auth/keys/service.py",
        "in_force.pop(drop)",
        'in_force.pop("old" if drop == "new" else "new")',
        "access",
        lean=True,
    ),
    # A rotation widens nothing.
    Mutant(
        "a secret is said to outlive its key",
        "app/auth/keys/service.py",
        "min(ends_at, key.expires_at or ends_at)",
        "ends_at",
        "changes",
        lean=True,
    ),
    Mutant(
        "a rotation lets the old secret live longer",
        "app/auth/keys/change.py",
        "where(secret.digest == hashed, later)",
        "where(secret.digest == hashed)",
        "changes access",
        lean=True,
    ),
    Mutant(
        "the database lets a secret be moved to another key",
        "app/auth/database/migrate.py",
        "NEW.digest <> OLD.digest OR NEW.key_id <> OLD.key_id OR OLD.expires_at",
        "NEW.digest <> OLD.digest OR OLD.expires_at",
        "changes",
        lean=True,
    ),
    # A warm request costs one digest, no query and no write; unknown keys cost no memory.
    Mutant(
        "every request costs a query",
        "app/auth/store/cache.py",
        "                    self._secrets[digest] = secret\n",
        "",
        "store",
        lean=True,
    ),
    Mutant(
        "every unknown key costs a query",
        "app/auth/store/cache.py",
        "place < len(self._known) and self._known[place] == start",
        "place <= len(self._known)",
        "store",
    ),
    Mutant(
        "every caller asks the database",
        "app/auth/store/cache.py",
        "if not asking or asking.done() or",
        "if True or",
        "store",
    ),
    Mutant(
        "memory has no bound",
        "app/auth/store/cache.py",
        "                        del self._secrets[next(iter(self._secrets))]",
        "                        pass",
        "store",
    ),
    # Your code cannot starve the guard, nor can changes that wait.
    Mutant(
        "the guard has no threads of its own",
        "app/auth/store/queries.py",
        "run_in_executor(threads, function",
        "run_in_executor(None, function",
        "store",
    ),
    Mutant(
        "what is changed here is heard of later",
        "app/management/router.py",
        "await request.app.keys.refresh()",
        "pass",
        "api_keys",
    ),
    # A server under writes lives through whatever else opens its database.
    Mutant(
        "to ask for a file's identity opens it",
        "app/auth/database/engine.py",
        "        status = path.stat()\n",
        '        with path.open("rb"):\n            status = path.stat()\n',
        "replicas",
    ),
    Mutant(
        "of those who open a new file at once, one gives up",
        "app/auth/database/engine.py",
        "if not is_busy or monotonic() > give_up_at:",
        "if is_busy or monotonic() > give_up_at:",
        "changes",
    ),
    # Every change leaves one event, which nobody can change, by the user of the process.
    Mutant(
        "a revocation leaves no event",
        "app/auth/keys/service.py",
        '        change.record("revoked", actor, ids)\n',
        "",
        "changes",
        lean=True,
    ),
    Mutant(
        "the database lets events be changed",
        "app/auth/database/migrate.py",
        '("api_key_events", "UPDATE", "true")',
        '("api_key_events", "UPDATE", "OLD.id < 0")',
        "changes",
        lean=True,
    ),
    Mutant(
        "a variable says who did it",
        "app/auth/cli/context.py",
        "user = pwd.getpwuid(os.getuid()).pw_name",
        'user = os.environ.get("USER") or pwd.getpwuid(os.getuid()).pw_name',
        "keys_command",
        lean=True,
    ),
    # Managing keys needs `keys:manage`, grants and ends nothing that the caller lacks.
    Mutant(
        "managing keys needs no scope",
        "app/management/router.py",
        "if not request.scope[CALLER].covers(OWN) and (",
        "if not request.scope[CALLER] and (",
        "api_keys",
        lean=True,
    ),
    Mutant(
        "keys:own manages the keys of all",
        "app/management/router.py",
        "owner = None if caller.covers(MANAGE) else caller.owner",
        "owner = None",
        "api_keys",
        lean=True,
    ),
    Mutant(
        "keys:own sees the days of all",
        "app/management/search.py",
        "secret.key_id.in_(ids), is_of(owner)",
        "secret.key_id.in_(ids)",
        "api_keys",
    ),
    Mutant(
        "keys:own sees how others are used",
        "app/management/router.py",
        "report.of_all(service.engine, timedelta(days=days), service.owner)",
        "report.of_all(service.engine, timedelta(days=days))",
        "api_keys",
    ),
    Mutant(
        "keys:own sees the use of another key",
        "app/management/router.py",
        "report.of_key(service.engine, id, timedelta(days=days), service.owner)",
        "report.of_key(service.engine, id, timedelta(days=days))",
        "api_keys",
        lean=True,
    ),
    Mutant(
        "keys:own sees findings about the service",
        "app/management/router.py",
        "if each.id or service.owner is None]",
        "if each.id or service]",
        "api_keys",
    ),
    Mutant(
        "what the guard saw of a manager counts",
        "app/management/delegation.py",
        "if not (manages or (",
        "if not (True or (",
        "api_keys",
    ),
    Mutant(
        "a manager of an owner manages although it belongs to another one",
        "app/management/delegation.py",
        "manager.owner and manager.owner == change.owner",
        "manager.owner and change.owner",
        "api_keys",
    ),
    Mutant(
        "a manager widens itself",
        "app/management/delegation.py",
        "if change is not self._change:",
        "if change:",
        "api_keys",
    ),
    Mutant(
        "a patch clears what it does not name",
        "app/management/bodies.py",
        "for name in self.model_fields_set}",
        "for name in type(self).model_fields}",
        "api_keys",
        lean=True,
    ),
    Mutant(
        "null in a patch clears nothing",
        "app/management/bodies.py",
        "for name, it in given.items()}",
        "for name, it in given.items() if it is not None}",
        "api_keys",
        lean=True,
    ),
    Mutant(
        "a narrowed key is answered before all servers know",
        "app/management/router.py",
        'wait = not patch.model_fields_set <= {"name", "note"}',
        'wait = not patch.model_fields_set <= {"name", "note", "scopes"}',
        "api_keys",
        lean=True,
    ),
    Mutant(
        "a manager grants what it lacks",
        "app/management/delegation.py",
        "held.lacks(scope for scope in key.scopes if",
        "held.lacks(scope for scope in [] if",
        "api_keys",
    ),
    Mutant(
        "a manager makes what outlives it",
        "app/management/delegation.py",
        "        if end and (",
        "        if not end and (",
        "api_keys",
    ),
    Mutant(
        "a manager takes over a key that may do more",
        "app/auth/keys/service.py",
        "        authorize(change, key)\n        if key.status",
        "        if key.status",
        "api_keys",
    ),
    Mutant(
        "the last manager can be revoked",
        "app/auth/keys/service.py",
        "if not force and self._managers(change) < before:",
        "if not force and self._managers(change) > before:",
        "api_keys",
        lean=True,
    ),
    # A key changes, and what it loses is lost when the command returns.
    Mutant(
        "a paused key is let in",
        "app/auth/store/queries.py",
        '        if row.paused_at:\n            return Secret(key, 0.0, "paused key")\n',
        "",
        "access",
    ),
    Mutant(
        "a revoked key can be resumed",
        "app/auth/keys/service.py",
        'if key.status not in ("active", "paused"):',
        'if key.status == "expired":',
        "changes",
    ),
    Mutant(
        "an expired key can be updated",
        "app/auth/keys/service.py",
        'if key.status not in ("active", "paused"):',
        'if key.status == "revoked":',
        "changes",
    ),
    Mutant(
        "a paused key can be rotated",
        "app/auth/keys/service.py",
        'if key.status == "paused":\n            raise ConflictError',
        'if key.status == "ended":\n            raise ConflictError',
        "keys_command",
    ),
    Mutant(
        "the last manager can be paused",
        "app/auth/keys/service.py",
        "                self._keep_a_manager(change, managers, force)\n"
        '                change.record("paused"',
        '                change.record("paused"',
        "changes",
    ),
    Mutant(
        "the last manager can be narrowed",
        "app/auth/keys/service.py",
        "                self._keep_a_manager(change, managers, force)\n"
        "                authorize(change, updated)\n",
        "                authorize(change, updated)\n",
        "changes",
    ),
    Mutant(
        "an update is authorized for the key as it was alone",
        "app/auth/keys/service.py",
        "                authorize(change, updated)\n",
        "",
        "changes",
    ),
    Mutant(
        "an update does not say what has changed",
        "app/auth/keys/service.py",
        'change.record("updated", actor, [id], changes)',
        'change.record("updated", actor, [id])',
        "changes",
    ),
    Mutant(
        "an update that changes nothing leaves an event",
        "app/auth/keys/service.py",
        "if (updated := _with_owner(change.view(id))) != key:",
        "if (updated := _with_owner(change.view(id))) is not key:",
        "changes",
    ),
    Mutant(
        "an update does not wait",
        "app/auth/cli/changes.py",
        "        show_when_all_follow(service, updated, as_json)",
        "        show(updated, as_json)",
        "keys_command",
    ),
    Mutant(
        "a note may hold a key",
        "app/auth/keys/change.py",
        "if id or secret != spelled.encode():",
        "if not hashed:",
        "keys",
    ),
    Mutant(
        "what a key used without a quota is forgotten",
        "app/limits/policy.py",
        "is_known = self._charged.get(id(key)) is key",
        "is_known = True",
        "limits",
    ),
    Mutant(
        "in PostgreSQL a limit of another length ends in an error",
        "app/limits/postgresql_counter.py",
        "coalesce(oldest.time, now)",
        "oldest.time",
        "counters",
    ),
    # A secret is shown once; where it cannot be shown nothing has changed.
    Mutant(
        "a secret is shown after its key was made",
        "app/auth/keys/service.py",
        "        if show:\n            show(issued)",
        "        if show:\n            __import__('atexit').register(show, issued)",
        "keys_command",
        lean=True,
    ),
    Mutant(
        "a name that the terminal has no letters for hides the secret",
        "app/auth/cli/output.py",
        'reconfigure(errors="backslashreplace")',
        'reconfigure(errors="strict")',
        "keys_command",
    ),
    # A command makes no database and migrates none, unless told to, and says where it is.
    Mutant(
        "a file that was removed is made again",
        "app/auth/database/engine.py",
        'uri_of(path, "rw"),',
        'uri_of(path, "rwc"),',
        "store",
    ),
    Mutant(
        "commands migrate",
        "app/auth/cli/context.py",
        "return open_service(settings, wiring_of(ctx).make_policies(settings))",
        "return open_service(settings, wiring_of(ctx).make_policies(settings), migrate=True)",
        "keys_command",
        lean=True,
    ),
    Mutant(
        "a command shows the password of the place",
        "app/auth/cli/context.py",
        "render_as_string()",
        "render_as_string(hide_password=False)",
        "keys_command",
    ),
    # No key in the database.
    Mutant(
        "secrets are stored in the clear",
        "app/auth/keys/service.py",
        "change.checked(fields, self.policies), actor)",
        "change.checked(fields, self.policies), secret)",
        "secrecy",
        lean=True,
    ),
    # No key in a log, an error or a document.
    Mutant(
        "a key that is taken for an id is shown",
        "app/auth/keys/views.py",
        "'{masked(id)}'",
        "{id!r}",
        "secrecy",
        lean=True,
    ),
    # A bad setting ends the service, and its workers, in one helpful line, without its value.
    Mutant(
        "a password is shown",
        "app/auth/database/engine.py",
        'message.replace(str(url.password), "***") if url.password else message',
        "message",
        "settings",
    ),
    RESTARTED,
    Mutant(
        "an older schema is used",
        "app/auth/database/engine.py",
        "    if found < SCHEMA:",
        '    if found < "":',
        "keys_command",
        lean=True,
    ),
    # When keys were last used.
    Mutant(
        "what could not be written is forgotten",
        "app/auth/store/usage_writer.py",
        "self._used, self._saw_an_end = used | self._used, True",
        "self._saw_an_end = True",
        "store",
        lean=True,
    ),
    Mutant(
        "a stop forgets when keys were last used",
        "app/auth/store/cache.py",
        "            await self.flush(stopping=True)",
        "            self._usage._used = {}",
        "store",
        lean=True,
    ),
    Mutant(
        "last used goes back",
        "app/auth/store/queries.py",
        "sa.or_(last.is_(None), last < at, last > earliest_wrong)",
        "sa.or_(last.is_(None), last != at, last > earliest_wrong)",
        "store",
    ),
    Mutant(
        "all uses are written in one transaction",
        "app/auth/store/queries.py",
        "for first in range(0, len(uses), FLUSH_AT_ONCE):\n"
        "            with transaction(self.engine, write=True) as connection:\n"
        "                connection",
        "with transaction(self.engine, write=True) as connection:\n"
        "            for first in range(0, len(uses), FLUSH_AT_ONCE):\n"
        "                connection",
        "store",
    ),
    # The schema, and the owner's tables.
    Mutant(
        "two migrate at the same time",
        "app/auth/database/migrate.py",
        "timeout=LONG_TIMEOUT), write=True)",
        "timeout=LONG_TIMEOUT))",
        "changes",
    ),
    Mutant(
        "a rebuilt table loses its triggers",
        "app/auth/database/owner_migrations.py",
        "type = 'trigger'",
        "type = ''",
        "tables",
    ),
    # Usage is exact, and takes no memory.
    Mutant(
        "a write whose answer was lost counts twice",
        "app/auth/store/queries.py",
        "if (written or 0) < batch.number:",
        "if True:",
        "usage",
    ),
    Mutant(
        "what is written while the use of a key is read is left out",
        "app/limits/usage.py",
        "if made == usage.counts.made:",
        "if True:",
        "usage",
    ),
    Mutant(
        "what is being written while the use of a key is read counts twice",
        "app/limits/usage.py",
        "if batch.number > last and ",
        "if ",
        "usage",
    ),
    Mutant(
        "without a lifespan usage is not written",
        "app/auth/store/cache.py",
        "        if came_at > self._flush_at:\n            await self._flush_in_request()\n",
        "",
        "lifespan",
    ),
    Mutant(
        "a poll of a loop that has ended is waited for",
        "app/auth/store/cache.py",
        " or asking.get_loop() is not asyncio.get_running_loop():",
        ":",
        "lifespan",
    ),
    Mutant(
        "a write without a lifespan holds its request up",
        "app/auth/store/cache.py",
        "await asyncio.wait_for(writing, self._timeout)",
        "await writing",
        "lifespan",
    ),
    Mutant(
        "all that is old is compacted in one transaction",
        "app/auth/usage/counts.py",
        ".order_by(starts_at).limit(AT_ONCE)",
        ".order_by(starts_at)",
        "usage",
    ),
    Mutant(
        "strangers from everywhere fill the database",
        "app/auth/usage/counts.py",
        "or len(kinds[period]) < MOST_NETWORKS:",
        "or True:",
        "usage",
    ),
    Mutant(
        "all strangers are listed",
        "app/auth/usage/report.py",
        ".order_by(*order).limit(MOST_LISTED)",
        ".order_by(*order)",
        "usage",
    ),
    Mutant(
        "a write that failed is forgotten",
        "app/auth/store/usage_writer.py",
        "                await run(self.threads, None, self.queries.add, batch := batches[0])\n",
        "                await run(self.threads, None, self.queries.add, batches.popleft())\n",
        "usage",
    ),
    Mutant(
        "a flood from everywhere takes memory",
        "app/auth/usage/counts.py",
        "if len(self._refusals) < MOST_NETWORKS else ELSEWHERE",
        "if len(self._refusals) < 10**9 else ELSEWHERE",
        "usage",
    ),
    # What Prometheus is told.
    Mutant(
        "a full disk ends the service",
        "app/metrics/__init__.py",
        "disk_usage(folder).free < LEAST_FREE",
        "disk_usage(folder).free < 0",
        "metrics",
    ),
    Mutant(
        "one of several workers speaks for all",
        "app/metrics/__init__.py",
        "return workers != 1",
        "return False",
        "metrics",
    ),
    Mutant(
        "a stranger's method is a label",
        "app/metrics/__init__.py",
        'record.method if record.method in _METHODS else "other"',
        "record.method",
        "metrics",
    ),
    Mutant(
        "what a database says is a label",
        "app/auth/access/rule.py",
        "Refusal(OUT_OF_REACH, answer=_out_of_reach,",
        'Refusal(f"{error}", answer=_out_of_reach,',
        "metrics",
    ),
    Mutant(
        "a worker tells its own share for the whole",
        "app/metrics/__init__.py",
        "[_Sums()] if shared else [_ours, REGISTRY]",
        "[_ours, REGISTRY]",
        "metrics",
    ),
    Mutant(
        "an address has any text behind it",
        "app/limits/allowed_from.py",
        'None if "%" in text else ip_interface(text)',
        "ip_interface(text)",
        "networks",
    ),
    Mutant(
        "an IPv4 address that is written as IPv6 lets nobody in",
        "app/limits/allowed_from.py",
        "(mapped := whole.network_address.ipv4_mapped)",
        "(mapped := None)",
        "networks",
    ),
    Mutant(
        "a day that is told as a whole is left out",
        "app/auth/usage/report.py",
        "(start >= hour.replace(hour=0)) &",
        "(start >= hour) &",
        "usage",
    ),
    Mutant(
        "a new key is called unusual",
        "app/auth/usage/findings.py",
        "if key.created_at < now - timedelta(days=7):",
        "if key.created_at < now:",
        "unusual",
    ),
    Mutant(
        "a file that has just gone hides all others",
        "app/metrics/__init__.py",
        "suppress(FileNotFoundError):  # the file",
        "suppress(ImportError):  # the file",
        "metrics",
    ),
    Mutant(
        "a file that has just been made hides all others",
        "app/metrics/__init__.py",
        "                if path.stat().st_size:",
        "                if path.stat():",
        "metrics",
    ),
    Mutant(
        "one of several does not say so",
        "app/metrics/__init__.py",
        "    if not shared and ",
        "    if False and ",
        "metrics",
    ),
    Mutant(
        "everybody with a key is told the metrics",
        "app/metrics/__init__.py",
        'GuardedRouter(dependencies=[require("metrics:read")])',
        "GuardedRouter()",
        "metrics",
    ),
    Mutant(
        "what is refused for want of a scope counts as served",
        "app/auth/access/rule.py",
        'self.reason, "refused"',
        'self.reason, "served"',
        "usage",
        lean=True,
    ),
    Mutant(
        "thinning loses what was in the day already",
        "app/auth/usage/counts.py",
        "table.c[name] + statement.excluded[name]",
        "statement.excluded[name]",
        "usage",
    ),
    Mutant(
        "a server that stops takes its last counts with it",
        "app/auth/store/cache.py",
        "            await self.flush(stopping=True)\n",
        "            self._usage._counts = type(self._usage._counts)()\n            await self.flush(stopping=True)\n",
        "usage",
    ),
    Mutant(
        "every busy hour is unusual",
        "app/auth/usage/findings.py",
        "max(1000, 10 * activity.busiest_before)",
        "1000",
        "unusual",
    ),
    # Limits hold, for a key as a whole, and are told.
    Mutant(
        "a second that has begun is not waited for",
        "app/limits/limit.py",
        "min(ceil(charge.wait)",
        "min(int(charge.wait)",
        "limits",
    ),
    Mutant(
        "a client is told to wait longer than its timer can",
        "app/limits/limit.py",
        ', CALENDAR["day"])',
        ", MOST)",
        "limits",
    ),
    Mutant(
        "a default is forgotten for who has a quota",
        "app/limits/limit.py",
        "own if any(limit.seconds for limit in own) else",
        "own if own else",
        "limits",
    ),
    Mutant(
        "each secret of a key has the limit for itself",
        "app/limits/policy.py",
        "charge(key.id, limits, ",
        'charge(f"{id(key)}", limits, ',
        "limits",
    ),
    Mutant(
        "a key that was seen is let in without a charge",
        "app/auth/access/middleware.py",
        "                and not caller.restrictions\n"
        "                and not [policy for policy in self._policies if policy.concerns(caller)]\n",
        "",
        "limits",
    ),
    Mutant(
        "who is over a limit counts as who guesses",
        "app/auth/access/rule.py",
        "isinstance(decision, Admission) or decision.limited:",
        "isinstance(decision, Admission):",
        "limits",
    ),
    Mutant(
        "who gets in is not told what is left",
        "app/auth/access/request_log.py",
        "[*given, *self.headers]",
        "[*given]",
        "limits",
    ),
    Mutant(
        "what a limit refuses counts as refused",
        "app/auth/access/rule.py",
        'record.outcome = "limited"',
        'record.outcome = "refused"',
        "limits",
    ),
    Mutant(
        "what a limit refuses uses up a quota",
        "app/limits/usage.py",
        "sum(counted.served + counted.refused)",
        "sum(counted.served + counted.refused + counted.limited)",
        "limits",
    ),
    # Limits are counted where the keys are; while that is out of reach, each server counts alone.
    Mutant(
        "a window is a moment too long",
        "app/limits/sqlite_counter.py",
        "AND time > ? ORDER BY time LIMIT 1 OFFSET ?",
        "AND time >= ? ORDER BY time LIMIT 1 OFFSET ?",
        "counters",
    ),
    Mutant(
        "what one limit refuses is charged to others",
        "app/limits/sqlite_counter.py",
        "    if min(left) <= 0:\n",
        "    if max(left) <= 0:\n",
        "counters",
    ),
    Mutant(
        "requests of one moment are one",
        "app/limits/sqlite_counter.py",
        "    now = max(now, latest + 1)\n",
        "    now = max(now, latest)\n",
        "counters",
    ),
    Mutant(
        "who had a higher limit comes back too soon",
        "app/limits/sqlite_counter.py",
        "if used > window.requests:  # the",
        "if used > 10**9:  # the",
        "counters",
    ),
    Mutant(
        "a clock that was far ahead keeps keys out",
        "app/limits/sqlite_counter.py",
        "if latest >= now + SECOND:",
        "if latest >= now + 10**18:",
        "counters",
    ),
    Mutant(
        "what has ended takes room",
        "app/limits/sqlite_counter.py",
        "run(_SWEEP, (now, AT_ONCE))",
        "pass",
        "counters",
    ),
    Mutant(
        "all that has ended goes in one charge",
        "app/limits/sqlite_counter.py",
        "run(_SWEEP, (now, AT_ONCE))",
        "run(_SWEEP, (now, 10**9))",
        "counters",
    ),
    Mutant(
        "a quota is what a server counted",
        "app/limits/sqlite_counter.py",
        "used = max(window.used, *(run(_USED, quota).fetchone() or (-1,)))",
        "used = max(0, *(run(_USED, quota).fetchone() or (0,)))",
        "counters",
    ),
    Mutant(
        "who came before midnight takes a day back",
        "app/limits/sqlite_counter.py",
        "_seconds(window) - 2 * CALENDAR[window.period]",
        "_seconds(window) + 2 * CALENDAR[window.period]",
        "counters",
    ),
    Mutant(
        "a file that is taken away goes on counting",
        "app/limits/sqlite_counter.py",
        "file_of(self._path) != self._file:  # somebody",
        "file_of(self._path) is self:  # somebody",
        "counters",
    ),
    Mutant(
        "a broken file stays",
        "app/limits/sqlite_counter.py",
        "            if is_broken and self._path",
        "            if not is_broken and self._path",
        "counters",
    ),
    Mutant(
        "who names a file by a link counts apart",
        "app/limits/sqlite_counter.py",
        "{keys.resolve()}-limits",
        "{keys}-limits",
        "counters",
    ),
    Mutant(
        "counts of another boot go on",
        "app/limits/sqlite_counter.py",
        "-limits{_boot()}",
        "-limits-{id(self)}",
        "counters",
    ),
    Mutant(
        "files of another boot stay",
        "app/limits/sqlite_counter.py",
        "        if old.name != path.name:",
        "        if old.name == path.name:",
        "counters",
    ),
    Mutant(
        "an empty file is waited for for ever",
        "app/limits/sqlite_counter.py",
        "> MADE_IN:",
        "> 10**10:",
        "counters",
    ),
    Mutant(
        "a full disk leaves an empty file",
        "app/limits/sqlite_counter.py",
        "if self._path and not self._path.stat().st_size:",
        "if self._path is self:",
        "counters",
    ),
    Mutant(
        "a file that others hold is waited for without end",
        "app/limits/sqlite_counter.py",
        "if monotonic() > give_up_at:",
        "if monotonic() < 0:",
        "counters",
    ),
    Mutant(
        "a write of another process is an error",
        "app/limits/sqlite_counter.py",
        "            if code == sqlite3.SQLITE_BUSY:\n                raise _BusyError\n",
        "",
        "counters charges",
    ),
    Mutant(
        "PostgreSQL charges to others what one limit refuses",
        "app/limits/postgresql_counter.py",
        "    IF taken >= windows[i] THEN",
        "    IF taken > windows[i] THEN",
        "counters",
    ),
    Mutant(
        "servers that share PostgreSQL do not wait for each other",
        "app/limits/postgresql_counter.py",
        "  PERFORM pg_advisory_xact_lock(hashtextextended(whose, 0));\n",
        "",
        "counters charges",
    ),
    Mutant(
        "a clock of PostgreSQL that was ahead keeps keys out",
        "app/limits/postgresql_counter.py",
        "IF latest.time > now + longest THEN",
        "IF latest.time > now + 1000000000000000 THEN",
        "counters",
    ),
    Mutant(
        "PostgreSQL keeps counts for ever",
        "app/limits/postgresql_counter.py",
        "WHERE leaves_at <= now ORDER",
        "WHERE leaves_at <= 0 ORDER",
        "counters",
    ),
    Mutant(
        "PostgreSQL forgets what is in a window",
        "app/limits/postgresql_counter.py",
        "WHERE leaves_at <= now ORDER",
        "WHERE leaves_at <= now + 1000000000 ORDER",
        "counters",
    ),
    Mutant(
        "a PostgreSQL without memory begins quotas anew",
        "app/limits/postgresql_counter.py",
        "      IF taken < 0 THEN",
        "      IF taken < -1 THEN",
        "counters",
    ),
    Mutant(
        "an isolation level that sees no others is used",
        "app/limits/postgresql_counter.py",
        "<> 'read committed' THEN",
        "<> 'no level' THEN",
        "counters",
    ),
    Mutant(
        "who asks a frozen PostgreSQL hangs",
        "app/limits/postgresql_counter.py",
        "call_at(give_up_at, _hang_up, connection)",
        "call_at(give_up_at + 600, _hang_up, connection)",
        "counters",
    ),
    Mutant(
        "db upgrade makes no tables for limits",
        "app/limits/postgresql_counter.py",
        "bool(connection.exec_driver_sql(_IS_MISSING).scalar())",
        "False",
        "limits",
    ),
    Mutant(
        "a window of Valkey is a moment too long",
        "app/limits/valkey_counter.py",
        "oldest and oldest <= now - span",
        "oldest and oldest < now - span",
        "counters",
    ),
    Mutant(
        "Valkey charges to others what one limit refuses",
        "app/limits/valkey_counter.py",
        "  if not over then",
        "  if left[i] > 0 then",
        "counters",
    ),
    Mutant(
        "Valkey keeps counts for ever",
        "app/limits/valkey_counter.py",
        "      redis.call('EXPIRE', key, ARGV[4 * i])\n",
        "",
        "valkey",
    ),
    Mutant(
        "a clock of Valkey that was ahead keeps keys out",
        "app/limits/valkey_counter.py",
        "if oldest and oldest > now + span then",
        "if oldest and oldest > now + 1e15 then",
        "counters",
    ),
    Mutant(
        "a Valkey without memory begins quotas anew",
        "app/limits/valkey_counter.py",
        "redis.call('GET', key) or -1)",
        "redis.call('GET', key) or 0)",
        "counters",
    ),
    Mutant(
        "a quota goes on in Valkey when its period is over",
        "app/limits/valkey_counter.py",
        'names.append(f"{name}:{window.begins_at:%Y-%m-%d}")',
        "names.append(name)",
        "counters",
    ),
    Mutant(
        "servers that share Valkey count apart",
        "app/limits/valkey_counter.py",
        '"{" + key_id + "}:"',
        '"{" + key_id + f"{id(self)}" + "}:"',
        "counters",
    ),
    Mutant(
        "who asks a frozen Valkey hangs",
        "app/limits/valkey_counter.py",
        "asyncio.timeout_at(give_up_at)",
        "asyncio.timeout_at(give_up_at + 600)",
        "counters",
    ),
    Mutant(
        "a connection that was closed meanwhile is an error",
        "app/limits/connections.py",
        "if not (reused and isinstance(error, self._lost)):",
        "if not (reused and self is None):",
        "counters",
    ),
    Mutant(
        "another event loop uses the connections of the first",
        "app/limits/connections.py",
        "(pool := self._pools.get(loop))",
        "(pool := next(iter(self._pools.values()), None))",
        "counters",
    ),
    Mutant(
        "out of reach nobody counts",
        "app/limits/limiter.py",
        "        if admitted:\n            return Charge(told)\n",
        "        if admitted or self._problem:\n            return Charge(told)\n",
        "counters",
    ),
    Mutant(
        "out of reach it is waited for each time",
        "app/limits/limiter.py",
        "                self._ask_at = monotonic() + PAUSE\n                self._say",
        "                self._say",
        "counters",
    ),
    Mutant(
        "all try again at once",
        "app/limits/limiter.py",
        "                self._ask_at = now + PAUSE\n",
        "                pass\n",
        "counters",
    ),
    Mutant(
        "each request says that it is out of reach",
        "app/limits/limiter.py",
        "        if not self._problem:\n            logger",
        "        if problem:\n            logger",
        "counters",
    ),
    Mutant(
        "back in reach a quota is what it was before",
        "app/limits/limiter.py",
        "                knows = is_known and key_id not in self._apart\n",
        "                knows = is_known\n",
        "counters",
    ),
    Mutant(
        "a start does not try whether limits can be counted",
        "app/limits/policy.py",
        "        await self._limiter.check()\n",
        "",
        "limits",
    ),
    Mutant(
        "of several limits the first wait is told",
        "app/limits/limiter.py",
        "limits[waits.index(max(waits))], max(waits)",
        "limits[waits.index(min(w for w in waits if w))], min(w for w in waits if w)",
        "counters",
    ),
    Mutant(
        "out of reach a quota is what it was the last time",
        "app/limits/limiter.py",
        "                self._apart.discard(key_id)\n",
        "",
        "counters",
    ),
    # A key is used from where it may be, and no manager hands on more than it has.
    Mutant(
        "who calls from elsewhere uses up a limit",
        "app/policies.py",
        "    policies.append(AddressPolicy())\n"
        "    limits = (settings.rate_limit, settings.valkey_url, settings.database_url)\n"
        "    policies.append(LimitPolicy(*limits, store))\n",
        "    limits = (settings.rate_limit, settings.valkey_url, settings.database_url)\n"
        "    policies.append(LimitPolicy(*limits, store))\n"
        "    policies.append(AddressPolicy())\n",
        "networks",
    ),
    Mutant(
        "a key for everywhere is within any networks",
        "app/limits/allowed_from.py",
        "(bool(inner) and all(",
        "(all(",
        "networks",
    ),
    Mutant(
        "a manager renews a key that is freer",
        "app/management/delegation.py",
        "        for policy in self._policies:\n",
        "        for policy in self._policies[:0]:\n",
        "networks",
    ),
    Mutant(
        "a manager without a limit of his own is freer than the default",
        "app/limits/policy.py",
        "theirs = with_default(parse_limits(outer), self._default)",
        "theirs = parse_limits(outer)",
        "networks",
    ),
    Mutant(
        "a manager makes a key that may send more",
        "app/limits/policy.py",
        "        if not are_within(with_default(parse_limits(inner), self._default), theirs):",
        "        if theirs is None:",
        "networks",
    ),
    # From where keys are used is noted in little space, and what is unusual is told once.
    Mutant(
        "networks are noted for all days as one",
        "app/auth/usage/counts.py",
        "network = hour // 24, digest, _network_of(client)",
        "network = 0, digest, _network_of(client)",
        "usage",
    ),
    Mutant(
        "a secret has networks without end",
        "app/auth/usage/counts.py",
        "MOST_OF_A_SECRET - stored.get(of, 0)",
        "10**9",
        "usage",
    ),
    Mutant(
        "networks take memory",
        "app/auth/usage/counts.py",
        "len(self._networks) < MOST_NETWORKS",
        "len(self._networks) < 10**9",
        "usage",
    ),
    Mutant(
        "networks that are noted take memory",
        "app/auth/usage/counts.py",
        "if len(self._noted) > MOST_NOTED:",
        "if len(self._noted) > 10**9:",
        "usage",
    ),
    Mutant(
        "networks that could not be written are forgotten",
        "app/auth/store/usage_writer.py",
        "                await run(self.threads, None, self.queries.note_networks, networks)\n"
        "                self.counts.noted(networks)",
        "                self.counts.noted(networks)\n"
        "                await run(self.threads, None, self.queries.note_networks, networks)",
        "usage",
    ),
    Mutant(
        "networks of yesterday evening are forgotten at midnight",
        "app/auth/usage/findings.py",
        "microsecond=0) - DAY",
        "microsecond=0)",
        "unusual",
    ),
    Mutant(
        "who always calls from many networks is unusual",
        "app/auth/usage/findings.py",
        "max(10, 3 * activity.networks_before)",
        "10",
        "unusual",
    ),
    Mutant(
        "what was unusual once is never told again",
        "app/auth/usage/findings.py",
        "        connection.execute(over)\n",
        "",
        "unusual",
    ),
    Mutant(
        "a key beyond the most has series of its own",
        "app/metrics/__init__.py",
        'label if label in known else "others"',
        "label",
        "metrics",
    ),
    # Keys from elsewhere, and a copy of the database.
    Mutant(
        "a log shows an imported key",
        "app/auth/store/cache.py",
        "        if self._queries.has_imported:",
        "        if False:",
        "transfer",
        lean=True,
    ),
    Mutant(
        "a digest that is here is taken again",
        "app/transfer/keys.py",
        "        if any(bytes.fromhex(secret.digest) in known for secret in line.secrets):",
        "        if False:",
        "transfer",
        lean=True,
    ),
    Mutant(
        "a key that was switched off elsewhere gets in",
        "app/transfer/formats.py",
        "is_on = is_on and not any(_all(row, _ENDED))",
        "is_on = True",
        "transfer",
    ),
    Mutant(
        "the digest of a default comes in",
        "app/transfer/formats.py",
        "        if found in guessed:",
        "        if False:",
        "transfer",
    ),
    Mutant(
        "an id of a request shows an imported key",
        "app/auth/access/request_log.py",
        'return "" if any(imported_in(id, 64)) else id',
        "return id",
        "transfer",
    ),
    Mutant(
        "servers do not count what an import has brought",
        "app/auth/store/queries.py",
        '(*CREATING, "rotated", "imported secret")',
        '(*CREATING, "rotated")',
        "transfer",
    ),
    Mutant(
        "a copy that came out otherwise is kept",
        "app/transfer/copy.py",
        "        if read != written[table]:",
        "        if False:",
        "copy",
    ),
    Mutant(
        "a copy lets others write meanwhile",
        "app/transfer/copy.py",
        "with transaction(source, write=True) as old",
        "with transaction(source) as old",
        "copy",
    ),
    Mutant(
        "the numbers of a copied table begin anew",
        "app/transfer/copy.py",
        "        _move_sequences(new, tables)",
        "        pass",
        "copy",
    ),
    # What a proxy is told that asks.
    Mutant(
        "a proxy that asks for a scope lets everybody with a key through",
        "app/gateway/router.py",
        "if lacking := caller.lacks(scopes):",
        "if lacking := caller.lacks(()):",
        "gateway",
    ),
    Mutant(
        "a misspelled question lets everybody in",
        "app/gateway/router.py",
        'asked.keys() - {"scope"} or',
        "False or",
        "gateway",
    ),
    Mutant(
        "a header of identity without a value is left out",
        "app/gateway/router.py",
        "zip(_IDENTITY, values, strict=True))}",
        "filter(all, zip(_IDENTITY, values, strict=True)))}",
        "gateway",
    ),
    Mutant(
        "an owner breaks out of its header",
        "app/gateway/router.py",
        "quote(caller.owner, safe=_ASCII)",
        "caller.owner",
        "gateway",
    ),
    Mutant(
        "a question with an unusual method is refused",
        "app/gateway/router.py",
        "router.add_route(PATH, verify, methods=[])",
        'router.add_route(PATH, verify, methods=["POST"])',
        "gateway",
    ),
    Mutant(
        "anybody says for what request a proxy asks",
        "app/gateway/router.py",
        'record.scope["client"][1] != 0',
        "False",
        "gateway",
    ),
    Mutant(
        "a question makes reasons of its own",
        "app/gateway/router.py",
        'f"missing scope at {PATH}"',
        'f"missing scope {lacking}"',
        "gateway",
    ),
    # What `keys doctor` finds.
    Mutant(
        "scopes that a dependency asks for count as those of no endpoint",
        "app/auth/usage/findings.py",
        "in scopes_of(place.asks)",
        "in place.asks.own_oauth_scopes or ()",
        "doctor",
    ),
]

SUITES: dict[str, list[Mutant]] = {"env": ENV, "database": DATABASE}


def lean_tests(project: Project) -> list[str]:
    """The command for the project's own suite, but for the parts."""
    modules = sorted((project.path / "tests").glob("test_*.py"))
    return ["uv", "run", "--quiet", "pytest", *OPTIONS, "tests/auth", *map(str, modules)]


def thorough_tests(flavour: str, names: set[str]) -> list[str]:
    modules = [f"tests/thorough/test_{name}.py" for name in sorted(names)]
    return with_tools(flavour, "pytest", *OPTIONS, *modules)


def passes(project: Project, command: list[str], **variables: str) -> bool:
    with subprocess.Popen(
        command,
        cwd=project.path,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        start_new_session=True,
    ) as pytest:
        try:
            output, _ = pytest.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(pytest.pid, signal.SIGINT)  # first, so that no database is left running
            with suppress(subprocess.TimeoutExpired):
                pytest.wait(30)
            return False
        finally:
            if pytest.poll() is None:
                os.killpg(pytest.pid, signal.SIGKILL)
    # Anything else is no test that failed: say, a module that cannot be imported.
    assert pytest.returncode in (0, 1), output
    return not pytest.returncode


def survives(project: Project, mutant: Mutant, command: list[str]) -> bool:
    file = project.path / mutant.file
    original = project.read(mutant.file)
    try:
        file.write_text(original.replace(mutant.old, mutant.new), "utf-8")
        # No bytecode: it might outlive the mutant.
        return passes(project, command, PYTHONDONTWRITEBYTECODE="1")
    finally:
        file.write_text(original, "utf-8")


def is_chosen(mutant: Mutant, words: set[str]) -> bool:
    kind = "lean" if mutant.lean else "thorough"
    return not words or kind in words or not words.isdisjoint(mutant.what.split())


def main(*words: str) -> None:
    count, survivors = 0, 0
    for flavour, suite in SUITES.items():
        mutants = [each for each in suite if is_chosen(each, {*words})]
        if not mutants:
            continue
        with silence():
            project = render_afresh(FOLDER / flavour, EVERYTHING[flavour])
        project.run("uv", "sync", "--quiet")
        project.lay_thorough(flavour)
        lean = lean_tests(project)
        named = {name for each in mutants if not each.lean for name in each.tests.split()}
        assert passes(project, lean), f"{flavour}: the lean tests fail as it is"
        for name in sorted(named):
            command = thorough_tests(flavour, {name})
            assert passes(project, command), f"{flavour}: test_{name}.py fails as it is"
        for mutant in mutants:
            command = lean if mutant.lean else thorough_tests(flavour, {*mutant.tests.split()})
            survived = survives(project, mutant, command)
            count, survivors = count + 1, survivors + survived
            kind = "lean" if mutant.lean else "thorough"
            print(
                f"{'SURVIVED' if survived else 'noticed ':<8}  {kind:<8}  {mutant.what}", flush=True
            )
    print(f"{count} mutants, {survivors} survived")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main(*sys.argv[1:])
