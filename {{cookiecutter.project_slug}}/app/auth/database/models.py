"""The tables of the keys.

Triggers and indexes in `migrate` enforce these rules: no key is deleted, a revoked key stays as it
is, an ended secret stays ended, no secret gets a longer life, no key has more than two secrets in
force, and the audit log is append-only.
"""

from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

ENV_ID: Final = "env-"  # how the ids of keys in API_KEYS begin
LONGEST_REASON: Final = 50  # characters that are kept of the reason for a refusal
LEAST_STALENESS: Final = 0.1  # seconds for which every server may trust an answer


class Instant(sa.TypeDecorator[datetime]):
    """A point in time, in UTC also in SQLite, which knows no time zones."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value and (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC))


metadata = sa.MetaData()


def _table(name: str, *columns: sa.Column[Any]) -> sa.Table:
    """Without row ids in SQLite: no trigger could see a row that is replaced by its row id."""
    return sa.Table(name, metadata, *columns, sqlite_with_rowid=False)


api_keys = _table(
    "api_keys",
    sa.Column("id", sa.String(20), primary_key=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),  # separated by spaces
    sa.Column("restrictions", sa.JSON, nullable=False, server_default="{}"),  # by their policy
    sa.Column("owner", sa.String(100), nullable=False, server_default="", index=True),
    sa.Column("note", sa.String(1000), nullable=False, server_default=""),
    sa.Column("created_by", sa.String(100), nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("expires_at", Instant),
    sa.Column("paused_at", Instant),
    sa.Column("revoked_at", Instant),
)

# A key has at most two secrets in force: the current one, which has no end of its own, and during
# the overlap of a rotation the old one, which expires.
api_key_secrets = _table(
    "api_key_secrets",
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),  # SHA-256
    sa.Column("key_id", sa.String(20), sa.ForeignKey("api_keys.id"), nullable=False, index=True),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("expires_at", Instant),
    sa.Column("ended_at", Instant),  # revoked or replaced; no clock matters
    sa.Column("last_used_at", Instant),
)

# The audit log, in the order of the commits. Servers poll it: a row is the cursor of a server, and
# the rows after it are the changes that this server has not seen.
api_key_events = _table(
    "api_key_events",
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),  # 1, 2, 3...
    sa.Column("stamp", sa.LargeBinary(8), nullable=False),  # random: differs after a restore
    sa.Column("at", Instant, nullable=False),
    sa.Column("action", sa.String(20), nullable=False),
    sa.Column("actor", sa.String(100), nullable=False),
    sa.Column("key_id", sa.String(20), sa.ForeignKey("api_keys.id"), nullable=False, index=True),
    sa.Column("changes", sa.JSON(none_as_null=True)),  # {"scopes": [before, after]}
)

# The servers that poll it: how long each trusts an answer, and the time of its last write.
api_key_servers = sa.Table(
    "api_key_servers",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("max_staleness", sa.Float, nullable=False),  # seconds; 0 once it has stopped
    sa.Column("seen_at", Instant, nullable=False),
    sa.Column("batch", sa.BigInteger, nullable=False, server_default="0"),  # the last one added
)

# How often secrets were used, by hour and, when compacted, by day. There is no foreign key: a
# restored backup may lack a secret, and a count that cannot be written would block all others.
api_key_usage = _table(
    "api_key_usage",
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),
    sa.Column("starts_at", Instant, primary_key=True, index=True),
    sa.Column("hours", sa.SmallInteger, primary_key=True),  # 1 or 24
    sa.Column("served", sa.BigInteger, nullable=False),
    sa.Column("refused", sa.BigInteger, nullable=False),  # because the key lacks a scope
    sa.Column("limited", sa.BigInteger, nullable=False, server_default="0"),
)

# The networks that used a secret on a day. Their number is capped.
api_key_networks = _table(
    "api_key_networks",
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),
    sa.Column("starts_at", Instant, primary_key=True, index=True),
    sa.Column("network", sa.String(50), primary_key=True),
)

# The current anomalies, which are in the log already.
api_key_findings = _table(
    "api_key_findings",
    sa.Column("key_id", sa.String(20), primary_key=True),  # empty for the service as a whole
    sa.Column("problem", sa.String(200), primary_key=True),
    sa.Column("since", Instant, nullable=False),
)

# Refusals of callers without a valid key, by network and reason.
api_key_refusals = _table(
    "api_key_refusals",
    sa.Column("network", sa.String(50), primary_key=True),
    sa.Column("reason", sa.String(LONGEST_REASON), primary_key=True),
    sa.Column("starts_at", Instant, primary_key=True, index=True),
    sa.Column("hours", sa.SmallInteger, primary_key=True),  # 1 or 24
    sa.Column("refused", sa.BigInteger, nullable=False),
)
