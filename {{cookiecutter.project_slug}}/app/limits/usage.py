"""How often a key was used: what the database has, and what this server has counted since."""

from datetime import datetime
from time import monotonic

import sqlalchemy as sa

from app.auth.database.engine import transaction
from app.auth.database.models import api_key_secrets, api_key_servers, api_key_usage
from app.auth.store.cache import DatabaseKeyStore
from app.auth.store.queries import run


class StoreUsage:
    """The usage of the keys in a store, for quotas."""

    def __init__(self, store: DatabaseKeyStore) -> None:
        self._store, self.now = store, store.now

    async def used_since(self, key_id: str, since: datetime) -> int:
        usage = self._store.usage
        give_up_at = monotonic() + self._store.max_staleness
        while True:
            made, waiting = usage.counts.made, tuple(usage.counts.waiting)
            used, last, digests = await run(usage.threads, give_up_at, self._read, key_id, since)
            if made == usage.counts.made:  # else what is written meanwhile may be in both or none
                break
        left = [batch for batch in waiting if batch.number > last and batch.table is api_key_usage]
        rows = [row for batch in left for row in batch.rows]
        rows += [row for each in digests for row in usage.counts.uses.get(each, {}).values()]
        recent = sum(
            row["served"] + row["refused"]
            for row in rows
            if row["digest"] in digests and row["starts_at"] >= since
        )
        return used + int(recent)

    def _read(self, key_id: str, since: datetime) -> tuple[int, int, set[bytes]]:
        """How many requests since then are written, this server's last batch among them, and the
        digests of the key's secrets."""
        counted, queries = api_key_usage.c, self._store.usage.queries
        digests = sa.select(api_key_secrets.c.digest).where(api_key_secrets.c.key_id == key_id)
        used = sa.select(sa.func.coalesce(sa.func.sum(counted.served + counted.refused), 0))
        used = used.where(counted.digest.in_(digests), counted.starts_at >= since)
        last = sa.select(api_key_servers.c.batch).where(api_key_servers.c.id == queries.server)
        # One statement, so one snapshot.
        query = sa.select(used.scalar_subquery(), last.scalar_subquery())
        with transaction(queries.engine) as connection:
            total, batch = connection.execute(query).one()
            return int(total), batch or 0, set(connection.scalars(digests))
