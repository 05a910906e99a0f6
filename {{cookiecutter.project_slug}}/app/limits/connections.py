"""Connections to a counter. Each question is answered in time, or its connection is closed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from app.limits.limiter import TIMEOUT, OutOfReachError

MOST: Final = 8  # a process; a question takes a fraction of a millisecond

Connection = TypeVar("Connection")
Answer = TypeVar("Answer")


class Connections(Generic[Connection]):
    """Opened when they are needed, and kept.

    `errors` mean that the server is out of reach, and `lost` that it closed the connection. They
    belong to the event loop that opened them: another loop opens its own.
    """

    def __init__(
        self,
        open: Callable[[], Awaitable[Connection]],
        close: Callable[[Connection], Awaitable[None]],
        errors: type[Exception],
        lost: type[Exception],
    ) -> None:
        self._open, self._close, self._errors, self._lost = open, close, errors, lost
        self._loop: asyncio.AbstractEventLoop | None = None
        self._free = asyncio.Semaphore(MOST)
        self._idle: list[Connection] = []

    async def ask(self, question: Callable[[Connection, float], Awaitable[Answer]]) -> Answer:
        """The question gets a connection, and the time of the loop by which it has to end.

        Raises OutOfReachError.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._idle, self._free = loop, [], asyncio.Semaphore(MOST)
        give_up_at = loop.time() + TIMEOUT
        try:
            if self._free.locked():
                async with asyncio.timeout_at(give_up_at):
                    await self._free.acquire()
            else:
                await self._free.acquire()  # at once
            try:
                return await self._ask(question, give_up_at)
            finally:
                self._free.release()
        except (self._errors, OSError) as error:
            late = loop.time() >= give_up_at
            raise OutOfReachError("no answer" if late else type(error).__name__) from None

    async def _ask(
        self, question: Callable[[Connection, float], Awaitable[Answer]], give_up_at: float
    ) -> Answer:
        while True:
            if reused := bool(self._idle):
                connection = self._idle.pop()
            else:
                async with asyncio.timeout_at(give_up_at):
                    connection = await self._open()
            try:
                answer = await question(connection, give_up_at)
            except BaseException as error:
                await self._close(connection)
                if not (reused and isinstance(error, self._lost)):
                    raise
                await self.close()  # the server closed them while nobody asked
            else:
                self._idle.append(connection)
                return answer

    async def close(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await self._close(connection)
