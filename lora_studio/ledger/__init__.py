"""The ledger: all training runs with what they changed, how they went, and what the user noted."""
