"""Chooses the quantization, the device and the context for one machine, and says why the others lost.

Pure: the same inputs give the same plan. It must not know the network, files on disk or llama.cpp.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gguf_embed.errors import DoesNotFitError
from gguf_embed.fit.hardware import Hardware
from gguf_embed.fit.layouts import can_quantize_kv, can_split_texts, layouts, whole_blocks
from gguf_embed.fit.memory import Measurements, MemoryCost
from gguf_embed.fit.places import Place, find_places
from gguf_embed.fit.plan import Candidate, Limits, Plan, Rejection
from gguf_embed.models.header import ModelFacts
from gguf_embed.native.layout import Layout
from gguf_embed.sizes import format_size

__all__ = ["Candidate", "Limits", "Plan", "Rejection", "grown", "plan"]

# Tokens packed into one decode on a CPU: of an encoder, whose packed texts all attend to each other for nothing, and of
# what llama.cpp reordered; what it multiplies in tiles gains from more. Source: sessions of each size in turn, 2 cores
# with AVX-512, 2026-11-21 (gguf-embed bench REF --tune does as much), 64/128/256/512 tokens: MiniLM F16 454/607/620/610
# texts a second; 0.6B shape reordered 341/350/418/428 tokens a second with documents, 355/386/439/386 with queries; in
# tiles 455/465/530/534 with documents.
N_BATCH_CPU = 256
_N_CTX_STEP = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One question to the planner."""

    model_id: str
    candidates: Sequence[Candidate]
    hardware: Hardware
    limits: Limits
    stages: list[list[Place]]
    measurements: Measurements


def plan(
    model_id: str,
    candidates: Sequence[Candidate],
    hardware: Hardware,
    limits: Limits | None = None,
    *,
    others: Sequence[Candidate] = (),
    measurements: Measurements | None = None,
    margins: Mapping[str, int] | None = None,
) -> Plan:
    """Choose the best quantization that fits whole in free memory; else part of one, else the CPU.

    Within one placement, more memory never picks a smaller quantization.

    Args:
        model_id: for the plan and its messages.
        candidates: best first, at least one.
        hardware: the machine.
        limits: what the user allows.
        others: weighed for the reader's sake and never chosen.
        measurements: what llama.cpp said of some layouts; the others are reckoned in closed form.
        margins: bytes to leave alone by device name ("host" for the CPU), where a load has failed before.

    Returns:
        The choice, its cost and the reasons.

    Raises:
        ValueError: no candidates, n_ctx above what the model was trained for, a KV type that it cannot have, or no
            such device.
        DoesNotFitError: not even the smallest fits; every candidate's shortfall is in it.
    """
    limits = limits or Limits()
    _check(model_id, candidates, limits)
    case = _Case(
        model_id=model_id,
        candidates=candidates,
        hardware=hardware,
        limits=limits,
        stages=find_places(hardware, limits, margins),
        measurements=measurements or Measurements(),
    )
    for candidate, place, layout in _attempts(case):
        if _shortfall(case, candidate, place, layout).shortfall_bytes <= 0:
            return _with_others(case, _plan(case, candidate, place, layout), others, place)
    raise _does_not_fit(case)


def _check(model_id: str, candidates: Sequence[Candidate], limits: Limits) -> None:
    """Refuse what no machine could do."""
    if not candidates:
        raise ValueError("plan() needs at least one candidate")
    for candidate in candidates:
        if limits.n_ctx is not None and limits.n_ctx > candidate.facts.n_ctx_train:
            raise ValueError(
                f"n_ctx is {limits.n_ctx}; {model_id} takes texts of at most {candidate.facts.n_ctx_train}"
            )
        if limits.kv_type == "q8_0" and not can_quantize_kv(candidate.facts):
            raise ValueError(f"kv_type is q8_0; {model_id} keeps no KV cache that can be quantized")
        if limits.skips_head and not can_split_texts(candidate.facts):
            raise ValueError(f"skips_head is True; {model_id} has no head, or needs more than its last token")


