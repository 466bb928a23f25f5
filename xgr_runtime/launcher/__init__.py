"""The launcher: what a deployment consists of, and how its processes live."""
