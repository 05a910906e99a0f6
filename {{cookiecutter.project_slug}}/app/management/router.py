"""The routes of `/api-keys`, for callers with `keys:manage` or, for keys of their owner,
`keys:own`."""

from asyncio import sleep
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeVar

from fastapi import Body, Query, Request, Response, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import StringConstraints
from starlette.exceptions import HTTPException  # FastAPI raises this one as well

from app.auth.access.dependencies import get_caller, refusal_without
from app.auth.access.openapi import described
from app.auth.access.routers import GuardedRouter, Handler
from app.auth.access.rule import CALLER, PROBLEM_JSON
from app.auth.errors import (
    ConflictError,
    ForbiddenError,
    KeyServiceError,
    NotFoundError,
    StoreUnavailableError,
)
from app.auth.key import Key
from app.auth.keys.change import MANAGE, OWN
from app.auth.keys.service import KeyService
from app.auth.keys.views import LONGEST, EventView
from app.auth.usage import report
from app.auth.usage.findings import Finding, diagnose
from app.auth.usage.report import AllUsage, UsageView
from app.management.bodies import (
    DayOfUse,
    IssuedKey,
    KeyPatch,
    KeyView,
    NewKey,
    Page,
    Pause,
    Revocation,
    Rotation,
)
from app.management.delegation import Delegation
from app.management.search import has, use_by_day

T = TypeVar("T")

_STATUSES: Final[dict[type[KeyServiceError], int]] = {
    NotFoundError: 404,
    ConflictError: 409,
    ForbiddenError: 403,
}


class _ManagementRoute(APIRoute):
    def __init__(self, *args: Any, **options: Any) -> None:
        either = [{get_caller.scheme_name: [scope]} for scope in (MANAGE, OWN)]
        options["openapi_extra"] = {**(options["openapi_extra"] or {}), "security": either}
        super().__init__(*args, **options)

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def explain(request: Request) -> Any:  # a Refusal works as a Response
            if not request.scope[CALLER].covers(OWN) and (
                refusal := refusal_without([MANAGE], request.scope)
            ):
                return refusal
            try:
                answer: Response = await handle(request)
                return answer
            except HTTPException as error:
                problem = error
            except KeyServiceError as error:
                problem = HTTPException(_STATUSES.get(type(error), 400), f"{error}")
            except StoreUnavailableError:
                problem = HTTPException(503, "The keys are out of reach", {"Retry-After": "1"})
            except RequestValidationError as error:
                # FastAPI's answer without the input, which may not be encodable.
                items = [{name: e[name] for name in ("type", "loc", "msg")} for e in error.errors()]
                return JSONResponse({"detail": items}, 422)
            headers = {**(problem.headers or {}), "Content-Type": PROBLEM_JSON}
            raise HTTPException(problem.status_code, problem.detail, headers)

        return explain


TAG: Final = {"name": "API keys", "description": "`keys:manage` or, for your owner's, `keys:own`."}

router = GuardedRouter(
    prefix="/api-keys",
    tags=[TAG["name"]],
    route_class=_ManagementRoute,
)


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: described(HTTPStatus(status).phrase) for status in statuses}


async def get_service(request: Request) -> Any:
    """The keys that the caller manages: for all others this is a service without them."""
    caller: Key = request.scope[CALLER]
    owner = None if caller.covers(MANAGE) else caller.owner
    return request.app.state.key_service.of_owner(owner)


# The scopes are for the doctor. The route asks for one of them.
Service = Annotated[KeyService, Security(get_service, scopes=[MANAGE, OWN])]
Pausing = Annotated[Pause, Body(default_factory=Pause)]
Ending = Annotated[Revocation, Body(default_factory=Revocation)]
Id = Annotated[str, StringConstraints(pattern="^[ -~]*$")]


async def _change(
    request: Request, change: Callable[..., T], *what: Any, wait: bool = True, **how: Any
) -> T:
    """Make a change in a thread. This server follows at once, and in the end every server."""
    service, caller = request.app.state.key_service, request.scope[CALLER].id
    by = {"actor": caller, "authorize": Delegation(caller, service.policies)}
    changed = await run_in_threadpool(partial(change, *what, **how, **by))
    with suppress(StoreUnavailableError):  # the change is made, and its answer must arrive
        await request.app.keys.refresh()
    if wait:
        await sleep(await run_in_threadpool(service.longest_staleness))
    return changed


@router.post("", status_code=201, responses=_problems(400))
async def create_key(new: NewKey, service: Service, request: Request) -> IssuedKey:
    """Make a key with scopes that you have yourself, and which ends no later than yours.

    The secret is shown this once. With `keys:own` the key belongs to your owner.
    """
    return IssuedKey.of(await _change(request, service.create, wait=False, **new.fields({})))


