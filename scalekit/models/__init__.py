"""What a model is before it is trained: how it is found, built, filled, and given its head and its tokens."""
