"""What tests of checkpoints share."""

from model_fixtures import make_checkpoint

__all__ = ["make_checkpoint"]