def _attempts(case: _Case) -> Iterator[tuple[Candidate, Place, Layout]]:
    """What to try, in order: by stage, by quantization, by place, by layout; the smallest again at the floor.

    Only the smallest may go below the working context, or more memory could come to pick a smaller quantization.
    """
    smallest = min(case.candidates, key=lambda one: one.facts.weights_bytes)
    for stage in case.stages:
        # Part of a model is for what fits nowhere whole, so the smallest: the most layers on the device.
        for candidate in [smallest] if stage[0].placement == "partial" else case.candidates:
            for place in stage:
                for layout in layouts(candidate.facts, place, case.limits):
                    yield candidate, place, layout
        for place in stage:
            for layout in layouts(smallest.facts, place, case.limits, at_floor=True):
                yield smallest, place, layout


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shortfall:
    """What a model needs in the memory that is shortest for it."""

    where: str
    required_bytes: int
    available_bytes: int

    @property
    def shortfall_bytes(self) -> int:
        return self.required_bytes - self.available_bytes


def _shortfall(case: _Case, candidate: Candidate, place: Place, layout: Layout) -> _Shortfall:
    """Where most is missing, and how much; zero or less where the layout fits."""
    cost = case.measurements.cost(candidate.quant, candidate.facts, layout)
    if place.is_unified or not place.accelerators:
        required = _required_bytes(cost, place, candidate.facts)
        return _Shortfall(where=place.name, required_bytes=required, available_bytes=place.budget_bytes)
    on_devices = [
        _Shortfall(where=device.name, required_bytes=usage.total_bytes, available_bytes=budget)
        for device, usage, budget in zip(place.accelerators, cost.devices, place.budgets, strict=True)
    ]
    together = _Shortfall(where=place.name, required_bytes=cost.device_bytes, available_bytes=place.budget_bytes)
    host = _Shortfall(where="host memory", required_bytes=cost.host_bytes, available_bytes=place.host_budget_bytes)
    return max(*on_devices, together, host, key=lambda one: one.shortfall_bytes)


def _required_bytes(cost: MemoryCost, place: Place, facts: ModelFacts) -> int:
    """What counts against a budget; in unified memory the mapped file counts once."""
    if place.is_unified:
        weights = cost.host.weights_bytes + sum(usage.weights_bytes for usage in cost.devices)
        return cost.total_bytes - weights + facts.weights_bytes
    return cost.device_bytes if place.accelerators else cost.host_bytes


