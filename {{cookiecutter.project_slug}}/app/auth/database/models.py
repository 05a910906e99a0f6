"""The tables of the keys.

The migrations make them, and rules of the database that no statement can break: no key is
deleted, a revocation is final, what has ended stays ended, no key and no secret gets wider or
lives longer, no key has more than two secrets, and what was done to them stays written.
"""

import json
from datetime import UTC, datetime
from typing import Final

import sqlalchemy as sa

ENV_ID: Final = "env-"  # how the ids of keys in API_KEYS begin
LONGEST_REASON: Final = 50  # characters that are kept of why somebody was refused
LEAST_STALENESS: Final = 0.1  # seconds for which a server may trust what it knows in any case


class Instant(sa.TypeDecorator[datetime]):
    """A point in time, in UTC also in SQLite, which knows no time zones."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value and (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC))


class Restrictions(sa.TypeDecorator[dict[str, list[str]]]):
    """What bounds a key, by the name of the policy that enforces it; JSON in the database."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(
        self, value: dict[str, list[str]] | None, dialect: sa.Dialect
    ) -> str | None:
        return json.dumps(value, sort_keys=True)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> dict[str, list[str]]:
        restrictions: dict[str, list[str]] = json.loads(value or "{}")
        return restrictions


metadata = sa.MetaData()

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(20), primary_key=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),  # separated by spaces
    sa.Column("restrictions", Restrictions, nullable=False, server_default="{}"),
    sa.Column("created_by", sa.String(100), nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("expires_at", Instant),
    sa.Column("revoked_at", Instant),
    sqlite_with_rowid=False,
)

# Of a key at most two have not ended: the current one, which has no end of its own, and, while a
# rotation overlaps, the old one, which expires.
api_key_secrets = sa.Table(
    "api_key_secrets",
    metadata,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),  # SHA-256
    sa.Column("key_id", sa.String(20), sa.ForeignKey("api_keys.id"), nullable=False, index=True),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("expires_at", Instant),
    sa.Column("ended_at", Instant),  # whatever any clock says
    sa.Column("last_used_at", Instant),
    sqlite_with_rowid=False,
)

# What was done, in the order in which it was committed. The servers follow it: the last row says
# which state of the keys this is, and the rows after one that is known say what has changed.
api_key_events = sa.Table(
    "api_key_events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),  # 1, 2, 3...
    sa.Column("stamp", sa.LargeBinary(8), nullable=False),  # random: it tells histories apart
    sa.Column("at", Instant, nullable=False),
    sa.Column("action", sa.String(20), nullable=False),
    sa.Column("actor", sa.String(100), nullable=False),
    sa.Column("key_id", sa.String(20), sa.ForeignKey("api_keys.id"), nullable=False, index=True),
    sqlite_with_rowid=False,
)

# Who follows it, for how long each may trust what it knows, and what its clock has said.
api_key_servers = sa.Table(
    "api_key_servers",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("max_staleness", sa.Float, nullable=False),  # seconds; 0 once it has stopped
    sa.Column("seen_at", Instant, nullable=False),
    sa.Column("batch", sa.BigInteger, nullable=False, server_default="0"),  # of counts, the last
)

# How often secrets were used in an hour, or, when that is long ago, in a day. They refer to no
# other table: a count that cannot be written, say because a backup lacks the secret, would be in
# the way of all others.
api_key_usage = sa.Table(
    "api_key_usage",
    metadata,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),
    sa.Column("starts_at", Instant, primary_key=True, index=True),
    sa.Column("hours", sa.SmallInteger, primary_key=True),  # 1 or 24
    sa.Column("served", sa.BigInteger, nullable=False),
    sa.Column("refused", sa.BigInteger, nullable=False),  # for want of a scope
    sa.Column("limited", sa.BigInteger, nullable=False, server_default="0"),
    sqlite_with_rowid=False,
)

# From where secrets were used on a day: of each some, for it is only told how many they are.
api_key_networks = sa.Table(
    "api_key_networks",
    metadata,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),
    sa.Column("starts_at", Instant, primary_key=True, index=True),
    sa.Column("network", sa.String(50), primary_key=True),
    sqlite_with_rowid=False,
)

# What is unusual now, and was told in the log.
api_key_findings = sa.Table(
    "api_key_findings",
    metadata,
    sa.Column("key_id", sa.String(20), primary_key=True),  # or none
    sa.Column("problem", sa.String(200), primary_key=True),
    sa.Column("since", Instant, nullable=False),
    sqlite_with_rowid=False,
)

# Who was refused without a key in force: from where, and why.
api_key_refusals = sa.Table(
    "api_key_refusals",
    metadata,
    sa.Column("network", sa.String(50), primary_key=True),
    sa.Column("reason", sa.String(LONGEST_REASON), primary_key=True),
    sa.Column("starts_at", Instant, primary_key=True, index=True),
    sa.Column("hours", sa.SmallInteger, primary_key=True),  # 1 or 24
    sa.Column("refused", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
