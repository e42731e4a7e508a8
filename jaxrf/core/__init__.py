"""Numbers without a scene: rays, step functions, encodings, grids, packed arrays, keys, pytrees."""
