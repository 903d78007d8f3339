"""Something to read or to run: tables, JSON, launch files."""
