"""Figures of the kernels benchmark, one file a kernel."""
