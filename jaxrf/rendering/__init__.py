"""Volume rendering: fields, given as callables, to colors, opacities and depths of rays."""
