"""The command line: one file per command, with its options and a `run(options)`.

Heavy modules are imported inside `run`, so that --help is quick.
"""
