"""The foundation that every other package may use, and that knows no scene.

Numbers: rays, step functions, encodings, grids and hash tables, packed arrays, keys, pytrees. The
program: errors, checks of options, the user's code and files, progress, memory and the machine.
"""
