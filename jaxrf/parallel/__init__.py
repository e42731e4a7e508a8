"""Computation on several devices and processes: meshes, agreement, ordered sums."""
