"""The command line of the service. Add your commands here: `@main.command()`."""

from app.auth.cli.commands import command_line
from app.auth.cli.serve import serve
from app.settings import load_settings

main = command_line(load_settings)
main.command()(serve)
