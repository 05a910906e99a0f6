"""Manages keys over HTTP, for callers with the scope `keys:manage`."""
