#!/usr/bin/env bash
# Guess: Typer is built on Click, so a command may raise click.ClickException, ask click.get_current_context() and abort
#   with click.confirm(abort=True).
# Fact: since 0.26 Typer carries a Click of its own. Classes and context of the installed click are others: the exception
#   gives a traceback and not "Error: ...", the context is None, and a declined confirmation is a traceback too. The
#   exit code stays 1, so a script does not notice. typer.BadParameter, typer.Context and typer.confirm work. click is
#   still installed where another package asks for it, so the import does not fail either.
# Why it matters: helpers shared between a Click and a Typer command line show their users a traceback after an upgrade
#   that changed no signature.
# Versions: typer 0.29.2, click 8.5.1.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check typer==0.29.2 click==8.5.1
cat > cli.py <<'PY'
import click
import typer

app = typer.Typer()


@app.command()
def fail_click():
    raise click.ClickException("no such key")


@app.command()
def fail_typer():
    raise typer.BadParameter("no such key")


@app.command()
def confirm_click():
    click.confirm("Sure?", abort=True)


@app.command()
def confirm_typer():
    typer.confirm("Sure?", abort=True)


@app.command()
def context(ctx: typer.Context):
    print("typer:", ctx.command.name, "click:", click.get_current_context(silent=True))


app()
PY
venv/bin/pip freeze | grep -E '^(typer|click)='
expect() {
  code=0
  out=$(echo n | venv/bin/python cli.py "$1" 2>&1) || code=$?
  traceback=no
  case $out in *Traceback*) traceback=yes ;; esac
  echo "$1: code $code, traceback: $traceback, last line: ${out##*$'\n'}"
  test "$code $traceback" = "$2"
}
expect fail-click "1 yes"
expect fail-typer "2 no"
expect confirm-click "1 yes"
expect confirm-typer "1 no"
expect context "0 no"
test "$out" = "typer: context click: None"
