"""``python -m energy_plugins.run PROGRAM``: an unchanged program is measured, whatever it trains with."""
