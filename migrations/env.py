"""Alembic's entry: runs the migrations on the connection it is handed (see sprat_server/db/migrate.py)."""

import importlib
import pkgutil

from alembic import context
from sqlalchemy import Connection

import sprat_server
from sprat_server.db.base import Base
from sprat_server.db.migrate import compared

# Every feature package keeps its tables in `models`; importing them fills Base.metadata.
for package in pkgutil.iter_modules(sprat_server.__path__, "sprat_server."):
    if package.ispkg and importlib.util.find_spec(f"{package.name}.models"):
        importlib.import_module(f"{package.name}.models")

connection: Connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    include_name=compared,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
