"""Model backends, KV memory and attention stages: the only part of xgr_runtime that imports torch."""
