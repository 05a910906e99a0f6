"""Settings from a vault."""
