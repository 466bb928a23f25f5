"""The layers that a checkpoint runs in, and what they are checked against."""
