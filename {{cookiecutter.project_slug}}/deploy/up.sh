#!/bin/sh
# Starts the service. Where it runs, brings it to what this folder holds, one replica after the
# other, and no request is lost. COMPOSE may name another command than `docker compose`.
set -eu
cd "$(dirname "$0")/.."
compose=${COMPOSE:-docker compose}

# FILE COMMAND...: what the command prints, unless there is such a file.
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
            echo "$1 does not get ready; see: $compose logs $1" >&2
            exit 1
        fi
        sleep 1
    done
}

[ -e uv.lock ] || uv lock
# Containers read what is in it, as users that are unknown here; nobody else gets into the folder.
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
        # Down until a probe says otherwise: it may have been too quick to be missed.
        proxy "set server service/$replica health down; set server service/$replica state ready"
        until_up $replica
    done
else
    $compose up --detach
    until_up replica-1
    until_up replica-2
fi
