"""`python -m xgr_runtime.model.sglang.serve ...`: SGLang's own server where there is no GPU.

The same flags and the same code as `python -m sglang.launch_server`, which cannot even be imported on such a
machine. SGLang spawns its processes, and each of them imports this module before anything else: so the shims
are installed where they have to be, at the top. With a GPU it changes nothing.
"""

import runpy

from xgr_runtime.model.backends import shims

shims.install()

if __name__ == "__main__":
    runpy.run_module("sglang.launch_server", run_name="__main__")
