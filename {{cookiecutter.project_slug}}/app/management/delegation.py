"""What a caller may change: only keys with no more rights than its own and, with `keys:own` alone,
those of its owner."""

from collections.abc import Sequence

from app.auth.access.policy import Policy
from app.auth.errors import ForbiddenError
from app.auth.key import Key
from app.auth.keys.change import MANAGE, OWN, Change
from app.auth.keys.views import KeyView, get_view


class Delegation:
    """Authorizes a change inside its transaction. What counts is the caller as it is there before
    the change: since the guard let it in it may have changed, and the change may be of itself."""

    def __init__(self, caller: str, policies: Sequence[Policy]) -> None:
        self._caller, self._policies = caller, policies
        self._change: Change | None = None

    def __call__(self, change: Change, key: KeyView) -> None:
        """Raises ForbiddenError if the key may do more than its manager, or outlives it."""
        if change is not self._change:
            self._manager = get_view(change.connection, self._caller, change.now)
            self._change = change
        manager = self._manager
        if manager.status != "active":
            raise ForbiddenError(f"Your key is {manager.status}")
        held = Key(manager.id, manager.name, frozenset(manager.scopes))
        manages = held.covers(MANAGE)
        if not (manages or (held.covers(OWN) and manager.owner and manager.owner == change.owner)):
            raise ForbiddenError(f"Missing scope: {MANAGE}")
        # Whoever manages all keys may let others manage their own.
        if lacking := held.lacks(scope for scope in key.scopes if not (manages and scope == OWN)):
            raise ForbiddenError(f"Missing scope: {lacking}")
        end = manager.expires_at
        if end and (key.expires_at is None or key.expires_at > end):
            raise ForbiddenError(
                f"No key that you manage may outlive yours: until {end:%Y-%m-%dT%H:%M:%SZ}"
            )
        for policy in self._policies:
            bounds = (view.restrictions.get(policy.name, []) for view in (key, manager))
            try:
                policy.check_within(*bounds)
            except ValueError as error:
                raise ForbiddenError(f"{error}") from None
