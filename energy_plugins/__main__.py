"""``python -m energy_plugins`` is the command ``energy-plugins``."""

from energy_plugins.cli.main import main

if __name__ == "__main__":
    main()
