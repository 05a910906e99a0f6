"""Access control: authentication and scopes of every request."""
