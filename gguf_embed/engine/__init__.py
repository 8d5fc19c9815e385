"""RUN it: token ids in, raw float32 rows out. It must not know model names, the hub, prompts or HTTP."""
