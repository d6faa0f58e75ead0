"""Several documents in one row, kept apart in the model."""
