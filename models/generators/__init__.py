"""Generators: one file each, found by `models.registry`."""
