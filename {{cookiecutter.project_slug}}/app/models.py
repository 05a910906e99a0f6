"""Your tables: each is a class that inherits from `app.database.Base`. README.md has an example."""
