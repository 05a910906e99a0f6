"""The names that endpoints need to require API keys."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["Caller", "GuardedAPI", "GuardedRouter", "PublicRouter", "get_caller", "require"]

if TYPE_CHECKING:
    from app.auth.access.application import GuardedAPI
    from app.auth.access.dependencies import Caller, get_caller, require
    from app.auth.access.routers import GuardedRouter, PublicRouter
else:

    def __getattr__(name: str) -> Any:
        """Import FastAPI on first use only, because the command line runs without it."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        modules = {
            "GuardedAPI": "application",
            "GuardedRouter": "routers",
            "PublicRouter": "routers",
        }
        module = modules.get(name, "dependencies")
        return getattr(import_module(f"{__name__}.access.{module}"), name)
