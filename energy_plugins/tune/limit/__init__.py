"""The search for a power limit, or for a clock in its place."""
