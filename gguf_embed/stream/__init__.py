"""Many texts one after another: chunks, blocks, cached rows.

It must not know models' names, files or the command line.
"""
