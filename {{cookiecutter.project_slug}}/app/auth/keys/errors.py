"""Why a change to a key is not made."""


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
