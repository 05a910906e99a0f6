"""Your settings, from the environment or else from `.env`. Those of the keys are inherited."""

from app.auth.config.settings import AuthSettings
from app.auth.config.sources import load
from app.limits.settings import RateLimit, ValkeyUrl  # part: limits


class Settings(AuthSettings):
    """Add yours here: `page_size: int = 50` is what PAGE_SIZE says."""

    show_docs: bool = True
    rate_limit: RateLimit = ()  # part: limits
    valkey_url: ValkeyUrl = ""  # part: limits


def load_settings() -> Settings:
    """Raises SettingsError, in one line, if a setting is missing or malformed."""
    return load(Settings)
