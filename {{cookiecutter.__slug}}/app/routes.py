"""Your endpoints: on `guarded` they need a valid key, on `public` they need none."""

from app.security import GuardedRouter, PublicRouter

public = PublicRouter()
guarded = GuardedRouter()


@public.get("/")
async def hello() -> dict[str, str]:
    return {"Hello": "World"}


@public.get("/health/live")
async def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "live"}


@public.get("/health/ready")
async def ready() -> dict[str, str]:
    """The keys were read: without them the service does not start."""
    return {"status": "ready"}


@guarded.get("/secure-endpoint")
async def secure_endpoint() -> dict[str, str]:
    return {"message": "You have access!"}
