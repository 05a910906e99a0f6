"""The command line of the service. Add your commands here: `@main.command()`."""

from pathlib import Path
from typing import Any

from app.auth.cli import serve
from app.auth.cli.changes import keys  # part: limits, transfer
from app.auth.cli.commands import command_line
from app.auth.cli.context import Wiring
from app.auth.cli.database import db  # part: transfer
from app.limits.commands import create, update  # part: limits
from app.policies import make_policies
from app.settings import load_settings
from app.transfer.commands import copy, export, import_keys  # part: transfer

MIGRATIONS = Path(__file__).parent / "migrations"


def routes() -> Any:
    """Import the application and return its routes."""
    from app.main import app

    return app.routes


main = command_line(Wiring(load_settings, make_policies, routes, MIGRATIONS))
main.command()(serve.serve)
serve.SHARED_FOLDERS.append("PROMETHEUS_MULTIPROC_DIR")  # part: metrics
keys.command()(create)  # part: limits
keys.command()(update)  # part: limits
keys.command()(export)  # part: transfer
keys.command("import")(import_keys)  # part: transfer
db.command()(copy)  # part: transfer
