"""What keeps the project's own pages, tables and checks; not installed."""
