"""Train a small network on real images through Lightning and show where the joules went: ``energy-plugins demo``.

python examples/demo.py            about a minute
python examples/demo.py --quick    about ten seconds
"""

from __future__ import annotations

import sys

from energy_plugins.cli.main import main

if __name__ == "__main__":
    main(["demo", *sys.argv[1:]])
