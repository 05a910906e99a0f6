"""Your settings, in addition to those in `AuthSettings`."""

from app.auth.config import sources
from app.auth.config.settings import AuthSettings
from app.limits.settings import RateLimit, ValkeyUrl  # part: limits
from app.vaults.client import vault_source  # part: vaults


class Settings(AuthSettings):
    """Add yours here: `page_size: int = 50` is read from PAGE_SIZE."""

    show_docs: bool = True
    rate_limit: RateLimit = ()  # part: limits
    valkey_url: ValkeyUrl = ""  # part: limits


latest: Settings | None = None  # for code that cannot get them handed in
sources.SOURCES["SECRETS_VAULT"] = vault_source  # part: vaults


def load_settings() -> Settings:
    """Raises SettingsError, in one line, if a setting is missing or malformed."""
    global latest
    latest = sources.load(Settings)
    return latest
