#!/bin/sh
# Starts the service, or updates a running one: replaces one replica after the other and loses no
# request. COMPOSE may name another command than `docker compose`.
set -eu
cd "$(dirname "$0")/.."
compose=${COMPOSE:-docker compose}

# FILE COMMAND...: writes what the command prints into the file, unless the file exists.
secret() {
    file=secrets/$1 && shift
    if [ ! -e "$file" ]; then
        mkdir -p "$(dirname "$file")"
        "$@" > "$file.new"
        mv "$file.new" "$file"
    fi
}

proxy() {
    $compose exec -T proxy sh -c "echo '$1' | nc 127.0.0.1 9999"
}

until_up() {
    tries=60
    until proxy 'show stat' | grep -q "^service,$1,.*,UP,"; do
        tries=$((tries - 1))
        if [ $tries = 0 ]; then
            echo "$1 is not ready after a minute; see: $compose logs $1" >&2
            exit 1
        fi
        sleep 1
    done
}

[ -e uv.lock ] || uv lock
# All may read the files, since containers have their own users; nobody else may enter the folder.
umask 022
mkdir -p secrets
chmod 700 secrets
secret service/api_keys uv run --no-project python -c 'import uuid; print(uuid.uuid4())'
if [ ! -e secrets/proxy/tls.pem ]; then
    mkdir -p secrets/proxy
    openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 365 \
        -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
        -keyout secrets/proxy/tls.pem.key -out secrets/proxy/tls.pem
    chmod 644 secrets/proxy/tls.pem.key
fi
secret database/password openssl rand -hex 16 # part: database
secret service/database_url echo "postgresql://service:$(cat secrets/database/password)@database/service" # part: database

$compose build
if proxy 'show info' > /dev/null 2>&1; then
    $compose run --rm migration # part: database
    for replica in replica-1 replica-2; do
        proxy "set server service/$replica state drain"
        sleep 1
        $compose up --detach --no-deps --force-recreate $replica
        # Down until a probe succeeds: the proxy may not have noticed a quick restart.
        proxy "set server service/$replica health down; set server service/$replica state ready"
        until_up $replica
    done
else
    $compose up --detach
    until_up replica-1
    until_up replica-2
fi
