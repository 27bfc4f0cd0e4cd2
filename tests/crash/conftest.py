"""The simulators of server, repository and disk are found by their names."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "simulator"))
