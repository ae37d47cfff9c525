"""Recipes against each other: which runs are made, what they gave, and what follows from that."""
