"""Benchmarks beside other libraries, each with its committed result in `results/`."""
