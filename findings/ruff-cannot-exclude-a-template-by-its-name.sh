#!/usr/bin/env bash
# Guess: extend-exclude = ["{{cookiecutter.slug}}"] keeps ruff out of the folder of that name, in which every second line is
#   Jinja and no Python.
# Fact: ruff reads the entry as a glob, where braces mean alternatives. It matches a folder named `cookiecutter.slug`, which
#   nobody has, and not the folder whose name it is, and says nothing about an exclusion that matches nothing. Square
#   brackets, "[{][{]cookiecutter.slug[}][}]", match.
# Why it matters: a template's linter reports syntax errors in files that are excluded by name, or worse: `ruff format` and
#   `--fix` rewrite those that happen to parse.
# Versions: ruff 0.17.6.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check ruff==0.17.6
mkdir -p 'work/{{cookiecutter.slug}}' work/cookiecutter.slug
echo 'name = "x"' > 'work/{{cookiecutter.slug}}/a.py'
echo 'name = "x"' > work/cookiecutter.slug/b.py
cd work
../venv/bin/ruff --version
expect() {
  echo "extend-exclude = [\"$2\"]" > ruff.toml
  seen=$(../venv/bin/ruff check --no-cache --show-files . 2>errors.txt | grep -oE '[ab]\.py$' | sort | tr '\n' ' ')
  echo "excluded: $2 -> checked: $seen"
  test "$seen" = "$1" && test ! -s errors.txt
}
expect 'a.py b.py ' 'nothing'
expect 'a.py ' '{{cookiecutter.slug}}'
expect 'a.py ' '{{cookiecutter.slug}}/**'
expect 'b.py ' '[{][{]cookiecutter.slug[}][}]'
