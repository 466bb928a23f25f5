"""Tiny checkpoints for engines that run here."""

from model_fixtures import make_checkpoint

__all__ = ["make_checkpoint"]
