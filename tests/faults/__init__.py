"""Real kills of real jobs, at moments that a seed chooses."""

STEPS = 60
"""Of the job: twelve epochs, with a checkpoint every three steps; long enough for several faults one after the other."""
