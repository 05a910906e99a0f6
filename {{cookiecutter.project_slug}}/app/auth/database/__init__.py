"""The tables of the keys, the connection to them, and the owner's migrations."""
