"""Throughput of this project beside two PyTorch baselines: ``python -m benchmarks.throughput --help``."""
