"""The vectors that one build of llama.cpp gave, and what has moved since; for scripts/make-engine-golden and a test."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from gguf_embed import Embedder, Limits
from gguf_embed.engine.checks import drift_bound
from gguf_embed.native.backend import cpu_features
from gguf_embed.native.ggml import load_header

LEAST = 0.9999
STARTER_QUANTS = ("F16", "Q8_0", "Q4_K_M", "Q4_K_S", "Q3_K_M")
QWEN3_QUANTS = ("F32", "F16", "Q8_0", "Q4_K_M", "Q4_K_S", "Q3_K_M")
CASES = [("all-minilm-l6-v2", quant) for quant in STARTER_QUANTS] + [("synthetic-qwen3", one) for one in QWEN3_QUANTS]


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """What a build makes of the golden texts.

    Attributes:
        embeddings: (n, dim) float16, unit rows, each text alone with one thread.
        tokens: a digest of each text's ids.
        weights: a digest of the file's tensors.
        build: llama-cpp-python's version.
        features: of the processor that its kernels used.
    """

    embeddings: np.ndarray
    tokens: tuple[str, ...]
    weights: str
    build: str
    features: str


def measure(path, texts):
    """What this build makes of them."""
    with Embedder(path, limits=Limits(n_threads=1)) as model:
        rows = model.encode(texts, batch_size=1)
        tokens = model.tokenize(texts)
    return Vectors(
        embeddings=rows.astype(np.float16),
        tokens=tuple(hashlib.sha256(repr(ids).encode()).hexdigest()[:12] for ids in tokens),
        weights=weights_digest(path),
        build=version("llama-cpp-python"),
        features=" ".join(sorted(cpu_features())),
    )


def weights_digest(path):
    """Of the tensors alone: a header may carry the version that wrote it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(load_header(path).data_offset)
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def save(path, known):
    """Write {(model, quant): Vectors} to one file."""
    arrays = {}
    for (model, quant), one in known.items():
        for name in ("embeddings", "tokens", "weights", "build", "features"):
            arrays[f"{model} {quant} {name}"] = np.asarray(getattr(one, name))
    np.savez_compressed(path, **arrays)


def load(path, model, quant):
    """Read one of them."""
    with np.load(path) as known:
        of = {
            name: known[f"{model} {quant} {name}"] for name in ("embeddings", "tokens", "weights", "build", "features")
        }
    return Vectors(
        embeddings=of["embeddings"],
        tokens=tuple(of["tokens"].tolist()),
        **{name: str(of[name]) for name in ("weights", "build", "features")},
    )


def cosines(a, b):
    """(n,) of rows in float32."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def bound_for(quant, before, now):
    """0.9999 on the processor that the golden file is of; elsewhere quantized kernels round otherwise."""
    return LEAST if before.features == now.features else min(LEAST, drift_bound(quant, on_device=False))


def what_moved(model, quant, before, now, texts):
    """Say what has changed so that vectors moved; "" where none did."""
    found = cosines(before.embeddings, now.embeddings)
    bound = bound_for(quant, before, now)
    moved = np.flatnonzero(~(found >= bound))
    if not len(moved):
        return ""
    worst = int(np.nanargmin(found)) if np.isfinite(found).any() else int(moved[0])
    retokenized = [texts[at] for at in moved if before.tokens[at] != now.tokens[at]]
    tokens = f"others for {len(retokenized)} of these: {retokenized[:3]}" if retokenized else "the same"
    weights = (
        "the same, so the arithmetic changed"
        if before.weights == now.weights
        else "others, so llama.cpp quantizes differently"
    )
    return f"""{model} {quant}: {len(moved)} of {len(texts)} texts are below {bound} to the vectors of before
- the worst is {found[worst]:.6f}, {texts[worst][:40]!r}
- made with llama-cpp-python {before.build}, now {now.build}
- its tokens are {tokens}
- its weights are {weights}
- the processor is {"of the same kind" if before.features == now.features else "of another kind"}
Users' vectors would move with this upgrade. If that is meant, say so in CHANGELOG, raise TOKEN_RULE where tokens
changed, and run: .venv/bin/python scripts/make-engine-golden"""
