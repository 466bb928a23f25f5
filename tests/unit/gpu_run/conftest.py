"""`tests/gpu/run` is a script; its plain-Python parts are imported here as it imports them."""

import sys
from pathlib import Path

GPU = Path(__file__).resolve().parents[2] / "gpu"
if str(GPU) not in sys.path:
    sys.path.append(str(GPU))
