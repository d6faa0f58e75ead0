"""What is minimised: losses, what they are means over, and how a step's is put together."""
