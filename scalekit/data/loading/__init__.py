"""Loaders: from rows to the micro-batches of a rank."""
