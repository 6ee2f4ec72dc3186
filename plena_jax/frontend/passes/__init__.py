"""Passes over tensor graphs: patterns become operations that the machine has better kernels for."""
