"""The power limit of a training: from its start to whatever ends it."""
