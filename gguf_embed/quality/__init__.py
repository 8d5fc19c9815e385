"""IS IT RIGHT: a file's vectors held against other files, other programs and known answers.

It must not know the command line or HTTP servers of ours.
"""
