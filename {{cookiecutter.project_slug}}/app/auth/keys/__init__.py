"""The life cycle of keys: create, rotate, revoke, show."""
