"""The ground: the only importer of llama_cpp and of ctypes.

It must not know models by name, plans, prompts or files on a hub.
"""
