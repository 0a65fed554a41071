"""Training: the loop, its folder, and what makes it repeatable."""
