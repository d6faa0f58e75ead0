"""Where a run's numbers go: Weights & Biases, and loggers of Lightning's."""
