#!/usr/bin/env bash
# Guess: when a template has gained a question, an interactive `cruft update` asks it, as the first run asked all others.
# Fact: it asks only whether to apply the diff. The new question gets the template's default, and the answer is written
#   into .cruft.json as if somebody had given it. If the question is "use this part?" and its default is no, the update
#   deletes files that the project has had all along. A file that the project changed stays, without the rest.
# Why it matters: whoever makes a part of a template optional must give the question the default that existing projects
#   live by, not the one that suits new ones.
# Versions: cruft 2.16.0, cookiecutter 2.7.1, typer 0.25.1.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check cruft==2.16.0 cookiecutter==2.7.1 typer==0.25.1
export HOME="$tmp"
git config --global user.name somebody
git config --global user.email somebody@example.org
venv/bin/pip freeze | grep -E '^(cruft|cookiecutter|typer)='
commit() { git -C "$1" init -q && git -C "$1" add . && git -C "$1" commit -qm "$2"; }

folder='template/{{cookiecutter.slug}}'
mkdir -p "$folder/worker"
echo '{"slug": "project"}' > template/cookiecutter.json
echo 'a service' > "$folder/README"
echo 'a job' > "$folder/worker/job.py"
echo 'a queue' > "$folder/worker/queue.py"
commit template first
venv/bin/cruft create --no-input "$tmp/template" >/dev/null
commit project made
echo 'a job of our own' > project/worker/job.py
commit project change

echo '{"slug": "project", "use_worker": false}' > template/cookiecutter.json
mv "$folder/worker" "$folder/{% if cookiecutter.use_worker %}worker{% endif %}"
commit template "make the worker optional"
echo y | (cd project && ../venv/bin/cruft update) >dialogue.txt 2>&1
sed 's/^/  /' dialogue.txt
echo "asked for use_worker: $(grep -c use_worker dialogue.txt || true), files left: $(ls project/worker)"
grep -q 'Apply diff and update' dialogue.txt
grep -q 'as clean as possible' dialogue.txt
if grep -q use_worker dialogue.txt; then exit 1; fi
grep -q '"use_worker": false' project/.cruft.json
test "$(cat project/worker/job.py)" = 'a job of our own'
test ! -e project/worker/queue.py
