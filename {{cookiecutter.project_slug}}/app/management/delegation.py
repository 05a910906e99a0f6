"""What a caller with `keys:manage` may change: only keys with no more rights than its own."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.auth.access.policy import Policy
from app.auth.errors import ForbiddenError
from app.auth.key import Key
from app.auth.keys.change import Change
from app.auth.keys.views import KeyView


@dataclass(frozen=True)
class Delegation:
    """Authorizes a change inside its transaction, for a key that is created, rotated or ended."""

    caller: Key
    policies: Sequence[Policy]

    def __call__(self, change: Change, key: KeyView) -> None:
        """Raises ForbiddenError if the key may do more than its manager, or outlives it."""
        manager = change.view(self.caller.id)
        if manager.status != "active":  # it may have ended since the guard let it in
            raise ForbiddenError(f"Your key is {manager.status}")
        if lacking := self.caller.lacks(key.scopes):
            raise ForbiddenError(f"Missing scope: {lacking}")
        end = manager.expires_at
        if end and (key.expires_at is None or key.expires_at > end):
            raise ForbiddenError(
                f"No key that you manage may outlive yours: until {end:%Y-%m-%dT%H:%M:%SZ}"
            )
        for policy in self.policies:
            bounds = (view.restrictions.get(policy.name, []) for view in (key, manager))
            try:
                policy.check_within(*bounds)
            except ValueError as error:
                raise ForbiddenError(f"{error}") from None
