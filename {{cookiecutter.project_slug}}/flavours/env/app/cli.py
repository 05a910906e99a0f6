"""The command line of the service. Commands of yours go here: `@main.command()`."""

from app.auth.cli.commands import main

__all__ = ["main"]
