"""One live request after the other, from its first attempt to its one outcome."""
