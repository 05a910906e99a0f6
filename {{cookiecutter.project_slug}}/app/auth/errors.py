"""What stops the service or a command, each told in one line."""


class SettingsError(Exception):
    """A setting is missing or malformed. Names it and the fix, never its value."""


class StoreUnavailableError(Exception):
    """The keys are out of reach, or have been for so long that what is known no longer counts."""


class UnguardedRouteError(RuntimeError):
    """A route is neither guarded nor declared public."""


class KeyServiceError(Exception):
    """Why a change was not made, and what can be done. Nothing has changed."""


class InvalidError(KeyServiceError):
    """A name, a scope or a time that is none."""


class ForbiddenError(KeyServiceError):
    """The caller who asked for it may not have it."""


class NotFoundError(KeyServiceError):
    """No key has this id."""


class ConflictError(KeyServiceError):
    """The key, or the keys as a whole, are in a state that does not allow it."""
