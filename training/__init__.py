"""What train.py is made of: configuration, optimiser, checkpoints, metrics, the run folder."""
