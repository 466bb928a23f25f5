"""Kernels: shared attention, tail attention and beam selection, each beside its slow reference."""
