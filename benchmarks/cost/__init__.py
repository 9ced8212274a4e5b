"""A model of what the kernels cost on a GPU that is not here: ``python -m benchmarks.cost``."""
