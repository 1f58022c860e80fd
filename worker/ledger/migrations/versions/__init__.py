"""From the first to the last. ``upgrade`` gets Alembic's operations, and the table's name and schema."""
