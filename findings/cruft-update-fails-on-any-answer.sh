#!/usr/bin/env bash
# Guess: `pip install cruft` of the newest release gives a cruft whose update can be answered: its one question takes
#   y, n, s or v.
# Fact: with today's Typer every answer, also n, ends in a bare AssertionError, nothing is updated, and the exit code is
#   1. cruft hands Click's Choice to Typer's prompt, and Typer has had a Click of its own since 0.26. cruft 2.16.0 does
#   not bound Typer's version. With typer 0.25.1 the same dialogue works; with -y, which asks nothing, both do. A CI job
#   that runs `cruft update -y` stays green.
# Why it matters: people who follow a template's update instructions by hand are stopped; they can pin typer or say -y.
# Versions: cruft 2.16.0, cookiecutter 2.7.1, typer 0.29.2 and 0.25.1.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check cruft==2.16.0 cookiecutter==2.7.1
export HOME="$tmp"
git config --global user.name somebody
git config --global user.email somebody@example.org
commit() { git -C "$1" init -q && git -C "$1" add . && git -C "$1" commit -qm "$2"; }
mkdir -p 'template/{{cookiecutter.slug}}'
echo '{"slug": "project"}' > template/cookiecutter.json
echo first > 'template/{{cookiecutter.slug}}/version.txt'
commit template first
venv/bin/cruft create --no-input "$tmp/template" >/dev/null
commit project made
echo second > 'template/{{cookiecutter.slug}}/version.txt'
commit template second

update() {
  code=0
  echo "$1" | (cd project && exec "$tmp/venv/bin/cruft" update ${2:-}) >dialogue.txt 2>&1 || code=$?
  echo "answer $1 ${2:-}: code $code, the project is at: $(cat project/version.txt), $(tail -n 1 dialogue.txt)"
}
venv/bin/pip install -qq --disable-pip-version-check typer==0.29.2
venv/bin/pip freeze | grep -E '^(cruft|typer)='
for answer in y n s; do
  update $answer
  test "$code $(cat project/version.txt) $(tail -n 1 dialogue.txt)" = "1 first AssertionError"
done
update none -y
test "$code $(cat project/version.txt)" = "0 second"

git -C project reset -q --hard
venv/bin/pip install -qq --disable-pip-version-check typer==0.25.1
venv/bin/pip freeze | grep -E '^(cruft|typer)='
update y
test "$code $(cat project/version.txt)" = "0 second"
