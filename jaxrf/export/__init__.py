"""Writes trained runs as meshes, point clouds, packed ternary weights, web pages and videos."""
