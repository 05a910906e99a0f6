"""Let generated services live a hard life, for as long as MINUTES says, and watch their promises.

Servers are killed and started again, keys come, go, rest and change by the command line, whose
clock is wrong now and then, and another program opens the files without pause. Meanwhile clients
check that a request sent after `revoke` or `pause` returned is never let in, that a valid key and
one that is resumed always is, and that nobody else ever is; that no window of a limit holds more than its number, and that a quota is exact. Some
of the servers run no lifespan. In between, the state machines of the thorough tests explore at random. Ends with 1 at a fault.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from tests.project import (
    EVERYTHING,
    FLAVOURS,
    ROOT,
    Project,
    environment,
    get,
    postgresql,
    render_afresh,
    with_tools,
)
from tools.render import silence

FOLDER: Final = ROOT / ".cache" / "soak"
HEADER: Final = "api-key"
LIVES: Final = 20.0  # seconds of one life of the servers
LET_IN, REFUSED, SLOWED, UNAVAILABLE = 200, 403, 429, 503
UNKNOWN_FOR: Final = 1.0  # seconds for which a new key may be one of the guesses of an address
RATE, QUOTA = 5, 150  # of a key with limits: a second, and a month
LIVES_OF_A_QUOTA: Final = 3
STRANGER: Final = "0b0d9a52-6c1c-4f4e-9a53-7f6f1b8f7a11"  # not-a-key


# The command line, where the clock says something else.
COMMAND: Final = """
import sys, time
now, shift = time.time, float(sys.argv.pop(1))
time.time = lambda: now() + shift
from app.cli import main
main()
"""


def chance(probability: float) -> bool:
    return random.random() < probability


class FaultError(Exception):
    """A promise was broken."""


@dataclass
class Keys:
    """What the clients are to expect of each secret, and since when: since a command returned."""

    valid: dict[str, float] = field(default_factory=dict)
    revoked: dict[str, float] = field(default_factory=dict)  # for good, or until it is resumed
    faults: list[str] = field(default_factory=list)
    requests: int = 0
    commands: int = 0
    killed: int = 0


def ask(url: str, secret: str | None) -> int:
    """The status; 0 if the server is not there."""
    try:
        return get(url, {HEADER: secret} if secret else {})[0]
    except OSError:
        return 0


def watch(urls: list[str], keys: Keys, stop: threading.Event) -> None:
    while not stop.is_set():
        known = [*keys.valid, *keys.revoked, STRANGER, None]
        secret, url, sent_at = random.choice(known), random.choice(urls), time.monotonic()
        # What is expected when it is sent, and still when it is answered.
        valid, revoked = keys.valid.get(f"{secret}"), keys.revoked.get(f"{secret}")
        status = ask(url, secret)
        valid = valid if valid == keys.valid.get(f"{secret}") else None
        revoked = revoked if revoked == keys.revoked.get(f"{secret}") else None
        keys.requests += 1
        if status == 0:
            time.sleep(0.02)
        elif status not in (LET_IN, REFUSED, SLOWED, UNAVAILABLE):
            keys.faults.append(f"an answer {status}")
        elif status == LET_IN and secret in (STRANGER, None):
            keys.faults.append("a stranger was let in")
        elif status == LET_IN and revoked is not None and sent_at > revoked:
            keys.faults.append(f"let in {sent_at - revoked:.3f} s after `revoke` or `pause`")
        elif status == REFUSED and valid is not None and sent_at > valid:
            age = sent_at - valid
            keys.faults.append(f"a valid key was refused {age:.3f} s after it was one, by {url}")
        elif status == SLOWED and valid is not None and sent_at > valid + UNKNOWN_FOR:
            age = sent_at - valid
            keys.faults.append(f"a valid key was slowed {age:.3f} s after it was one, by {url}")


@dataclass
class Limited:
    """What the clients know of a key with a limit and a quota."""

    secret: str
    lives: int = 0
    sent: int = 0
    not_charged: int = 0
    served: list[tuple[float, float]] = field(default_factory=list)  # when sent, and answered
    lock: threading.Lock = field(default_factory=threading.Lock)

    def spend(self, urls: list[str], faults: list[str], stop: threading.Event) -> None:
        while not stop.is_set():
            with self.lock:
                self.sent += 1
            sent_at, status, told = time.monotonic(), 0, ""
            with suppress(OSError):
                status, _, told = get(random.choice(urls), {HEADER: self.secret})
            with self.lock:
                if status == LET_IN:
                    self.served.append((sent_at, time.monotonic()))
                elif status == SLOWED and "/month" in told and self.charged() <= QUOTA:
                    faults.append(f"a quota of {QUOTA} was spent by {self.charged() - 1}")
                # Without an answer it may be charged all the same.
                self.not_charged += status in (REFUSED, SLOWED)
            time.sleep(random.random() / 20)

    def charged(self) -> int:
        """At most so many, and those that are under way."""
        return self.sent - self.not_charged

    def check(self) -> Iterator[str]:
        """Each was charged between its two moments."""
        served = sorted(self.served, key=lambda times: times[1])
        for first in range(len(served) - RATE):
            window = served[first : first + RATE + 1]
            if (took := window[-1][1] - min(sent_at for sent_at, _ in window)) < 1.0:
                yield f"{RATE + 1} requests in {took:.3f} s with a limit of {RATE}/second"
        if len(served) > QUOTA:
            yield f"{len(served)} requests with a quota of {QUOTA}"


def open_and_close(folder: Path, stop: threading.Event) -> None:
    """As any other program on the machine may: a backup, a scanner, somebody's editor."""
    command = (
        "import glob, sys, time\n"
        "while True:\n"
        "    for name in glob.glob('keys.db*') + ['.env']:\n"
        "        try:\n"
        "            open(name, 'rb').close()\n"
        "        except OSError:\n"
        "            pass\n"
        "    time.sleep(0.001)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", command], cwd=folder)
    stop.wait()
    process.kill()
    process.wait()


