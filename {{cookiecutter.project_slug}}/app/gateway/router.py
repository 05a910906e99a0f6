"""The route `/verify`: 200 with the identity of the caller, or the refusal that the caller gets."""

import logging
from functools import cache
from typing import Any, Final
from urllib.parse import quote

from fastapi import HTTPException, Request, Response

from app.auth import GuardedRouter
from app.auth.access.openapi import described
from app.auth.access.request_log import Exchange
from app.auth.access.rule import CALLER, PROBLEM_JSON, Refusal
from app.auth.key import SCOPE_PATTERN, Key, is_scope, masked
from app.auth.log import RECORD, RequestRecord

logger = logging.getLogger(__name__)

PATH: Final = "/verify"
_ASCII: Final = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")
_IDENTITY: Final = {
    "X-Key-Id": "The id of the key",
    "X-Key-Owner": "Its owner, percent-encoded UTF-8; empty without one",
    "X-Key-Scopes": "Its scopes, with spaces between them",
}
_DOCUMENTED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The caller may pass",
        "headers": {
            name: {"description": text, "schema": {"type": "string"}}
            for name, text in _IDENTITY.items()
        },
    },
    400: described("The question is malformed"),
}
_SCOPE: Final = {
    "name": "scope",
    "in": "query",
    "description": "A scope that the caller needs; repeatable",
    "schema": {
        "type": "array",
        "items": {"type": "string", "pattern": SCOPE_PATTERN, "maxLength": 100},
    },
}

router = GuardedRouter()


async def verify(request: Request) -> Response:
    """Whether a proxy may let a caller through, and who calls. Every method gets the same answer."""
    request.scope[RECORD].route = PATH  # else the log would search for it
    asked = request.query_params
    scopes = asked.getlist("scope")
    # A misspelled question must not let everybody in.
    if asked.keys() - {"scope"} or not all(map(is_scope, scopes)):
        detail = f"Ask for scopes and nothing else: {PATH}?scope=reports:read"
        raise HTTPException(400, detail, {"Content-Type": PROBLEM_JSON})
    caller: Key = request.scope[CALLER]
    if lacking := caller.lacks(scopes):
        # A reason is counted, so it holds nothing of the request.
        cause = f"missing scope {masked(lacking)}"
        Refusal(f"missing scope at {PATH}", caller.id, cause=cause).log(request.scope)
        raise HTTPException(403, f"Missing scope: {lacking}", {"Content-Type": PROBLEM_JSON})
    return Response(headers=identity_of(caller))


router.add_route(PATH, verify, methods=[])  # of every method, also an unusual one
# For the OpenAPI document alone: the route above comes first, and is faster.
router.get(
    PATH,
    response_class=Response,
    responses=_DOCUMENTED,
    openapi_extra={"parameters": [_SCOPE]},
)(verify)


def identity_of(caller: Key) -> dict[str, str]:
    """Always all headers, since Envoy keeps what a caller has sent where an answer has none."""
    values = (caller.id, quote(caller.owner, safe=_ASCII), " ".join(sorted(caller.scopes)))
    return {"Cache-Control": "no-store", **dict(zip(_IDENTITY, values, strict=True))}


def observe(record: RequestRecord) -> None:
    """Log at the level DEBUG for which request a proxy has asked, if the proxy is trusted."""
    if record.route != PATH or not isinstance(record, Exchange):
        return
    # uvicorn gives an address that it takes from a trusted proxy the port 0, which no caller has.
    if not record.client or record.scope["client"][1] != 0:
        _tell_nameless()
        return
    if not logger.isEnabledFor(logging.DEBUG):
        return
    sent = dict(record.scope["headers"])
    method, path = (
        masked(sent.get(name, b"").partition(b"?")[0].decode("latin-1"))
        for name in (b"x-forwarded-method", b"x-forwarded-uri")
    )
    if method and path:
        extra = {"asked_method": method, "asked_path": path}
        logger.debug("Asked for %s %r: %d", method, path, record.status, extra=extra)


@cache
def _tell_nameless() -> None:
    logger.warning(
        "A question to %s came without the address of its caller. All callers share one allowance of"
        " wrong keys, and lists of addresses see the proxy: let it set X-Forwarded-For, without a"
        " port, and name it in FORWARDED_ALLOW_IPS",
        PATH,
    )
