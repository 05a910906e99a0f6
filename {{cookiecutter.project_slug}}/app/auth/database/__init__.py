"""The tables of the keys, the connection to them, and their migrations."""
