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
        FingerprintError,
        GGUFEmbedError,
        HubError,
        InputError,
        InvalidGGUFError,
        InvalidRegistryError,
        InvalidTextError,
        JobError,
        MissingExtraError,
        ModelLoadError,
        NonFiniteEmbeddingError,
        OfflineError,
        RegistryError,
        RemoteError,
        StorageError,
        TextTooLongError,
        UnknownModelError,
        UnknownQuantError,
        UnsupportedModelError,
        WorkerCrashedError,
    )
    from gguf_embed.fit.planner import Limits, Plan
    from gguf_embed.stream.cache import VectorCache
    from gguf_embed.stream.chunking import Chunking, Span
    from gguf_embed.stream.results import StreamResult
    from gguf_embed.vectors import (
        calibrate,
        quantize_embeddings,
        restore_embeddings,
        similarity,
        similarity_pairwise,
        truncate_dim,
    )

__version__ = "0.1.0"

_HOMES = {
    "Chunking": "gguf_embed.stream.chunking",
    "Embedder": "gguf_embed.embedder",
    "EmbedReport": "gguf_embed.encoding",
    "EncodeOptions": "gguf_embed.encoding",
    "Limits": "gguf_embed.fit.planner",
    "Plan": "gguf_embed.fit.planner",
    "Span": "gguf_embed.stream.chunking",
    "StreamResult": "gguf_embed.stream.results",
    "VectorCache": "gguf_embed.stream.cache",
    "calibrate": "gguf_embed.vectors",
    "quantize_embeddings": "gguf_embed.vectors",
    "restore_embeddings": "gguf_embed.vectors",
    "similarity": "gguf_embed.vectors",
    "similarity_pairwise": "gguf_embed.vectors",
    "truncate_dim": "gguf_embed.vectors",
}

__all__ = [
    "AccessDeniedError",
    "AllocationError",
    "BackendError",
    "ChecksumError",
    "Chunking",
    "ClosedError",
    "ConfigError",
    "DecodeError",
    "DimensionError",
    "DoesNotFitError",
    "DownloadError",
    "EmbedReport",
    "Embedder",
    "EncodeOptions",
    "FingerprintError",
    "GGUFEmbedError",
    "HubError",
    "InputError",
    "InvalidGGUFError",
    "InvalidRegistryError",
    "InvalidTextError",
    "JobError",
    "Limits",
    "MissingExtraError",
    "ModelLoadError",
    "NonFiniteEmbeddingError",
    "OfflineError",
    "Plan",
    "RegistryError",
    "RemoteError",
    "Span",
    "StorageError",
    "StreamResult",
    "TextTooLongError",
    "UnknownModelError",
    "UnknownQuantError",
    "UnsupportedModelError",
    "VectorCache",
    "WorkerCrashedError",
    "__version__",
    "calibrate",
    "quantize_embeddings",
    "restore_embeddings",
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
