"""What all kernels for a CPU share: how they are compiled, and their threads."""
