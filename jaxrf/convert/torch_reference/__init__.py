"""The programs that weights come from, rebuilt in PyTorch to compare jaxrf with.

They are written from the description of each format alone and use nothing of jaxrf but the readers
of files. A comparison covers encoding, trunk, raw density and raw color at points, and images that
are rendered without random numbers.
"""
