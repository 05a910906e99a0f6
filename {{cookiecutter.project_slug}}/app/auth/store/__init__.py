"""The keys as a running service knows them."""
