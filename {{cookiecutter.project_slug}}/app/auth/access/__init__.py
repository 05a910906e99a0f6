"""The way of a request: who gets in, and what it may call."""
