"""Speed on this machine, beside other programs on the same file. It must not know the command line."""
