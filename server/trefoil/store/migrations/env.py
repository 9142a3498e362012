"""Alembic's entry: runs the revisions on the connection that `database` opened, in its transaction."""

from alembic import context

from trefoil.store.database import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
