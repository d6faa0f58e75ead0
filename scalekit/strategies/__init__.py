"""Lightning strategies: how a step runs on several ranks, and what each of them holds of a job's tensors."""
