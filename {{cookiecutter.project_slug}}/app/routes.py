"""Your endpoints. Routes on `guarded` need a valid key, routes on `public` need none."""

from fastapi import HTTPException, Request, Response

from app.auth import GuardedRouter, PublicRouter

public = PublicRouter()
guarded = GuardedRouter()


@public.get("/")
async def hello() -> dict[str, str]:
    """A greeting for everybody."""
    return {"Hello": "World"}


@public.head("/health/live", include_in_schema=False)
@public.get("/health/live")
async def live(response: Response) -> dict[str, str]:
    """The process runs."""
    response.headers["Cache-Control"] = "no-store"
    return {"status": "live"}


@public.head("/health/ready", include_in_schema=False)
@public.get("/health/ready", responses={503: {"description": "The keys are out of reach"}})
async def ready(request: Request, response: Response) -> dict[str, str]:
    """The service can check keys."""
    response.headers["Cache-Control"] = "no-store"
    if not await request.app.keys.is_reachable():
        raise HTTPException(503, "The keys are out of reach")
    return {"status": "ready"}


@guarded.get("/secure-endpoint")
async def secure_endpoint() -> dict[str, str]:
    """A greeting for callers with a key."""
    return {"message": "You have access!"}
