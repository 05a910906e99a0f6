"""Dependencies of your endpoints. `Caller` and `require` come from `app.auth`."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from app.settings import Settings


async def get_settings(connection: HTTPConnection) -> Settings:
    """The settings that `create_app` received."""
    settings: Settings = connection.app.state.settings
    return settings


CurrentSettings = Annotated[Settings, Depends(get_settings)]
