"""Volume rendering of fields, given as callables: colors, opacities and depths of rays.

Also the losses on the weights of rays, and whole images in constant memory.
"""
