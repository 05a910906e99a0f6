"""Answers proxies that ask before they let a request through to another service."""
