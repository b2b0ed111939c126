"""The plain way to compute what the package computes fast, for tests and benchmarks."""
