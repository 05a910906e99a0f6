"""Policies bound a key beyond its scopes and its expiry. Add yours here."""

from typing import Any

from app.auth.access.policy import Policy
from app.limits.allowed_from import AddressPolicy  # part: limits
from app.limits.policy import LimitPolicy  # part: limits
from app.settings import Settings


def make_policies(settings: Settings, store: Any = None) -> list[Policy]:
    """The guard asks them in this order, once per request. The store is the one of a server: the
    command line has none, and would start late if this file imported it."""
    policies: list[Policy] = []
    policies.append(AddressPolicy())  # part: limits
    limits = (settings.rate_limit, settings.valkey_url, settings.database_url)  # part: limits
    policies.append(LimitPolicy(*limits, store))  # part: limits
    return policies
