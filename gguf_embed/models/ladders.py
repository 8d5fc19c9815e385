"""In which order quantizations are tried, and what a model's repository lacks can be made from.

Pure. It must not know files, memory or the hub.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from gguf_embed.models.specs import ModelSpec

__all__ = ["LADDER", "MAKEABLE_FROM", "PREFERENCES", "QUALITY_LADDER", "ladder_of", "quality_rank"]

PREFERENCES = ("default", "quality", "speed", "small", "measured")
# What is tried of a repo that the registry does not know, best first; the other quants only when named.
LADDER = ("Q4_K_M", "Q4_K_S", "Q3_K_M")
QUALITY_LADDER = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_0", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q4_0", "Q3_K_M",
    "Q3_K_S", "Q2_K",
)  # fmt: skip
# Fastest first on a CPU that reorders weights; on a GPU they differ little, and where K-quants are taken in tiles the
# order is not measured. Source: scripts/bench-quants, "reordered", 2 cores with AVX-512, 2026-11-21, in tokens a
# second: 513, 450, 442, 431, 401, 362, 351, 330, 244.
_SPEED_LADDER = ("IQ4_XS", "Q5_K_M", "Q6_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q4_K_S", "F16", "Q8_0")
# What llama.cpp quantizes without loss that matters beside the target's own, smallest download first.
MAKEABLE_FROM = ("Q8_0", "F16", "BF16", "F32")


def ladder_of(
    prefer: str,
    spec: ModelSpec | None,
    available: Collection[str] | None = None,
    *,
    measured: Sequence[str] = (),
) -> tuple[str, ...]:
    """List the quantizations to try, best first.

    Args:
        prefer: "default", "quality" (F16 and Q8_0 first), "speed" (what computes fastest), "small" (least memory) or
            "measured" (as an evaluation found them).
        spec: the model, None for one that the registry does not know.
        available: what there is, None for everything.
        measured: for "measured", what was measured, best first; it goes before the default ladder.

    Raises:
        ValueError: no such preference.
    """
    if prefer not in PREFERENCES:
        raise ValueError(f"prefer is {prefer!r}; it is one of {', '.join(PREFERENCES)}")
    default = spec.ladder if spec is not None else LADDER
    quality = spec.quality_ladder if spec is not None else QUALITY_LADDER
    chosen: Iterable[str] = default if prefer in ("default", "small") else quality
    if prefer == "small":
        chosen = reversed(default)
    elif prefer == "speed":
        chosen = sorted(quality, key=_speed_rank)
    elif prefer == "measured":
        chosen = dict.fromkeys((*measured, *default))
    return tuple(quant for quant in chosen if available is None or quant in available)


def quality_rank(quant: str) -> int:
    """Place in the order from best to smallest; what is not known comes last."""
    return QUALITY_LADDER.index(quant) if quant in QUALITY_LADDER else len(QUALITY_LADDER)


def _speed_rank(quant: str) -> int:
    return _SPEED_LADDER.index(quant) if quant in _SPEED_LADDER else len(_SPEED_LADDER)