def _longest_n_ctx(case: _Case, candidate: Candidate, place: Place, layout: Layout) -> int:
    """The longest text that fits beside the weights, in whole steps; at least the layout's context, if the model's."""
    high = candidate.facts.n_ctx_train
    low = min(layout.n_ctx, high)
    while low < high:
        middle = min(high, -(-(low + high + 1) // 2 // _N_CTX_STEP) * _N_CTX_STEP)
        if middle <= low:
            return low
        if _shortfall(case, candidate, place, grown(layout, candidate.facts, middle)).shortfall_bytes <= 0:
            low = middle
        else:
            high = middle - _N_CTX_STEP
    return low


def grown(layout: Layout, facts: ModelFacts, n_ctx: int) -> Layout:
    """Return the layout of a context that holds a text of n_ctx tokens; an encoder decodes it all at once."""
    n_ctx = max(layout.n_ctx, whole_blocks(n_ctx))
    n_ubatch = layout.n_ubatch if can_split_texts(facts) else n_ctx
    n_contexts = layout.n_contexts if n_ctx == layout.n_ctx else 1  # the others are given up when the first one grows
    return dataclasses.replace(layout, n_ctx=n_ctx, n_ubatch=n_ubatch, n_contexts=n_contexts)


def _plan(case: _Case, chosen: Candidate, place: Place, layout: Layout) -> Plan:
    facts, on_cpu = chosen.facts, not place.accelerators
    n_batch = layout.n_ubatch
    if on_cpu and (layout.use_extra_bufts or not facts.is_causal):
        n_batch = max(min(layout.n_ubatch, N_BATCH_CPU), layout.n_seq_max)
    cost = case.measurements.cost(chosen.quant, facts, layout)
    required = _required_bytes(cost, place, facts)
    described = ", ".join(one.description for one in place.accelerators)
    return Plan(
        model_id=case.model_id,
        quant=chosen.quant,
        facts=facts,
        placement=place.placement,
        device_description=described or case.hardware.processor or case.hardware.description,
        is_unified=place.is_unified,
        layout=layout,
        n_ctx_max=case.limits.n_ctx or _longest_n_ctx(case, chosen, place, layout),
        n_batch=n_batch,
        n_threads=case.limits.n_threads or case.hardware.n_cores,
        cost=cost,
        required_bytes=required,
        available_bytes=place.budget_bytes,
        free_bytes=place.free_bytes,
        margin_bytes=max(0, place.free_bytes - place.budget_bytes),
        must_skip_head=bool(case.limits.skips_head),
        rejected=tuple(_rejections(case, chosen, place)),
        reason=_reason(case, facts, place, layout, required),
    )


def _with_others(case: _Case, plan: Plan, others: Sequence[Candidate], place: Place) -> Plan:
    fits = "fits, but is taken only by name or with --prefer quality"
    weighed = (_rejection(case, one, [place], fits=fits, is_better=False) for one in others)
    return dataclasses.replace(plan, rejected=(*plan.rejected, *weighed))


def _reason(case: _Case, facts: ModelFacts, place: Place, layout: Layout, required: int) -> str:
    fits = f"{format_size(required)} of {format_size(place.budget_bytes)}"
    if place.placement == "partial":
        n_layers = layout.n_gpu_layers - 1
        return f"none fits whole on {place.name}; {n_layers} of {facts.n_layer} layers go there: {fits}"
    if place.accelerators:
        off = ", the vocabulary projection kept in host memory" if layout.is_output_on_host else ""
        return f"the best that fits whole on {place.name}{off}: {fits}"
    passed_over = case.stages[0][0]
    too_little = "" if passed_over == place else f"too little is free on {passed_over.name}; "
    return f"{too_little}the best that fits in host memory: {fits}"


def _rejections(case: _Case, chosen: Candidate, place: Place) -> Iterator[Rejection]:
    """Why each other candidate lost; where part of the chosen one is on a device, why none is whole there."""
    judged = case.stages[0] if place.placement == "partial" else [place]
    position = case.candidates.index(chosen)
    for index, candidate in enumerate(case.candidates):
        if candidate is not chosen:
            fits = f"fits, but {chosen.quant} comes first"
            yield _rejection(case, candidate, judged, fits=fits, is_better=index < position)


def _rejection(case: _Case, candidate: Candidate, places: Iterable[Place], *, fits: str, is_better: bool) -> Rejection:
    short = _shortest(case, candidate, places)
    return Rejection(
        quant=candidate.quant,
        reason=fits if short.shortfall_bytes <= 0 else _too_much(short),
        is_better=is_better,
        required_bytes=short.required_bytes,
        shortfall_bytes=max(0, short.shortfall_bytes),
    )


def _too_much(short: _Shortfall) -> str:
    return f"{format_size(short.shortfall_bytes)} too much for {short.where}"


def _shortest(case: _Case, candidate: Candidate, places: Iterable[Place], *, at_floor: bool = False) -> _Shortfall:
    """The first way of trying these places that fits, else the one that misses least."""
    tried = [
        _shortfall(case, candidate, place, layout)
        for place in places
        for floor in ((False, True) if at_floor else (False,))
        for layout in layouts(candidate.facts, place, case.limits, at_floor=floor)
    ]
    fitting = (one for one in tried if one.shortfall_bytes <= 0)
    return next(fitting, min(tried, key=lambda one: one.shortfall_bytes))


def _does_not_fit(case: _Case) -> DoesNotFitError:
    places = case.stages[-1]
    smallest = min(case.candidates, key=lambda one: one.facts.weights_bytes)
    shortest = {one.quant: _shortest(case, one, places, at_floor=one is smallest) for one in case.candidates}
    quant, least = min(shortest.items(), key=lambda pair: (pair[1].shortfall_bytes, -list(shortest).index(pair[0])))
    return DoesNotFitError(
        f"{case.model_id} does not fit: the smallest quantization, {quant}, is {format_size(least.shortfall_bytes)} "
        f"too much for {least.where}, where {format_size(least.available_bytes)} are free for it. "
        "Close other programs, or take a smaller model: gguf-embed models.",
        required_bytes=least.required_bytes,
        available_bytes=least.available_bytes,
        rejected=tuple(
            Rejection(
                quant=name,
                reason=_too_much(short),
                is_better=False,
                required_bytes=short.required_bytes,
                shortfall_bytes=short.shortfall_bytes,
            )
            for name, short in shortest.items()
        ),
    )
