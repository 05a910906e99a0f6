"""Errors that stop the service or a command. Each message is one line."""


class SettingsError(Exception):
    """A setting is missing or malformed. The message names it and the fix, never its value."""


class StoreUnavailableError(Exception):
    """The key store cannot be reached, or its cached state is too old to trust."""


class UnguardedRouteError(RuntimeError):
    """A route is neither guarded nor declared public."""


class KeyServiceError(Exception):
    """A change failed and nothing was saved. The message names the reason and the fix."""


class InvalidError(KeyServiceError):
    """A name, a scope, a restriction or a time is invalid."""


class ForbiddenError(KeyServiceError):
    """The caller may not make this change."""


class NotFoundError(KeyServiceError):
    """No key has this id."""


class ConflictError(KeyServiceError):
    """The state of the key, or of all keys together, does not allow the change."""
