"""Joules for people: reports rendered, compared and exported. Nothing here measures."""