@dataclass
class Life:
    """One project, its database, and what is done to them."""

    name: str
    project: Project
    flavour: str
    variables: dict[str, str]
    keys: Keys = field(default_factory=Keys)
    ids: dict[str, str] = field(default_factory=dict)  # of the valid secrets
    resting: dict[str, str] = field(default_factory=dict)  # and of the paused ones
    limited: Limited | None = None
    resumed: int = 0
    updated: int = 0
    spent: int = 0  # served to keys with limits, before the one of now

    def __post_init__(self) -> None:
        self.keys.valid.update(dict.fromkeys(self.project.keys, 0.0))

    def __str__(self) -> str:
        keys = self.keys
        return (
            f"{self.name}: {keys.requests} requests, {keys.commands} commands"
            f" ({keys.killed} killed), {len(keys.revoked)} secrets ended,"
            f" {self.resumed} resumed, {self.updated} updated,"
            f" {self.spent + len(self.limited.served if self.limited else ())} with limits, no fault"
        )

    def command(self, *arguments: str) -> Any:
        """What a `keys` command answers, perhaps with a wrong clock; None if it was killed."""
        shift = random.choice([-2 * 3600, -7 * 60, 5 * 60, -23 * 3600]) if chance(0.3) else 0
        python = str(self.project.path / ".venv" / "bin" / "python")
        process = subprocess.Popen(
            [python, "-c", COMMAND, f"{shift}", "keys", *arguments, "--json"],
            cwd=self.project.path,
            env=environment(**self.variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.keys.commands += 1
        if chance(0.1):
            with suppress(subprocess.TimeoutExpired):
                process.wait(random.random())
            process.kill()
            self.keys.killed += 1
        output, errors = process.communicate(timeout=60)
        if process.returncode not in (0, -signal.SIGKILL):
            raise FaultError(
                f"keys {' '.join(arguments)} ended with {process.returncode}: {errors}"
            )
        return json.loads(output) if process.returncode == 0 else None

    def create(self) -> None:
        name = ["client"] if self.flavour == "database" else []
        if made := self.command("create", *name):
            self.learn(made)

    def learn(self, made: dict[str, str]) -> None:
        # Other servers hear of it a moment later.
        self.keys.valid[made["key"]] = time.monotonic() + 0.5
        self.ids[made["key"]] = made["id"]

    def end(self, secret: str, *command: str) -> Any:
        """By this command. If it was killed nobody knows, and nothing is expected of the secret."""
        self.keys.valid.pop(secret)
        id = self.ids.pop(secret)
        if (answer := self.command(command[0], id, *command[1:])) is not None:
            self.keys.revoked[secret] = time.monotonic()
        return answer

    def revoke(self) -> None:
        self.end(random.choice(list(self.ids)), "revoke")

    def rotate(self) -> None:
        overlap = ["--overlap", "0s"] if self.flavour == "database" else []
        if made := self.end(random.choice(list(self.ids)), "rotate", *overlap):
            self.learn(made)

    def pause(self) -> None:
        secret = random.choice(list(self.ids))
        id = self.ids[secret]
        if self.end(secret, "pause"):
            self.resting[secret] = id

    def resume(self) -> None:
        secret = random.choice(list(self.resting))
        id = self.resting.pop(secret)
        self.keys.revoked.pop(secret)
        if self.command("resume", id):
            self.keys.valid[secret], self.ids[secret] = time.monotonic(), id
            self.resumed += 1

    def update(self) -> None:
        """What lets nobody in or keeps anybody out; one that rests goes on to."""
        id = random.choice([*self.ids.values(), *self.resting.values()])
        changes = {
            ("--add-scope", "reports:read"),
            ("--owner", random.choice(["", "acme"])),
            ("--from", random.choice(["", "127.0.0.0/8"])),
            ("--expires-in", random.choice(["2d", "9w"])),  # no wrong clock is far from that
        }
        if self.command("update", id, *random.choice([*changes])):
            self.updated += 1

    def spender(self) -> Limited:
        """A key with limits, for some lives of the servers."""
        limits = ("--limit", f"{RATE}/second", "--quota", f"{QUOTA}/month")
        while self.limited is None or self.limited.lives >= LIVES_OF_A_QUOTA:
            if made := self.command("create", "limited", *limits):
                self.spent += len(self.limited.served) if self.limited else 0
                self.limited = Limited(made["key"])
        self.limited.lives += 1
        return self.limited

    @contextmanager
    def server(self) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        python = self.project.path / ".venv" / "bin" / "python"
        without = self.flavour == "database" and chance(0.5)
        options = ["--no-access-log", *["--lifespan", "off"] * without]
        server = subprocess.Popen(
            [python, "-m", "uvicorn", "app.main:app", "--port", f"{port}", *options],
            cwd=self.project.path,
            env=environment(**self.variables),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        url = f"http://127.0.0.1:{port}/secure-endpoint"
        try:
            while ask(url, None) == 0:
                if server.poll() is not None:
                    raise FaultError(f"a server did not start: {server.returncode}")
                time.sleep(0.1)
            yield url, server
        finally:
            if server.poll() is None:
                random.choice([server.terminate, server.kill])()
                server.wait(30)
            elif server.returncode < 0:
                self.keys.faults.append(f"a server ended by signal {-server.returncode}")

    def live(self, seconds: float) -> None:
        """Some seconds of two servers, clients, commands, and another program."""
        stop = threading.Event()
        with ExitStack() as stack:
            urls = [stack.enter_context(self.server())[0] for _ in range(2)]
            workers = [
                threading.Thread(target=watch, args=(urls, self.keys, stop)),
                threading.Thread(target=watch, args=(urls, self.keys, stop)),
                threading.Thread(target=open_and_close, args=(self.project.path, stop)),
            ]
            if self.flavour == "database":
                limited = self.spender()
                spend = (urls, self.keys.faults, stop)
                workers += [threading.Thread(target=limited.spend, args=spend) for _ in range(3)]
            for worker in workers:
                worker.start()
            try:
                end = time.monotonic() + seconds
                while time.monotonic() < end and not self.keys.faults:
                    more = len(self.ids) < 20 or chance(0.4)
                    ways = [self.create] if more else [self.revoke, self.rotate]
                    if self.flavour == "database" and self.ids and chance(0.5):
                        ways = [self.pause, self.update, *[self.resume] * bool(self.resting)]
                    random.choice(ways)()
            finally:
                stop.set()
                for worker in workers:
                    worker.join()
        if self.limited:
            self.keys.faults += self.limited.check()
        if self.keys.faults:
            raise FaultError("; ".join(dict.fromkeys(self.keys.faults)))


EXPLORING: Final = """
import hypothesis
hypothesis.settings.register_profile(
    "exploring",
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
"""


def explore(project: Project, flavour: str) -> None:
    """The state machines of the thorough tests, at random."""
    seed = random.randrange(1 << 32)
    plugins = project.path / ".plugins"
    plugins.mkdir(exist_ok=True)
    (plugins / "exploring.py").write_text(EXPLORING, "utf-8")
    profile = ("-p", "exploring", "--hypothesis-profile=exploring", f"--hypothesis-seed={seed}")
    tests = ("tests/thorough/test_access.py", "-k", "test_access_follows")
    result = project.run(
        *with_tools(flavour, "pytest", "-q", *profile, *tests),
        check=False,
        PYTHONPATH=f"{plugins}",
    )
    if result.returncode:
        raise FaultError(f"with --hypothesis-seed={seed}:\n{result.stdout}")


def main() -> None:
    end = time.monotonic() + 60 * float(os.environ.get("MINUTES", "5"))
    projects = {}
    for flavour in FLAVOURS:
        with silence():
            projects[flavour] = render_afresh(FOLDER / flavour, EVERYTHING[flavour])
        projects[flavour].run("uv", "sync", "--quiet")
        projects[flavour].lay_thorough(flavour)
    database, env = projects["database"], projects["env"]
    with TemporaryDirectory() as data, postgresql(Path(data)) as url:
        lives = [
            Life("SQLite", database, "database", {}),
            Life("PostgreSQL", database, "database", {"DATABASE_URL": url}),
            Life(".env", env, "env", {}),
        ]
        for life in lives[:2]:
            database.run(
                "uv", "run", database.command, "db", "upgrade", check=True, **life.variables
            )
        try:
            while time.monotonic() < end:
                for life in lives:
                    life.live(LIVES)
                    print(life, flush=True)
                for flavour, project in projects.items():
                    explore(project, flavour)
        except FaultError as fault:
            sys.exit(f"FAULT: {fault}")


if __name__ == "__main__":
    main()
