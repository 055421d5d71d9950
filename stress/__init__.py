"""Tries to break genmod: random cases by the thousand, counted. `python -m stress` runs it, as `make stress` does."""
