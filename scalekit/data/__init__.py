"""From rows of any source to the micro-batches of each rank."""