@router.get("")
def list_keys(
    service: Service,
    after: Id = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    search: Annotated[str, Query(max_length=100, pattern=r"^[^\x00]*$")] = "",
) -> Page:
    """The keys, oldest first: all, or those with `search` in the name or the id.

    Those of `API_KEYS` come last. The search ignores case.
    """
    found = service.page(after, limit + 1, has(search))
    items = [KeyView.of(key) for key in found[:limit]]
    return Page(items=items, next=items[-1].id if len(found) > limit else None)


@router.get("/findings")
def list_findings(service: Service, request: Request) -> list[Finding]:
    """Problems of keys, each with advice; with `keys:manage` also of the service as a whole."""
    found = diagnose(service, request.app.routes)
    return [each for each in found if each.id or service.owner is None]


@router.get("/usage")
def show_all_usage(
    service: Service,
    days: Annotated[int, Query(ge=1, le=LONGEST.days)] = 7,
) -> AllUsage:
    """How often keys were used in the last days; with `keys:manage` also who was refused without
    one."""
    return report.of_all(service.engine, timedelta(days=days), service.owner)


@router.get("/usage/daily")
def list_days_of_use(
    service: Service,
    id: Annotated[list[Id], Query(max_length=100)],
    days: Annotated[int, Query(ge=1, le=31)] = 14,
) -> list[DayOfUse]:
    """How often these keys were used on each of the last days, up to today, in UTC."""
    return use_by_day(service.engine, id, timedelta(days=days - 1), service.owner)


@router.get("/{id}", responses=_problems(404))
def show_key(id: str, service: Service) -> KeyView:
    """A key, without its secret."""
    return KeyView.of(service.get(id))


@router.patch("/{id}", responses=_problems(400, 404, 409))
async def update_key(
    id: str,
    patch: Annotated[KeyPatch, Body(media_type="application/merge-patch+json")],
    service: Service,
    request: Request,
    force: bool = False,
) -> KeyView:
    """Change a key, to no more than you have: what is absent stays, and null clears.

    When this answers, every server follows. `force` also narrows the last one that may manage keys.
    """
    how: dict[str, Any] = {"edit": lambda key: patch.fields(key.restrictions), "force": force}
    wait = not patch.model_fields_set <= {"name", "note"}  # by these no server decides
    return KeyView.of(await _change(request, service.update, id, wait=wait, **how))


@router.post("/{id}/pause", responses=_problems(400, 404, 409))
async def pause_key(id: str, pause: Pausing, service: Service, request: Request) -> KeyView:
    """Let no server accept a key until it is resumed; its end comes all the same.

    You need all scopes of the key. The last one that may manage keys needs `force`.
    """
    return KeyView.of(await _change(request, service.pause, id, force=pause.force))


@router.post("/{id}/resume", responses=_problems(404, 409))
async def resume_key(id: str, service: Service, request: Request) -> KeyView:
    """Let every server accept a paused key again."""
    return KeyView.of(await _change(request, service.resume, id))


@router.post("/{id}/rotate", responses=_problems(400, 404, 409))
async def rotate_key(
    id: str,
    rotation: Annotated[Rotation, Body(default_factory=Rotation)],
    service: Service,
    request: Request,
) -> IssuedKey | KeyView:
    """Give a key a new secret, shown this once; the old one stays in force for the overlap.

    You need all scopes of the key. While two secrets are in force, say which one to `drop`.
    """
    overlap, drop = rotation.overlap, rotation.drop
    if rotation.issue:
        how: dict[str, Any] = {"overlap": overlap, "drop": drop, "wait": bool(drop or not overlap)}
        return IssuedKey.of(await _change(request, service.rotate, id, **how))
    if not drop:
        raise HTTPException(400, "Say which secret to drop, or let one be issued")
    return KeyView.of(await _change(request, service.drop, id, drop))


@router.post("/{id}/revoke", responses=_problems(400, 404, 409))
async def revoke_key(id: str, revocation: Ending, service: Service, request: Request) -> KeyView:
    """End a key for good; when this answers, no server accepts it any more.

    You need all scopes of the key. The last one that may manage keys needs `force`.
    """
    return KeyView.of(await _change(request, service.revoke, id, force=revocation.force))


@router.get("/{id}/usage", responses=_problems(404))
def show_usage(
    id: str,
    service: Service,
    days: Annotated[int, Query(ge=1, le=LONGEST.days)] = 7,
) -> UsageView:
    """How often the key was used in the last days, up to now, by hour."""
    return report.of_key(service.engine, id, timedelta(days=days), service.owner)


@router.get("/{id}/events", responses=_problems(404))
def list_events(id: str, service: Service) -> list[EventView]:
    """What was done to the key, oldest first."""
    return service.events(id)
