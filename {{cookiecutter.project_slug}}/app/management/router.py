"""The routes of `/api-keys`, for callers with the scope `keys:manage`."""

from asyncio import sleep
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeVar

from fastapi import Body, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import StringConstraints
from starlette.exceptions import HTTPException  # FastAPI raises this one as well

from app.auth.access.dependencies import Caller, require
from app.auth.access.openapi import described
from app.auth.access.routers import GuardedRoute, GuardedRouter, Handler
from app.auth.access.rule import PROBLEM_JSON
from app.auth.errors import (
    ConflictError,
    ForbiddenError,
    KeyServiceError,
    NotFoundError,
    StoreUnavailableError,
)
from app.auth.key import Key
from app.auth.keys import views
from app.auth.keys.fields import MANAGE
from app.auth.keys.service import KeyService
from app.auth.keys.views import LONGEST, EventView
from app.auth.usage import report
from app.auth.usage.findings import Finding, diagnose
from app.auth.usage.report import AllUsage, UsageView
from app.management.bodies import (
    DayOfUse,
    IssuedKey,
    KeyView,
    NewKey,
    Page,
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


class _ManagementRoute(GuardedRoute):
    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def explain(request: Request) -> Response:
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


TAG: Final = {"name": "API keys", "description": "To manage them: `keys:manage`."}

router = GuardedRouter(
    prefix="/api-keys",
    tags=[TAG["name"]],
    route_class=_ManagementRoute,
    dependencies=[require(MANAGE)],
)


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: described(HTTPStatus(status).phrase) for status in statuses}


async def get_service(request: Request) -> Any:
    return request.app.state.key_service


Service = Annotated[KeyService, Depends(get_service)]
Id = Annotated[str, StringConstraints(pattern="^[ -~]*$")]


async def _changed(request: Request, change: Callable[[], T]) -> T:
    """Make a change in a thread. This server then accepts or refuses the key at once."""
    changed = await run_in_threadpool(change)
    with suppress(StoreUnavailableError):  # the change is made, and its answer must arrive
        await request.app.keys.refresh()
    return changed


def _by(caller: Key, service: KeyService) -> dict[str, Any]:
    """The actor of a change, and its authorization."""
    return {"actor": caller.id, "authorize": Delegation(caller, service.policies)}


async def _until_all_follow(service: KeyService) -> None:
    await sleep(await run_in_threadpool(service.longest_staleness))


@router.post("", status_code=201, responses=_problems(400))
async def create_key(new: NewKey, caller: Caller, service: Service, request: Request) -> IssuedKey:
    """Make a key with scopes that you have yourself, and which ends no later than yours.

    The secret is shown this once.
    """
    change = partial(
        service.create,
        new.name,
        new.scopes,
        restrictions=new.restrictions(),
        expires_at=new.expires_at,
        **_by(caller, service),
    )
    return IssuedKey.of(await _changed(request, change))


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
    """Problems of keys and of the service as a whole, each with advice."""
    return diagnose(service, request.app.routes)


@router.get("/usage")
def show_all_usage(
    service: Service,
    days: Annotated[int, Query(ge=1, le=LONGEST.days)] = 7,
) -> AllUsage:
    """How often keys were used in the last days, and who was refused without one."""
    return report.of_all(service.engine, timedelta(days=days))


@router.get("/usage/daily")
def list_days_of_use(
    service: Service,
    id: Annotated[list[Id], Query(max_length=100)],
    days: Annotated[int, Query(ge=1, le=31)] = 14,
) -> list[DayOfUse]:
    """How often these keys were used on each of the last days, up to today, in UTC."""
    return use_by_day(service.engine, id, timedelta(days=days - 1))


@router.get("/{id}", responses=_problems(404))
def show_key(id: str, service: Service) -> KeyView:
    """A key, without its secret."""
    return KeyView.of(service.get(id))


@router.post("/{id}/rotate", responses=_problems(400, 404, 409))
async def rotate_key(
    id: str,
    rotation: Annotated[Rotation, Body(default_factory=Rotation)],
    caller: Caller,
    service: Service,
    request: Request,
) -> IssuedKey | KeyView:
    """Give a key a new secret, shown this once; the old one stays in force for the overlap.

    You need all scopes of the key. While two secrets are in force, say which one to `drop`.
    """
    if not (rotation.issue or rotation.drop):
        raise HTTPException(400, "Say which secret to drop, or let one be issued")

    def change() -> views.KeyView:
        overlap, drop = rotation.overlap, rotation.drop
        if drop and not rotation.issue:
            return service.drop(id, drop, **_by(caller, service))
        return service.rotate(id, overlap=overlap, drop=drop, **_by(caller, service))

    rotated = await _changed(request, change)
    if rotation.drop or not rotation.overlap:
        await _until_all_follow(service)
    return (IssuedKey if isinstance(rotated, views.IssuedKey) else KeyView).of(rotated)


@router.post("/{id}/revoke", responses=_problems(400, 404, 409))
async def revoke_key(
    id: str,
    revocation: Annotated[Revocation, Body(default_factory=Revocation)],
    caller: Caller,
    service: Service,
    request: Request,
) -> KeyView:
    """End a key for good; when this answers, no server accepts it any more.

    You need all scopes of the key. The last one that may manage keys needs `force`.
    """
    change = partial(service.revoke, id, force=revocation.force, **_by(caller, service))
    revoked = await _changed(request, change)
    await _until_all_follow(service)
    return KeyView.of(revoked)


@router.get("/{id}/usage", responses=_problems(404))
def show_usage(
    id: str,
    service: Service,
    days: Annotated[int, Query(ge=1, le=LONGEST.days)] = 7,
) -> UsageView:
    """How often the key was used in the last days, up to now, by hour."""
    return report.of_key(service.engine, id, timedelta(days=days))


@router.get("/{id}/events", responses=_problems(404))
def list_events(id: str, service: Service) -> list[EventView]:
    """What was done to the key, oldest first."""
    return service.events(id)
