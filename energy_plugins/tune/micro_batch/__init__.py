"""The search for a micro-batch."""
