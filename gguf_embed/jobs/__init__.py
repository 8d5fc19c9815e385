"""Many texts: where they come from and where their vectors go. It must not know models, plans or the command line."""
