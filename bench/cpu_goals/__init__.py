"""Measure the goals for CPUs on this machine: ``python -m bench.cpu_goals``."""
