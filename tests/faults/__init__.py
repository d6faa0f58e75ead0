"""Real kills of real jobs, at moments that a seed chooses."""

STEPS = 18
"""Of the job: three epochs and a half, with a checkpoint every three steps."""
