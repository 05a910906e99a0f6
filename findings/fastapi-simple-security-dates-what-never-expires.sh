#!/usr/bin/env bash
# Guess: a row with an expiration date in the past is a key that has expired. A key that never expires has no date.
# Fact: fastapi-simple-security writes `expiration_date` for every key, 15 days ahead and without a zone. With
#   `never_expire` it is written all the same, and the check ignores it. The date is in UTC: it compares with utcnow().
# Why it matters: who moves keys out by the date alone ends those that were made to last, 15 days after they were made.
# Versions: fastapi-simple-security 1.3.0, fastapi 0.165.0.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check fastapi-simple-security==1.3.0 fastapi==0.165.0 httpx==0.28.1
export FASTAPI_SIMPLE_SECURITY_DB_LOCATION="$tmp/keys.db" FASTAPI_SIMPLE_SECURITY_SECRET=secret
TZ=Asia/Tokyo venv/bin/python -W ignore - <<'PY'
import os
import sqlite3
from datetime import datetime, timedelta, timezone
from importlib.metadata import version

from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from fastapi_simple_security import api_key_router, api_key_security

app = FastAPI(dependencies=[])
app.include_router(api_key_router, prefix="/auth")
app.add_api_route("/", lambda: "in", dependencies=[Depends(api_key_security)])
client, secret = TestClient(app), {"secret-key": "secret"}
key = client.get("/auth/new?name=bob&never_expires=true", headers=secret).json()
database = sqlite3.connect(os.environ["FASTAPI_SIMPLE_SECURITY_DB_LOCATION"])
select = "SELECT never_expire, expiration_date FROM fastapi_simple_security"
(never, written), = database.execute(select)
database.execute("UPDATE fastapi_simple_security SET expiration_date = '2020-01-01T00:00:00'")
database.commit()
status = client.get("/", headers={"api-key": key}).status_code
print("fastapi-simple-security", version("fastapi-simple-security"))
print(f"never_expire = {never}, expiration_date = {written!r}; with a date of 2020 the key gets {status}")
ahead = datetime.fromisoformat(written).replace(tzinfo=timezone.utc) - datetime.now(timezone.utc)
assert never == 1 and status == 200
assert abs(ahead - timedelta(days=15)) < timedelta(minutes=5)
PY
