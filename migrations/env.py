"""Run the migrations on the connection that ``memstore.catalog.migrate`` hands over.

There is no URL and no engine here: an in-memory store could not be reached by one, and the caller
has prepared the connection (foreign keys off, one transaction around everything).
"""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, transactional_ddl=True)
context.run_migrations()
