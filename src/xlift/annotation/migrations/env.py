"""Alembic runs this; the connection, with a transaction begun, comes from database.connect."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
