"""Stands in for wandb, which img2dataset imports even when it is told not to log there.

It is empty: with `enable_wandb=False` no attribute of it is ever asked for.
"""
