"""The life of a key: created, rotated, revoked, shown."""
