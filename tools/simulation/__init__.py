"""What a run on many ranks would do, computed on one machine."""
