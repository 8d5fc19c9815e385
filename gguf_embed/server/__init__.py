"""Local HTTP: one core call, three dialects of it. It must not know the command line."""
