"""What the benchmarks share: figures, timing side by side, data, servers."""
