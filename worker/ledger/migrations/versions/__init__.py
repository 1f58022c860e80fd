"""One module for each version. Its ``upgrade`` gets Alembic's operations, and the table's name and schema."""
