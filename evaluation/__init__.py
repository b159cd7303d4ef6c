"""Scores of part maps, features and cost: `python -m evaluation.X`."""
