"""Connections to a counter. Each question is answered in time, or its connection is closed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar
from weakref import WeakKeyDictionary

from app.limits.limiter import TIMEOUT, OutOfReachError

MOST: Final = 8  # a process; a question takes a fraction of a millisecond

Connection = TypeVar("Connection")
Answer = TypeVar("Answer")


class Connections(Generic[Connection]):
    """Opened when they are needed, and kept.

    `errors` mean that the server is out of reach, and `lost` that it closed the connection. Each
    event loop has its own.
    """

    def __init__(
        self,
        open: Callable[[], Awaitable[Connection]],
        close: Callable[[Connection], Awaitable[None]],
        errors: type[Exception],
        lost: type[Exception],
    ) -> None:
        self._open, self._close, self._errors, self._lost = open, close, errors, lost
        self._pools: WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[asyncio.Semaphore, list[Connection]]
        ] = WeakKeyDictionary()

    async def ask(self, question: Callable[[Connection, float], Awaitable[Answer]]) -> Answer:
        """The question gets a connection, and the time of the loop by which it has to end.

        Raises OutOfReachError.
        """
        loop = asyncio.get_running_loop()
        free, idle = self._pool(loop)
        give_up_at = loop.time() + TIMEOUT
        try:
            async with free:  # who came before gives up before
                return await self._ask(question, idle, give_up_at)
        except (self._errors, OSError) as error:
            late = loop.time() >= give_up_at
            raise OutOfReachError("no answer" if late else type(error).__name__) from None

    async def _ask(
        self,
        question: Callable[[Connection, float], Awaitable[Answer]],
        idle: list[Connection],
        give_up_at: float,
    ) -> Answer:
        while True:
            if reused := bool(idle):
                connection = idle.pop()
            else:
                async with asyncio.timeout_at(give_up_at):
                    connection = await self._open()
            try:
                answer = await question(connection, give_up_at)
            except BaseException as error:
                await self._close(connection)
                if not (reused and isinstance(error, self._lost)):
                    raise
                await self._close_all(idle)  # the server closed them while nobody asked
            else:
                idle.append(connection)
                return answer

    def _pool(self, loop: asyncio.AbstractEventLoop) -> tuple[asyncio.Semaphore, list[Connection]]:
        if (pool := self._pools.get(loop)) is None:
            pool = self._pools[loop] = asyncio.Semaphore(MOST), []
        return pool

    async def close(self) -> None:
        for _, idle in [*self._pools.values()]:
            await self._close_all(idle)

    async def _close_all(self, idle: list[Connection]) -> None:
        while idle:
            await self._close(idle.pop())
