"""What your endpoints ask for. `Caller` and `require` come from `app.auth`."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from app.settings import Settings


async def get_settings(connection: HTTPConnection) -> Settings:
    """Those that the application was made with."""
    settings: Settings = connection.app.state.settings
    return settings


CurrentSettings = Annotated[Settings, Depends(get_settings)]
