#!/usr/bin/env bash
# Guess: `python: 12` in the default_context of one's cookiecutter configuration chooses "12" from ["11", "12"], or the run
#   stops as it does for a wrong choice on the command line.
# Fact: YAML makes a number of it, and a number is not among the texts. cookiecutter warns on standard error and goes on
#   with the template's own default, and every entry after that one is dropped as well; those before it count. The exit
#   code is 0 and the project is there. The same value on the command line is a text: there 12 works, and a wrong
#   choice ends with 1.
# Why it matters: with --no-input nobody reads the warning. The order of lines in a configuration file decides which
#   project comes out.
# Versions: cookiecutter 2.7.1.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check cookiecutter==2.7.1
export HOME="$tmp"
mkdir -p 'template/{{cookiecutter.slug}}'
echo '{"slug": "out", "name": "default", "python": ["11", "12"], "license": "default"}' > template/cookiecutter.json
echo 'name={{cookiecutter.name}} python={{cookiecutter.python}} license={{cookiecutter.license}}' \
  > 'template/{{cookiecutter.slug}}/answers.txt'
venv/bin/cookiecutter --version
expect() {
  printf 'default_context:\n  %s\n  %s\n  %s\n' "$2" "$3" "$4" > config.yaml
  venv/bin/cookiecutter --config-file config.yaml --no-input --overwrite-if-exists template 2>errors.txt
  seen=$(cat out/answers.txt)
  echo "[$2, $3, $4] gives [$seen], warnings: $(grep -c 'Invalid default received' errors.txt || true)"
  test "$seen" = "$1"
}
expect "name=mine python=12 license=mine" 'name: mine' 'python: "12"' 'license: mine'
expect "name=mine python=11 license=default" 'name: mine' 'python: 12' 'license: mine'
expect "name=default python=11 license=default" 'python: 12' 'name: mine' 'license: mine'
expect "name=mine python=11 license=mine" 'name: mine' 'license: mine' 'python: 12'
venv/bin/cookiecutter --no-input --overwrite-if-exists template python=12 && cat out/answers.txt
grep -q 'python=12' out/answers.txt
code=0
venv/bin/cookiecutter --no-input --overwrite-if-exists template python=99 2>/dev/null || code=$?
echo "python=99 on the command line: code $code"
test $code = 1
