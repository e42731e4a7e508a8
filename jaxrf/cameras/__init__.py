"""Cameras: from pixels to rays and back, lenses, NDC, contraction, poses, paths and transforms."""
