"""Counters to joules: what the sensors saw and what training was doing become a report."""
