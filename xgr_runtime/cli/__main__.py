"""`python -m xgr_runtime.cli`, where the `xgr` script is not on the path."""

import sys

from xgr_runtime.cli import main

sys.exit(main())
