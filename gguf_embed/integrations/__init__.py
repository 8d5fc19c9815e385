"""Adapters: gguf-embed as other libraries know embeddings, a host a module, each loaded by its own name alone.

An adapter translates words and decides nothing. The package itself must not know any host.
"""
