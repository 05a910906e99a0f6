"""What stops the service or a command, each told in one line."""


class SettingsError(Exception):
    """A setting is missing or malformed. Names it and the fix, never its value."""


class StoreUnavailableError(Exception):
    """The keys are out of reach, or have been for so long that what is known no longer counts."""


class UnguardedRouteError(RuntimeError):
    """A route is neither guarded nor declared public."""
