"""Moves keys in and out, and the database from one kind to the other."""
