"""Without a GPU, Triton's kernels are interpreted. Import this before anything that imports Triton.

Triton asks once. Not beside SGLang, whose kernels are Triton's too and are tested as people run them.
"""

import importlib.util
import os

import torch

if importlib.util.find_spec("sglang") is None and not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
