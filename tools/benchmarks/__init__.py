"""What tools/benchmark_data.py is made of: the sides it times, each in a process of its own."""
