"""The command ``energy-plugins``: one file per verb, and `main`, which lists them."""
