"""Looks keys up while the service runs."""
