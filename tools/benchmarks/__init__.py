"""What the benchmarks of data and training are made of: the sides, each in a process of its own."""
