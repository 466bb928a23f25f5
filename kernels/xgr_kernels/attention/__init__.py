"""Attention in its parts: shared prompts, causal, tails; paged on a GPU, flash on a CPU."""
