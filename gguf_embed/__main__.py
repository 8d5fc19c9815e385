"""`python -m gguf_embed`: the command line, for programs that know their Python and not its scripts.

It must not be imported.
"""

from gguf_embed.cli import main

if __name__ == "__main__":
    main()
