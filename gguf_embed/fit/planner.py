"""Chooses the quantization, the device and the context for one machine, and says why the others lost.

Pure: the same inputs give the same plan. It must not know the network, files on disk or llama.cpp.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gguf_embed.errors import DoesNotFitError
from gguf_embed.fit.hardware import Accelerator, Hardware
from gguf_embed.fit.memory import MemoryCost, memory_cost
from gguf_embed.fit.plan import Candidate, Limits, Plan, Rejection
from gguf_embed.models.header import ModelFacts
from gguf_embed.sizes import format_size

__all__ = ["Candidate", "Limits", "Plan", "Rejection", "plan"]

# Tokens in flight: what a plan has at least, and what the smallest quantization may go down to.
N_CTX_WORKING, N_CTX_FLOOR = 2048, 512
N_UBATCH = 512
N_SEQ_MAX = 64
# Tokens packed into one decode of an encoder on a CPU. Source: scripts/bench, MiniLM F16, 2 cores with AVX-512,
# 2026-11-21: 64/128/256/512 tokens give 454/607/620/610 texts a second.
N_BATCH_ENCODER = 256
_N_CTX_STEP = 256

# What a plan leaves alone: a driver's own buffers and the desktop on a GPU, everything else on the host.
MARGIN_DEVICE = 256 << 20  # 256 MiB
MARGIN_HOST = 512 << 20  # 512 MiB
# What macOS and its programs need on a machine whose GPU shares their memory.
MARGIN_UNIFIED = 3 << 30  # 3 GiB


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Somewhere to run: a way to lay a model out, and the budget it counts against."""

    placement: str
    accelerator: Accelerator | None
    budget_bytes: int
    host_budget_bytes: int

    @property
    def is_unified(self) -> bool:
        return self.accelerator is not None and self.accelerator.is_unified

    @property
    def name(self) -> str:
        return "host memory" if self.accelerator is None else self.accelerator.name


def plan(
    model_id: str,
    candidates: Sequence[Candidate],
    hardware: Hardware,
    limits: Limits | None = None,
    *,
    others: Sequence[Candidate] = (),
) -> Plan:
    """Choose the best quantization that fits whole in free memory; else part of one, else the CPU.

    Within one placement, more memory never picks a smaller quantization.

    Args:
        model_id: for the plan and its messages.
        candidates: best first, at least one.
        hardware: the machine.
        limits: what the user allows.
        others: weighed for the reader's sake and never chosen.

    Returns:
        The choice, its cost and the reasons.

    Raises:
        ValueError: no candidates, or n_ctx above what the model was trained for.
        DoesNotFitError: not even the smallest fits; every candidate's shortfall is in it.
    """
    if not candidates:
        raise ValueError("plan() needs at least one candidate")
    limits = limits or Limits()
    for candidate in candidates:
        if limits.n_ctx is not None and limits.n_ctx > candidate.facts.n_ctx_train:
            raise ValueError(
                f"n_ctx is {limits.n_ctx}; {model_id} takes texts of at most {candidate.facts.n_ctx_train}"
            )
    places = _places(hardware, limits)
    for place in places:
        for candidate, n_ctx in _attempts(candidates, place, limits):
            n_gpu_layers = _fitting_layers(candidate.facts, place, n_ctx)
            if n_gpu_layers is not None:
                plan = _plan(model_id, candidates, candidate, place, n_ctx, n_gpu_layers, hardware, limits)
                return _with_others(plan, others, place, limits)
    raise _does_not_fit(model_id, candidates, places, limits)


def _places(hardware: Hardware, limits: Limits) -> list[_Place]:
    """Where to try, best first: whole on the device, part of it there, the CPU."""
    host = max(0, hardware.ram_available_bytes - MARGIN_HOST)
    capped_host = _capped(host, limits)
    places = []
    discrete = [device for device in hardware.accelerators if not device.is_integrated]
    usable = discrete or (list(hardware.accelerators) if limits.device == "gpu" else [])
    if usable and limits.device != "cpu":
        device = max(usable, key=lambda one: one.free_bytes)
        free = device.free_bytes - MARGIN_DEVICE
        if device.is_unified:
            free = min(free, hardware.ram_total_bytes - MARGIN_UNIFIED)
        budget = _capped(free, limits)
        places.append(_Place(placement="gpu", accelerator=device, budget_bytes=budget, host_budget_bytes=host))
        if not device.is_unified:
            places.append(_Place(placement="partial", accelerator=device, budget_bytes=budget, host_budget_bytes=host))
    elif limits.device == "gpu":
        raise DoesNotFitError(
            "device is gpu, and this build of llama.cpp sees none. See Install in the README for CUDA and Metal "
            "builds, or run on the CPU: --device cpu.",
            required_bytes=0,
            available_bytes=0,
        )
    if limits.device != "gpu":
        places.append(
            _Place(placement="cpu", accelerator=None, budget_bytes=capped_host, host_budget_bytes=capped_host)
        )
    return places


