"""Which rows make a global batch, as pure functions of numbers."""
