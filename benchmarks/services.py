"""The service as it is run, in processes of its own: to be called, and to have its keys revoked."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any, Final

import sqlalchemy as sa
from bench import SCRIPT, ended, expect
from stores import text_of
from variants import PATH

from app.auth.keys.service import KeyService
from app.constants import API_KEY_HEADER, MISSING_KEY_STATUS
from app.settings import load_settings

SERVERS: Final = 4
PATIENCE: Final = 30.0  # seconds until a server that does not answer is given up
AFTERWARDS: Final = 0.4  # seconds to go on after the last refusal: would a key come back?


@dataclass
class Service:
    """A server process, and a connection to it that stays open."""

    process: subprocess.Popen[bytes]
    connection: HTTPConnection
    spawned_at: float

    def get(self, key: str) -> int:
        self.connection.request("GET", PATH, headers={API_KEY_HEADER: key})
        with self.connection.getresponse() as response:
            response.read()
            return response.status

    def age(self) -> float:
        return time.monotonic() - self.spawned_at

    def memory(self, name: str) -> float:
        """What /proc tells, in MB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def environment_for(url: sa.URL) -> dict[str, str]:
    return {**os.environ, "DATABASE_URL": text_of(url)}


@contextmanager
def running(url: sa.URL) -> Iterator[Service]:
    """One uvicorn worker. It need not be waited for: it answers once it has started."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # uvicorn does so for a port, but not for a socket that it inherits.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        descriptor, (host, port) = listener.fileno(), listener.getsockname()
        command = [sys.executable, "-m", "uvicorn", "app.main:app", "--no-access-log"]
        spawned_at = time.monotonic()
        process = subprocess.Popen(
            [*command, "--fd", str(descriptor)],
            env=environment_for(url),
            pass_fds=[descriptor],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    connection = HTTPConnection(host, port, timeout=PATIENCE)
    with ended(process):
        try:
            yield Service(process, connection, spawned_at)
        finally:
            connection.close()


def manage_keys() -> None:
    """Create keys, and revoke those whose ids come in, for the process that started this one."""
    service = KeyService(load_settings())
    for line in sys.stdin:
        answer: Any
        if id := line.strip():
            service.revoke(id, actor="bench")
            committed_at = time.monotonic()  # the same clock for every process
            time.sleep(service.longest_staleness())  # as the command does
            answer = committed_at, time.monotonic()
        else:
            issued = service.create("bench", actor="bench")
            answer = issued.id, issued.key
        print(json.dumps(answer), flush=True)


@contextmanager
def manager(url: sa.URL) -> Iterator[Callable[[str], Any]]:
    """Another process that manages the keys: it is sent a line and answers with one."""
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "--manager"],
        env=environment_for(url),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )

    def ask(line: str) -> Any:
        assert process.stdin
        assert process.stdout
        process.stdin.write(f"{line}\n".encode())
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    with ended(process):
        yield ask


@dataclass
class Answers:
    """What one client was told: when it sent each request, and the status."""

    sent_at: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    def latest(self) -> int:
        latest = self.statuses[-1] if self.statuses else 0
        # What is refused again and again is slowed.
        return MISSING_KEY_STATUS if latest == 429 else latest

    def accepted_after(self, moment: float) -> list[float]:
        """How long after that moment the requests were sent that were let in nevertheless."""
        pairs = zip(self.sent_at, self.statuses, strict=True)
        return [sent - moment for sent, status in pairs if status == 200 and sent > moment]


@dataclass
class Revocations:
    """What became of requests that were sent after a revocation had returned."""

    waits: list[float] = field(default_factory=list)  # from the commit to the return
    lags: list[float] = field(default_factory=list)  # from the commit to the last that was let in
    accepted: int = 0  # requests that were sent after the return
    intervals: list[float] = field(default_factory=list)  # between two requests of a client
    others: int = 0  # answers that neither let in nor refused


def ask_on(service: Service, key: str, stop: Event, answers: Answers) -> None:
    while not stop.is_set():
        sent_at = time.monotonic()
        status = service.get(key)
        answers.sent_at.append(sent_at)
        answers.statuses.append(status)


def wait_until_all_are_told(
    status: int, all_answers: Sequence[Answers], asking: Sequence[Future[None]]
) -> None:
    give_up_at = time.monotonic() + PATIENCE
    while any(answers.latest() != status for answers in all_answers):
        for future in asking:
            if future.done():
                future.result()
        if time.monotonic() > give_up_at:
            told = [answers.latest() for answers in all_answers]
            raise RuntimeError(f"{told} instead of {status}, for {PATIENCE} seconds")
        time.sleep(0.005)


def revoke_once(
    services: Sequence[Service], ask: Callable[[str], Any], measured: Revocations
) -> None:
    id, key = ask("")
    stop, all_answers = Event(), [Answers() for _ in services]
    with ThreadPoolExecutor(len(services)) as pool:
        pairs = zip(services, all_answers, strict=True)
        asking = [pool.submit(ask_on, service, key, stop, answers) for service, answers in pairs]
        try:
            wait_until_all_are_told(200, all_answers, asking)
            time.sleep(random.uniform(0.1, 0.6))
            committed_at, returned_at = ask(id)
            wait_until_all_are_told(MISSING_KEY_STATUS, all_answers, asking)
            time.sleep(AFTERWARDS)
        finally:
            stop.set()
    measured.waits.append(returned_at - committed_at)
    late = [lag for answers in all_answers for lag in answers.accepted_after(committed_at)]
    measured.lags.append(max(late, default=0.0))
    measured.accepted += sum(len(answers.accepted_after(returned_at)) for answers in all_answers)
    for answers in all_answers:
        measured.intervals += [later - sent for sent, later in pairwise(answers.sent_at)]
        known = sum(map(answers.statuses.count, (200, MISSING_KEY_STATUS, 429)))
        measured.others += len(answers.statuses) - known


def measure_revocations(url: sa.URL, rounds: int) -> Revocations:
    measured = Revocations()
    with ExitStack() as stack:
        services = [stack.enter_context(running(url)) for _ in range(SERVERS)]
        ask = stack.enter_context(manager(url))
        for service in services:
            expect(service.get(""), MISSING_KEY_STATUS)
        for number in range(rounds):
            print(f"revocation {number + 1} of {rounds}", file=sys.stderr)
            revoke_once(services, ask, measured)
    return measured
