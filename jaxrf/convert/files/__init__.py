"""Files of other programs: one reader per file format, none of which can run code from a file."""
