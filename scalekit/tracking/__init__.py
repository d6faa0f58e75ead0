"""What a run tells: metrics.jsonl, a progress bar, and the loggers."""
