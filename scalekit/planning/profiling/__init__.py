"""One step of a model on fake tensors: what it allocates and computes."""
