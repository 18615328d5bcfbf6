"""Benchmarks and load generators: outside clients of the service, and micro-benchmarks of its stages."""
