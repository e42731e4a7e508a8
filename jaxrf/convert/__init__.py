"""Weights of other programs: read, turned into runs, compared with their program, and written."""
