"""API keys: who gets in, and what for. What an endpoint needs is here; the rest is machinery."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["Caller", "GuardedAPI", "GuardedRouter", "PublicRouter", "get_caller", "require"]

if TYPE_CHECKING:
    from app.auth.access.application import GuardedAPI
    from app.auth.access.dependencies import Caller, get_caller, require
    from app.auth.access.routers import GuardedRouter, PublicRouter
else:

    def __getattr__(name: str) -> Any:
        """Load FastAPI when one of them is asked for: the command line works without."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        modules = {
            "GuardedAPI": "application",
            "GuardedRouter": "routers",
            "PublicRouter": "routers",
        }
        module = modules.get(name, "dependencies")
        return getattr(import_module(f"{__name__}.access.{module}"), name)
