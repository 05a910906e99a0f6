"""The tables of the keys, with triggers and indexes that enforce their rules."""

import sqlalchemy as sa
from alembic import op

from app.auth.database.models import Instant

revision = "0005"
down_revision = None
branch_labels = None
depends_on = None

# Forbidden statements: the table, the kind of statement, and the condition.
RULES = {
    "api_keys_stay": ("api_keys", "DELETE", "true"),
    "api_key_secrets_stay": ("api_key_secrets", "DELETE", "true"),
    "api_key_events_stay": ("api_key_events", "DELETE", "true"),
    "api_key_events_are_final": ("api_key_events", "UPDATE", "true"),
    "api_key_revocations_are_final": (
        "api_keys",
        "UPDATE",
        "OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS DISTINCT FROM OLD.revoked_at",
    ),
    "api_keys_never_widen": (
        "api_keys",
        "UPDATE",
        "NEW.id <> OLD.id OR NEW.scopes <> OLD.scopes OR NEW.restrictions <> OLD.restrictions"
        " OR NEW.expires_at IS DISTINCT FROM OLD.expires_at",
    ),
    "api_key_secrets_stay_ended": (
        "api_key_secrets",
        "UPDATE",
        "OLD.ended_at IS NOT NULL AND NEW.ended_at IS DISTINCT FROM OLD.ended_at",
    ),
    "api_key_secrets_never_end_later": (
        "api_key_secrets",
        "UPDATE",
        "NEW.digest <> OLD.digest OR NEW.key_id <> OLD.key_id OR OLD.expires_at IS NOT NULL"
        " AND (NEW.expires_at IS NULL OR NEW.expires_at > OLD.expires_at)",
    ),
}
# SQLite's OR REPLACE deletes the conflicting row and fires no trigger for that. (With row ids in
# these tables, a trigger could not see that row either.)
_SAME_PLACE = (
    "key_id = NEW.key_id AND ended_at IS NULL AND NEW.ended_at IS NULL"
    " AND (expires_at IS NULL) = (NEW.expires_at IS NULL)"
)
REPLACING = {
    "api_keys_are_not_replaced": ("api_keys", "INSERT", "id = NEW.id"),
    "api_key_secrets_are_not_replaced": (
        "api_key_secrets",
        "INSERT",
        f"digest = NEW.digest OR {_SAME_PLACE}",
    ),
    "api_key_secrets_replace_none": (
        "api_key_secrets",
        "UPDATE OF expires_at, ended_at",
        f"digest <> NEW.digest AND {_SAME_PLACE}",
    ),
    "api_key_events_are_not_replaced": ("api_key_events", "INSERT", "id = NEW.id"),
}


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(20), primary_key=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("restrictions", sa.Text, nullable=False, server_default="{}"),
        sa.Column("created_by", sa.String(100), nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("expires_at", Instant),
        sa.Column("revoked_at", Instant),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "api_key_secrets",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        _key_id(),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("expires_at", Instant),
        sa.Column("ended_at", Instant),
        sa.Column("last_used_at", Instant),
        sqlite_with_rowid=False,
    )
    # A key has one current secret, and during the overlap of a rotation one old secret.
    for name, expires in (("current", "IS NULL"), ("old", "IS NOT NULL")):
        where = sa.text(f"ended_at IS NULL AND expires_at {expires}")
        op.create_index(
            f"api_key_secrets_one_{name}",
            "api_key_secrets",
            ["key_id"],
            unique=True,
            sqlite_where=where,
            postgresql_where=where,
        )
    op.create_table(
        "api_key_events",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("stamp", sa.LargeBinary(8), nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("action", sa.String(20), nullable=False),
        sa.Column("actor", sa.String(100), nullable=False),
        _key_id(),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "api_key_servers",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("max_staleness", sa.Float, nullable=False),
        sa.Column("seen_at", Instant, nullable=False),
        sa.Column("batch", sa.BigInteger, nullable=False, server_default="0"),
    )
    op.create_table(
        "api_key_usage",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("starts_at", Instant, primary_key=True, index=True),
        sa.Column("hours", sa.SmallInteger, primary_key=True),
        *(
            sa.Column(outcome, sa.BigInteger, nullable=False, server_default="0")
            for outcome in ("served", "refused", "limited")
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "api_key_networks",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("starts_at", Instant, primary_key=True, index=True),
        sa.Column("network", sa.String(50), primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "api_key_findings",
        sa.Column("key_id", sa.String(20), primary_key=True),
        sa.Column("problem", sa.String(200), primary_key=True),
        sa.Column("since", Instant, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "api_key_refusals",
        sa.Column("network", sa.String(50), primary_key=True),
        sa.Column("reason", sa.String(50), primary_key=True),
        sa.Column("starts_at", Instant, primary_key=True, index=True),
        sa.Column("hours", sa.SmallInteger, primary_key=True),
        sa.Column("refused", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    sqlite = op.get_context().dialect.name == "sqlite"
    for name, (table, statement, condition) in RULES.items():
        (_forbid_in_sqlite if sqlite else _forbid)(name, table, statement, condition)
    if sqlite:
        for name, (table, statement, condition) in REPLACING.items():
            there_is = f"EXISTS (SELECT 1 FROM {table} WHERE {condition})"  # noqa: S608
            _forbid_in_sqlite(name, table, statement, there_is)


def _key_id() -> sa.Column[str]:
    return sa.Column(
        "key_id", sa.String(20), sa.ForeignKey("api_keys.id"), nullable=False, index=True
    )


def _forbid_in_sqlite(name: str, table: str, statement: str, condition: str) -> None:
    condition = condition.replace("IS DISTINCT FROM", "IS NOT")
    op.execute(
        f"CREATE TRIGGER {name} BEFORE {statement} ON {table} WHEN {condition}"
        f" BEGIN SELECT RAISE(ABORT, '{name}'); END"
    )


def _forbid(name: str, table: str, statement: str, condition: str) -> None:
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION '{name}'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {name} BEFORE {statement} ON {table}"
        f" FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION {name}()"
    )
    if statement == "DELETE":
        op.execute(
            f"CREATE TRIGGER {name}_all BEFORE TRUNCATE ON {table} EXECUTE FUNCTION {name}()"
        )
