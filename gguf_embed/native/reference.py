"""llama-cpp-python's own way to embed, `Llama.embed`, to be measured beside ours; nothing else here uses it.

It must not know plans, prompts or how it is measured. One process holds either this or a Model: both set llama.cpp up.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gguf_embed.errors import BackendError, ModelLoadError

__all__ = ["Reference"]

# Llama's own default of n_ctx, n_batch and n_ubatch. Source: llama-cpp-python 0.3.36, llama.py.
_N_TOKENS_DEFAULT = 512
_N_TOKENS_STEP = 256


class Reference:
    """A GGUF in `llama_cpp.Llama(embedding=True)`, pooling as the file has it.

    Args:
        path: the GGUF.
        n_tokens_max: of the longest text; a context and a batch hold at least that, so that nothing is cut.
        n_threads: CPU threads.
        n_gpu_layers: layers on devices, -1 for all.

    Attributes:
        version: of llama-cpp-python.

    Raises:
        BackendError: llama-cpp-python cannot be loaded.
        ModelLoadError: it refused the file.
    """

    def __init__(self, path: Path, *, n_tokens_max: int, n_threads: int, n_gpu_layers: int = 0) -> None:
        try:
            import llama_cpp  # noqa: PLC0415 - 160 ms, and only when it is really wanted
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendError(f"llama-cpp-python cannot be loaded: {error}") from error
        self.version = str(llama_cpp.__version__)
        n_tokens = max(_N_TOKENS_DEFAULT, -(-n_tokens_max // _N_TOKENS_STEP) * _N_TOKENS_STEP)
        try:
            self._llama = llama_cpp.Llama(
                str(path),
                embedding=True,
                n_ctx=n_tokens,
                n_batch=n_tokens,
                n_ubatch=n_tokens,
                n_threads=n_threads,
                n_threads_batch=n_threads,
                n_gpu_layers=n_gpu_layers,
                verbose=False,
            )
        except (ValueError, RuntimeError) as error:
            raise ModelLoadError(f"{path.name}: llama-cpp-python could not load it: {error}", path=path) from error
        if self._llama.pooling_type() == llama_cpp.LLAMA_POOLING_TYPE_NONE:
            self.close()
            raise ModelLoadError(f"{path.name} names no pooling, so Llama.embed gives no row a text", path=path)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Embed texts.

        Returns:
            One row of n_embd numbers a text, not normalised.

        Raises:
            BackendError: llama-cpp-python failed.
        """
        try:
            rows: list[list[float]] = self._llama.embed(list(texts))
        except (ValueError, RuntimeError) as error:
            raise BackendError(f"Llama.embed failed: {error}") from error
        return rows

    def close(self) -> None:
        """Free the model; closing twice is allowed."""
        self._llama.close()
