"""Other libraries' ways to do what our kernels do: built once from arrays, then called; a call returns its results.

Every class takes (arrays, threads) and returns a tuple of arrays from __call__.
"""