def _capped(free_bytes: int, limits: Limits) -> int:
    return max(0, free_bytes if limits.memory_bytes is None else min(free_bytes, limits.memory_bytes))


def _attempts(candidates: Sequence[Candidate], place: _Place, limits: Limits) -> Iterator[tuple[Candidate, int]]:
    """Candidates with the context to try them at; the smallest gets a second chance at the floor."""
    smallest = min(candidates, key=lambda one: one.facts.weights_bytes)
    # Part of a model is for what fits nowhere whole, so the smallest: the most layers on the device.
    for candidate in candidates if place.placement != "partial" else [smallest]:
        yield candidate, _working_n_ctx(candidate.facts, limits)
    if limits.n_ctx is None and _is_splittable(smallest.facts) and place.placement != "partial":
        yield smallest, min(N_CTX_FLOOR, smallest.facts.n_ctx_train)


def _working_n_ctx(facts: ModelFacts, limits: Limits) -> int:
    return limits.n_ctx or min(N_CTX_WORKING if _is_splittable(facts) else N_UBATCH, facts.n_ctx_train)


def _is_splittable(facts: ModelFacts) -> bool:
    """Only a causal model that pools its last token may take a text in several decodes."""
    return facts.is_causal and facts.pooling_type == "last"


def _n_ubatch(facts: ModelFacts, n_ctx: int) -> int:
    return min(N_UBATCH, n_ctx) if _is_splittable(facts) else n_ctx


def _fitting_layers(facts: ModelFacts, place: _Place, n_ctx: int) -> int | None:
    """Layers for the device at this context: all and the output, as many as fit, none on a CPU; None if too few."""
    if place.placement == "cpu":
        return 0 if _shortfall_bytes(facts, place, n_ctx, 0) <= 0 else None
    if place.placement == "gpu":
        return facts.n_layer + 1 if _shortfall_bytes(facts, place, n_ctx, facts.n_layer + 1) <= 0 else None
    fitting = (n for n in range(facts.n_layer, 0, -1) if _shortfall_bytes(facts, place, n_ctx, n) <= 0)
    return next(fitting, None)


def _cost(facts: ModelFacts, n_ctx: int, n_gpu_layers: int) -> MemoryCost:
    return memory_cost(facts, n_ctx=n_ctx, n_ubatch=_n_ubatch(facts, n_ctx), n_gpu_layers=n_gpu_layers)


def _shortfall_bytes(facts: ModelFacts, place: _Place, n_ctx: int, n_gpu_layers: int) -> int:
    """Bytes missing where most are; zero or less where it fits."""
    return _shortfall(facts, place, n_ctx, n_gpu_layers).shortfall_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shortfall:
    """What a model needs in the memory that is shortest for it."""

    where: str
    required_bytes: int
    available_bytes: int

    @property
    def shortfall_bytes(self) -> int:
        return self.required_bytes - self.available_bytes


def _shortfall(facts: ModelFacts, place: _Place, n_ctx: int, n_gpu_layers: int) -> _Shortfall:
    cost = _cost(facts, n_ctx, n_gpu_layers)
    required = _required_bytes(cost, place.placement, facts, is_unified=place.is_unified)
    here = _Shortfall(where=place.name, required_bytes=required, available_bytes=place.budget_bytes)
    if place.is_unified or place.accelerator is None:
        return here
    host = _Shortfall(where="host memory", required_bytes=cost.host_bytes, available_bytes=place.host_budget_bytes)
    return max(here, host, key=lambda one: one.shortfall_bytes)


def _required_bytes(cost: MemoryCost, placement: str, facts: ModelFacts, *, is_unified: bool) -> int:
    """What counts against a budget; in unified memory the mapped file counts once."""
    if is_unified:
        return cost.total_bytes - cost.weights_bytes - cost.host_weights_bytes + facts.weights_bytes
    return cost.host_bytes if placement == "cpu" else cost.device_bytes


