"""What the tests of the model package share: tiny checkpoints, and one thread."""

from model_fixtures import make_checkpoint, one_thread

__all__ = ["make_checkpoint", "one_thread"]
