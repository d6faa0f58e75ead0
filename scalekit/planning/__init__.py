"""The plan: how a job will run, and why, before it does."""