def _longest_n_ctx(facts: ModelFacts, place: _Place, n_ctx: int, n_gpu_layers: int) -> int:
    """The longest text that fits beside the weights, in whole steps, at least n_ctx."""
    low, high = n_ctx, facts.n_ctx_train
    while low < high:
        middle = min(high, -(-(low + high + 1) // 2 // _N_CTX_STEP) * _N_CTX_STEP)
        if middle <= low:
            return low
        if _shortfall_bytes(facts, place, middle, n_gpu_layers) <= 0:
            low = middle
        else:
            high = middle - _N_CTX_STEP
    return low


def _plan(
    model_id: str,
    candidates: Sequence[Candidate],
    chosen: Candidate,
    place: _Place,
    n_ctx: int,
    n_gpu_layers: int,
    hardware: Hardware,
    limits: Limits,
) -> Plan:
    facts, on_cpu = chosen.facts, place.accelerator is None
    n_ubatch = _n_ubatch(facts, n_ctx)
    n_batch = n_ubatch if facts.is_causal or not on_cpu else min(n_ubatch, N_BATCH_ENCODER)
    cost = _cost(facts, n_ctx, n_gpu_layers)
    required = _required_bytes(cost, place.placement, facts, is_unified=place.is_unified)
    return Plan(
        model_id=model_id,
        quant=chosen.quant,
        facts=facts,
        placement=place.placement,
        device=None if place.accelerator is None else place.accelerator.name,
        device_description=hardware.description if place.accelerator is None else place.accelerator.description,
        is_unified=place.is_unified,
        n_gpu_layers=n_gpu_layers,
        n_ctx=n_ctx,
        n_ctx_max=limits.n_ctx or _longest_n_ctx(facts, place, n_ctx, n_gpu_layers),
        n_batch=n_batch,
        n_ubatch=n_ubatch,
        n_seq_max=min(N_SEQ_MAX, n_batch),
        n_threads=limits.n_threads or hardware.n_cores,
        load_mode="mmap" if place.placement == "gpu" else "none",
        cost=cost,
        required_bytes=required,
        available_bytes=place.budget_bytes,
        rejected=tuple(_rejections(candidates, chosen, place, hardware, limits)),
        reason=_reason(place, facts, n_gpu_layers, required, passed_over=_places(hardware, limits)[0]),
    )


def _with_others(plan: Plan, others: Sequence[Candidate], place: _Place, limits: Limits) -> Plan:
    fits = "fits, but is taken only by name or with --prefer quality"
    weighed = (_rejection(one, place, limits, fits=fits, is_better=False) for one in others)
    return dataclasses.replace(plan, rejected=(*plan.rejected, *weighed))


def _reason(place: _Place, facts: ModelFacts, n_gpu_layers: int, required: int, *, passed_over: _Place) -> str:
    fits = f"{format_size(required)} of {format_size(place.budget_bytes)}"
    if place.placement == "gpu":
        return f"the best that fits whole on {place.name}: {fits}"
    if place.placement == "partial":
        layers = f"{n_gpu_layers} of {facts.n_layer} layers" if n_gpu_layers < facts.n_layer else "all but the output"
        return f"none fits whole on {place.name}; {layers} go there: {fits}"
    too_little = "" if passed_over == place else f"too little is free on {passed_over.name}; "
    return f"{too_little}the best that fits in host memory: {fits}"


def _rejections(
    candidates: Sequence[Candidate], chosen: Candidate, place: _Place, hardware: Hardware, limits: Limits
) -> Iterator[Rejection]:
    """Why each other candidate lost; where part of the chosen one is on the device, why none is whole there."""
    judged = _places(hardware, limits)[0] if place.placement == "partial" else place
    position = candidates.index(chosen)
    for index, candidate in enumerate(candidates):
        if candidate is not chosen:
            fits = f"fits, but {chosen.quant} is better"
            yield _rejection(candidate, judged, limits, fits=fits, is_better=index < position)


def _rejection(candidate: Candidate, place: _Place, limits: Limits, *, fits: str, is_better: bool) -> Rejection:
    short = _shortest(candidate.facts, place, [_working_n_ctx(candidate.facts, limits)])
    return Rejection(
        quant=candidate.quant,
        reason=f"{format_size(short.shortfall_bytes)} too much for {short.where}"
        if short.shortfall_bytes > 0
        else fits,
        is_better=is_better,
        required_bytes=short.required_bytes,
        shortfall_bytes=max(0, short.shortfall_bytes),
    )


def _shortest(facts: ModelFacts, place: _Place, contexts: Iterable[int]) -> _Shortfall:
    """The least that is missing over several contexts."""
    n_gpu_layers = facts.n_layer + 1 if place.placement == "gpu" else 0
    return min(
        (_shortfall(facts, place, n_ctx, n_gpu_layers) for n_ctx in contexts), key=lambda one: one.shortfall_bytes
    )


def _does_not_fit(
    model_id: str, candidates: Sequence[Candidate], places: list[_Place], limits: Limits
) -> DoesNotFitError:
    place = places[-1] if limits.device != "gpu" else places[0]
    tried: dict[str, list[int]] = {}
    for candidate, n_ctx in _attempts(candidates, place, limits):
        tried.setdefault(candidate.quant, []).append(n_ctx)
    shortest = {one.quant: _shortest(one.facts, place, tried[one.quant]) for one in candidates}
    quant, least = min(shortest.items(), key=lambda pair: (pair[1].shortfall_bytes, -list(shortest).index(pair[0])))
    return DoesNotFitError(
        f"{model_id} does not fit: the smallest quantization, {quant}, is {format_size(least.shortfall_bytes)} "
        f"too much for {least.where}, where {format_size(least.available_bytes)} are free for it. "
        "Close other programs, or take a smaller model: gguf-embed models.",
        required_bytes=least.required_bytes,
        available_bytes=least.available_bytes,
        rejected=tuple(
            Rejection(
                quant=name,
                reason=f"{format_size(short.shortfall_bytes)} too much for {short.where}",
                is_better=False,
                required_bytes=short.required_bytes,
                shortfall_bytes=short.shortfall_bytes,
            )
            for name, short in shortest.items()
        ),
    )
