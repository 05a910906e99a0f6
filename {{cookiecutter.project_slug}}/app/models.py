"""Your tables. Each one is a subclass of `app.database.Base`. README.md says how to add one."""
