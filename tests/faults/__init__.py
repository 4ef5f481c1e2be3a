"""Faults put in the way of the package: failing calls, kills, power cuts. ``python -m faults``."""
