"""Text embeddings on the machine you own, through llama.cpp.

The public names load lazily: `import gguf_embed` loads neither llama_cpp nor the hub client nor a web framework, and
this module must not know more than where each name lives.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf_embed.embedder import Embedder
    from gguf_embed.encoding import EmbedReport, EncodeOptions
    from gguf_embed.errors import (
        AccessDeniedError,
        AllocationError,
        BackendError,
        ChecksumError,
        ClosedError,
        ConfigError,
        DecodeError,
        DimensionError,
        DoesNotFitError,
        DownloadError,
        GGUFEmbedError,
        HubError,
        InputError,
        InvalidGGUFError,
        InvalidRegistryError,
        InvalidTextError,
        MissingExtraError,
        ModelLoadError,
        NonFiniteEmbeddingError,
        OfflineError,
        RegistryError,
        StorageError,
        TextTooLongError,
        UnknownModelError,
        UnknownQuantError,
        UnsupportedModelError,
        WorkerCrashedError,
    )
    from gguf_embed.fit.planner import Limits, Plan
    from gguf_embed.vectors import similarity, similarity_pairwise, truncate_dim

__version__ = "0.1.0"

_HOMES = {
    "Embedder": "gguf_embed.embedder",
    "EmbedReport": "gguf_embed.encoding",
    "EncodeOptions": "gguf_embed.encoding",
    "Limits": "gguf_embed.fit.planner",
    "Plan": "gguf_embed.fit.planner",
    "similarity": "gguf_embed.vectors",
    "similarity_pairwise": "gguf_embed.vectors",
    "truncate_dim": "gguf_embed.vectors",
}

__all__ = [
    "AccessDeniedError",
    "AllocationError",
    "BackendError",
    "ChecksumError",
    "ClosedError",
    "ConfigError",
    "DecodeError",
    "DimensionError",
    "DoesNotFitError",
    "DownloadError",
    "EmbedReport",
    "Embedder",
    "EncodeOptions",
    "GGUFEmbedError",
    "HubError",
    "InputError",
    "InvalidGGUFError",
    "InvalidRegistryError",
    "InvalidTextError",
    "Limits",
    "MissingExtraError",
    "ModelLoadError",
    "NonFiniteEmbeddingError",
    "OfflineError",
    "Plan",
    "RegistryError",
    "StorageError",
    "TextTooLongError",
    "UnknownModelError",
    "UnknownQuantError",
    "UnsupportedModelError",
    "WorkerCrashedError",
    "__version__",
    "similarity",
    "similarity_pairwise",
    "truncate_dim",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'gguf_embed' has no attribute {name!r}")
    home = importlib.import_module(_HOMES.get(name, "gguf_embed.errors"))
    value = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
