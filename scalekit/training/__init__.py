"""The job: a run's folder, its plan, its trainer, its result."""
