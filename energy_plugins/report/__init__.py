"""What reports are for once a run is over: comparing them, and saying what they mean to people."""
