#!/usr/bin/env bash
# Guess: a field of the type AwareDatetime takes a time with a zone and refuses all else, so that nobody's "2030" or
#   "20301231" (a date of ISO 8601 without hyphens, which Python's own parser reads) gets past it.
# Fact: it refuses 2030-12-31 for want of a zone, and takes both others: text of digits alone is seconds since 1970, in UTC,
#   and with twelve digits milliseconds. The year 2030 is the first of January 1970, the compact date is in August 1970.
#   A `date` refuses both, and msgspec refuses them as a datetime. `strict=True`, which also refuses the plain date, still takes
#   them from JSON.
# Why it matters: the end of a key, a licence or a token, written so, lies half a century back, or is no end where only the
#   future is checked against a limit. No error says that the text was read as a number.
# Versions: pydantic 2.14.4, msgspec 0.23.0.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check pydantic==2.14.4 msgspec==0.23.0
cat > see.py <<'PY'
from datetime import UTC, date, datetime

import msgspec
from pydantic import AwareDatetime, TypeAdapter, ValidationError

aware, dates = TypeAdapter(AwareDatetime), TypeAdapter(date)


def read(adapter, text, **options):
    try:
        return adapter.validate_json(f'"{text}"', **options)
    except ValidationError as error:
        return error.errors()[0]["type"]


for text in ("2030-12-31", "2030-12-31T00:00:00Z", "20301231", "2030", "203012311200"):
    print(f"{text:21} aware: {read(aware, text)}; strict: {read(aware, text, strict=True)}; date: {read(dates, text)}")
assert read(aware, "2030-12-31") == "timezone_aware"
assert read(aware, "20301231") == read(aware, "20301231", strict=True) == datetime(1970, 8, 23, 23, 13, 51, tzinfo=UTC)
assert read(aware, "2030") == datetime(1970, 1, 1, 0, 33, 50, tzinfo=UTC)
assert read(aware, "203012311200").year == 1976
assert read(dates, "20301231") == read(dates, "2030") == "date_from_datetime_inexact"
assert datetime.fromisoformat("20301231") == datetime(2030, 12, 31)
for text in ("20301231", "2030"):
    try:
        msgspec.json.decode(f'"{text}"', type=datetime)
    except msgspec.ValidationError as error:
        print(f"{text:21} msgspec: {error}")
    else:
        raise SystemExit(1)
PY
venv/bin/pip freeze
venv/bin/python see.py
