"""How long a step takes, and what that time goes into."""
