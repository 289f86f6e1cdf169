"""Grams, money and things that people know, from joules."""
