"""Benchmarks of the operators against the strongest plain PyTorch; run with pytest-benchmark."""
