"""Quantizations that were made on this machine: where they lie, and what the missing ones could be made from.

It must not know how they are made, nor plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gguf_embed.errors import UnknownQuantError
from gguf_embed.models.ladders import LADDER, MAKEABLE_FROM
from gguf_embed.models.specs import ModelSpec
from gguf_embed.native.quantize import FTYPES
from gguf_embed.sizes import format_size

__all__ = ["made_files", "made_path", "missing_offers", "offer", "sizes_by_quant", "unknown_quant"]


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


def offer(model_id: str, available: Mapping[str, int | None], quant: str) -> str | None:
    """Say how a quantization could be made that no source has; None where it cannot, or need not.

    Args:
        model_id: what to call the model in the command.
        available: sizes of what there is, by quantization.
        quant: the one that is missing.

    Returns:
        A clause with the command and what it downloads.
    """
    source = next((name for name in MAKEABLE_FROM if name in available), None)
    if source is None or quant not in FTYPES or quant in available or quant in MAKEABLE_FROM:
        return None
    size_bytes = available[source]
    download = f", {format_size(size_bytes)} to download" if size_bytes else ""
    return f"'gguf-embed quantize {model_id} --to {quant}' makes it from {source}{download}"


def sizes_by_quant(spec: ModelSpec) -> dict[str, int | None]:
    """Return the sizes of a model's quantizations, None where one is not known."""
    listed: dict[str, int | None] = {quant: size for source in spec.discoverable for quant, size in source.quants}
    wheel: dict[str, int | None] = {spec.wheel.quant: spec.wheel.size_bytes} if spec.wheel is not None else {}
    sizes = listed | wheel | {file.quant: file.size_bytes for file in spec.files}
    return {quant: sizes.get(quant) for quant in spec.quants}


def missing_offers(spec: ModelSpec) -> tuple[tuple[str, str], ...]:
    """List what is commonly wanted of a model and in no source: quantization and how it could be made."""
    sizes = sizes_by_quant(spec)
    offers = ((quant, offer(spec.model_id, sizes, quant)) for quant in LADDER)
    return tuple((quant, words) for quant, words in offers if words is not None)


def unknown_quant(model_id: str, available: Mapping[str, int | None], quant: str) -> UnknownQuantError:
    """Make the error for a quantization that is in no source of a model."""
    offered = offer(model_id, available, quant)
    return UnknownQuantError(
        f"{model_id} has no quant {quant!r}; it has {', '.join(available)}{'. ' + offered if offered else ''}",
        model_id=model_id,
        quant=quant,
        available=tuple(available),
    )


def _folder(cache_dir: Path) -> Path:
    return cache_dir / "quantized"
