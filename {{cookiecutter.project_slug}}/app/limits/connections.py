"""Connections to a counter. Each question is answered in time, or its connection is closed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from app.limits.limiter import TIMEOUT

MOST: Final = 8  # a process; a question takes a fraction of a millisecond

Connection = TypeVar("Connection")
Answer = TypeVar("Answer")


class Connections(Generic[Connection]):
    """Opened when they are needed, and kept. `lost` is the error of a connection that was closed.

    They belong to the event loop that opened them: another loop opens its own.
    """

    def __init__(
        self,
        open: Callable[[], Awaitable[Connection]],
        close: Callable[[Connection], Awaitable[None]],
        lost: type[Exception],
    ) -> None:
        self._open, self._close, self._lost = open, close, lost
        self._loop: asyncio.AbstractEventLoop | None = None
        self._free = asyncio.Semaphore(MOST)
        self._idle: list[Connection] = []

    async def ask(self, question: Callable[[Connection], Awaitable[Answer]]) -> Answer:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._idle, self._free = loop, [], asyncio.Semaphore(MOST)
        began_at, free = loop.time(), self._free
        if free.locked():
            async with asyncio.timeout(TIMEOUT):
                await free.acquire()
        else:
            await free.acquire()  # at once
        try:
            while True:
                if reused := bool(self._idle):
                    connection = self._idle.pop()
                else:
                    async with asyncio.timeout(TIMEOUT):
                        connection = await self._open()
                try:
                    answer = await question(connection)
                except BaseException as error:
                    await self._close(connection)
                    # The server may have closed it while nobody asked.
                    in_time = loop.time() < began_at + TIMEOUT / 2
                    if not (reused and in_time and isinstance(error, self._lost)):
                        raise
                    await self.close()
                else:
                    self._idle.append(connection)
                    return answer
        finally:
            free.release()

    async def close(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await self._close(connection)
