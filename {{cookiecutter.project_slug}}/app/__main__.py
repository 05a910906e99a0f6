"""`python -m app` is the command line of the service."""

from app.cli import main

main()
