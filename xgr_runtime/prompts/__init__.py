"""What a model reads: histories and messages as text by a catalog's templates, and as the tokenizer's ids.

No torch: a router renders prompts as an evaluation script would, and in much less time.
"""

from xgr_runtime.prompts.prompts import Prompts
from xgr_runtime.prompts.texts import Rendered

__all__ = ["Prompts", "Rendered"]
