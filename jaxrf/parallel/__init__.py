"""Computation on several devices and processes: device meshes, broadcasts, ordered sums."""
