"""Sweeps that count joules: halving at rungs of them, and the search for the least energy to a target."""
