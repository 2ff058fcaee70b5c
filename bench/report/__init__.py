"""Tables and plots of a run: ``python -m bench.report FOLDER``."""
