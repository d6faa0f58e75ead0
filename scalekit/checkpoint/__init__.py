"""Checkpoints: one layout whatever the strategy, without a pickle in it."""
