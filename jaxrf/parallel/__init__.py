"""Computation on several devices and processes: meshes, agreement between processes, ordered sums."""
