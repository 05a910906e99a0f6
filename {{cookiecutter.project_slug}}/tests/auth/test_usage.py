"""How keys are used: each request counts once."""

from collections.abc import Callable
from datetime import timedelta

from app.auth import GuardedRouter, require
from app.auth.usage.report import of_key
from tests.callers import ask, on, with_endpoints
from tests.conftest import Server


async def test_a_request_counts_once(server: Server, start_server: Callable[[], Server]) -> None:
    able, unable = (server.keys.create("key", scopes, actor="tests") for scopes in (["a:b"], []))
    for each in (server, start_server()):
        nested = with_endpoints(GuardedRouter(dependencies=[require("a:b")] * 2))
        each.api.include_router(on(GuardedRouter(dependencies=[require("a:b")]), nested))
        async with each.store.follow():  # what is left is written at the stop
            for type in ("http", "websocket"):
                await each.store.flush()
                for key in (able, unable, able):
                    await ask(each.api, key.key.encode(), path="/x", type=type)
    used = [of_key(server.keys.engine, key.id, timedelta(days=1)) for key in (able, unable)]
    assert [(each.served, each.refused, each.total) for each in used] == [(8, 0, 8), (0, 4, 4)]
