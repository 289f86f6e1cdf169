"""``python -I -S .../energy_plugins/powerd --config FILE``: the privileged helper.

Python's ``-I`` ignores the environment and the working folder, ``-S`` whatever else is installed. What is left is
checked before the driver is touched: root must be the only one who can change this code, its configuration and the
driver's library.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if not __package__:
    # Started by its path: the folder of this file must not stand before the standard library, nor in it at all.
    sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).parent)]
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from energy_plugins.powerd.start import main

# Nothing below this line, the driver's library included, sees what the environment says.
LOADER = sorted(name for name in os.environ if name.startswith("LD_"))
os.environ.clear()
sys.exit(main(sys.argv[1:], LOADER))
