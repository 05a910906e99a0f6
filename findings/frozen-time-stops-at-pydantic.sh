#!/usr/bin/env bash
# Guess: in a test that travels to 2020, a pydantic model takes 2021 for its FutureDatetime: the clock says 2020.
# Fact: pydantic's core reads the system's clock itself, so 2021 is refused as not in the future under time-machine and
#   under freezegun, though datetime.now() in the same block says 2020. Under freezegun it depends on history as well:
#   if the first future check of the whole process happens while time is frozen, each one in there raises TypeError.
#   A validator of one's own that calls datetime.now() works under both.
# Why it matters: an API that checks "expires in the future" by the field's type cannot be tested at a moment of one's
#   choice, and a frozen test can pass in the suite and fail when it is run alone.
# Versions: pydantic 2.14.4, time-machine 3.6.0, freezegun 1.5.5.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check pydantic==2.14.4 time-machine==3.6.0 freezegun==1.5.5
cat > check.py <<'PY'
import sys
from datetime import datetime, timezone
from typing import Annotated

import freezegun
import time_machine
from pydantic import AfterValidator, AwareDatetime, FutureDatetime, TypeAdapter, ValidationError


def future(value):
    if value <= datetime.now(timezone.utc):
        raise ValueError("not in the future")
    return value


def check(kind, text):
    try:
        TypeAdapter(kind).validate_python(text)
    except (ValidationError, TypeError) as error:
        return type(error).__name__
    return "taken"


tool, history = sys.argv[1:]
if history == "warm":
    assert check(FutureDatetime, "2999-01-01T00:00:00Z") == "taken"
with (freezegun.freeze_time if tool == "freezegun" else time_machine.travel)("2020-01-01"):
    assert datetime.now().year == 2020
    own = Annotated[AwareDatetime, AfterValidator(future)]
    print(check(own, "2021-01-01T00:00:00Z"), check(FutureDatetime, "2021-01-01T00:00:00Z"),
          check(FutureDatetime, "2999-01-01T00:00:00Z"))
PY
expect() {
  seen=$(venv/bin/python check.py "$1" "$2")
  echo "$1, $2: own validator 2021, FutureDatetime 2021, FutureDatetime 2999: $seen"
  test "$seen" = "$3"
}
venv/bin/pip freeze | grep -E '^(pydantic|time-machine|freezegun)='
expect time-machine cold "taken ValidationError taken"
expect time-machine warm "taken ValidationError taken"
expect freezegun cold "taken TypeError TypeError"
expect freezegun warm "taken ValidationError taken"
