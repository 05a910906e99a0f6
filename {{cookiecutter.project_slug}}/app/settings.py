"""Your settings, from the environment or else from `.env`. Those of the keys are inherited."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from app.auth.config.settings import AuthSettings
from app.auth.config.sources import load


class Settings(AuthSettings):
    """Add yours here: `page_size: int = 50` is what PAGE_SIZE says."""

    show_docs: bool = True


def load_settings() -> Settings:
    """Raises SettingsError, in one line, if a setting is missing or malformed."""
    return load(Settings)


async def get_settings(connection: HTTPConnection) -> Settings:
    """Those that the application was made with."""
    settings: Settings = connection.app.state.settings
    return settings


CurrentSettings = Annotated[Settings, Depends(get_settings)]
