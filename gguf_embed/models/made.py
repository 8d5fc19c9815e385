"""Quantizations that were made on this machine: where they lie, and what the missing ones could be made from.

It must not know how they are made, nor plans.
"""

from __future__ import annotations

from pathlib import Path

from gguf_embed.errors import UnknownQuantError
from gguf_embed.models.ladders import MAKEABLE_FROM
from gguf_embed.models.specs import ModelSpec
from gguf_embed.native.quantize import FTYPES
from gguf_embed.sizes import format_size

__all__ = ["made_files", "made_path", "offer", "unknown_quant"]


def made_path(cache_dir: Path, model_id: str, quant: str) -> Path:
    """Return where a quantization of a model lies that `gguf-embed quantize` makes, whether or not it does yet.

    Args:
        cache_dir: this program's own.
        model_id: the registry's name, or "owner/repo".
        quant: Q4_K_S, ...
    """
    name = model_id.rpartition("/")[2].removesuffix("-GGUF")
    return _folder(cache_dir) / model_id.replace("/", "--") / f"{name}-{quant}.gguf"


def made_files(cache_dir: Path) -> list[tuple[str, Path]]:
    """List what was made: model and file."""
    return [(path.parent.name.replace("--", "/"), path) for path in sorted(_folder(cache_dir).glob("*/*.gguf"))]


def offer(spec: ModelSpec, quant: str) -> str | None:
    """Say how a quantization could be made that no source has; None where it cannot.

    Returns:
        A sentence with the command and what it downloads.
    """
    sizes = {file.quant: file.size_bytes for file in spec.files}
    source = next((name for name in MAKEABLE_FROM if name in spec.quants), None)
    if source is None or quant not in FTYPES or quant in MAKEABLE_FROM:
        return None
    size_bytes = sizes.get(source)
    download = f", {format_size(size_bytes)} to download" if size_bytes else ""
    return f"'gguf-embed quantize {spec.model_id} --to {quant}' makes it from {source}{download}"


def unknown_quant(spec: ModelSpec, quant: str) -> UnknownQuantError:
    """Make the error for a quantization that is in no source of a model."""
    offered = offer(spec, quant)
    return UnknownQuantError(
        f"{spec.model_id} has no quant {quant!r}; it has {', '.join(spec.quants)}{'. ' + offered if offered else ''}",
        model_id=spec.model_id,
        quant=quant,
        available=spec.quants,
    )


def _folder(cache_dir: Path) -> Path:
    return cache_dir / "quantized"
