"""Run migrations on the connection, and inside the transaction, that `PostgresDatabase.migrate` hands over."""

from alembic import context

from appliance.store.postgres.database import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
