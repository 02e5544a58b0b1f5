"""Tasks: what a model is for, and how its answers are judged."""
