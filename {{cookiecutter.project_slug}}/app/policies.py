"""Policies bound a key beyond its scopes and its expiry. Add yours here."""

from app.auth.access.policy import Policy
from app.auth.store.cache import DatabaseKeyStore
from app.limits.allowed_from import AddressPolicy  # part: limits
from app.limits.policy import LimitPolicy  # part: limits
from app.settings import Settings


def make_policies(settings: Settings, store: DatabaseKeyStore | None = None) -> list[Policy]:
    """The guard asks them in this order, once per request. The command line has no store."""
    policies: list[Policy] = []
    policies.append(AddressPolicy())  # part: limits
    limits = (settings.rate_limit, settings.valkey_url, settings.database_url)  # part: limits
    policies.append(LimitPolicy(*limits, store))  # part: limits
    return policies
