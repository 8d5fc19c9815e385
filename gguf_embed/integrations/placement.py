"""What one Ray actor asks for and is told: of a plan, of the machine it was made on, and of what Ray counts there.

Pure. It must not know Ray's own functions, how a plan is made, or texts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gguf_embed.errors import DoesNotFitError
from gguf_embed.fit.hardware import Hardware
from gguf_embed.fit.places import MARGIN_DEVICE, MARGIN_HOST
from gguf_embed.fit.plan import Limits, Plan
from gguf_embed.sizes import format_size

__all__ = ["Placement", "count_actors", "place_actors", "share_threads"]

# ggml's backends whose devices Ray counts as GPU and hands out by CUDA_VISIBLE_DEVICES and the like.
_BACKENDS_OF_RAY = ("CUDA", "ROCm", "SYCL")
# Ray counts in ten-thousandths. Source: src/ray/common/scheduling/fixed_point.h, kResourceUnitScaling.
_UNITS = 10_000
# What a model that is whole on a GPU leaves to the processor: tokenizing, looking tokens up. Reasoned, not measured.
_N_THREADS_ON_GPU = 2
# Ray and pyarrow in the process of an actor, beside what the plan counts, with a batch of texts and vectors.
_WORKER_BYTES = 192 << 20  # 192 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What one actor asks Ray for, and what it is told of it.

    Attributes:
        n_cpus: Ray's CPUs, less than threads where a machine has no more for all its actors.
        n_gpus: 0, a share of one, or whole ones.
        memory_bytes: host memory.
        n_per_place: actors on one GPU, or on one machine without.
        limits: for the actor's own plan: it is to come out as this one did, wherever the actor runs.
    """

    n_cpus: float
    n_gpus: float
    memory_bytes: int
    n_per_place: int
    limits: Limits


def share_threads(limits: Limits, hardware: Hardware, n_per_place: int | None) -> Limits:
    """Give each of several actors on one machine its share of the cores, unless told otherwise."""
    if limits.n_threads is not None or n_per_place is None or n_per_place == 1:
        return limits
    return dataclasses.replace(limits, n_threads=max(1, hardware.n_cores // n_per_place))


def place_actors(
    plan: Plan, hardware: Hardware, limits: Limits, resources: Mapping[str, float], *, n_per_place: int | None = None
) -> Placement:
    """Say what an actor asks for that runs a model as it was planned.

    Args:
        plan: of one actor.
        hardware: the machine that it was made on.
        limits: that it was made within.
        resources: what Ray counts on that machine, "CPU", "GPU", "memory", less what actors are not to have.
        n_per_place: actors wanted on one GPU, or on one machine without; None for one on a GPU, and for as many on a
            CPU as it has cores and memory for.

    Raises:
        DoesNotFitError: so many do not fit.
    """
    is_on_gpu = plan.placement != "cpu" and all(one.startswith(_BACKENDS_OF_RAY) for one in plan.layout.devices)
    told_bytes = limits.memory_bytes or _with_slack(plan.required_bytes)
    is_on_host = plan.placement == "cpu" or plan.is_unified
    host_bytes = (told_bytes if is_on_host else _with_slack(plan.cost.host_bytes)) + _WORKER_BYTES
    n_fitting = _n_fitting(plan, hardware, told_bytes, host_bytes)
    n_threads, n_here = plan.n_threads, n_per_place or 1
    if plan.placement in ("gpu", "split"):
        n_threads = limits.n_threads or min(_N_THREADS_ON_GPU, plan.n_threads)
    elif plan.placement == "cpu" and n_per_place is None:
        n_here = max(1, min(hardware.n_cores // n_threads, n_fitting))
    if n_here > max(1, n_fitting):
        raise _too_many(plan, n_here, n_fitting, told_bytes)
    n_gpus = _n_gpus(len(plan.layout.devices), n_here) if is_on_gpu else 0.0
    n_on_machine = max(1, _times(resources.get("GPU", 0), n_gpus)) if is_on_gpu else n_here
    return Placement(
        n_cpus=_n_cpus(n_threads, n_on_machine, resources.get("CPU", 0), hardware.n_cores),
        n_gpus=n_gpus,
        memory_bytes=host_bytes,
        n_per_place=n_here,
        limits=dataclasses.replace(
            limits,
            memory_bytes=told_bytes,
            device="cpu" if plan.placement == "cpu" else "gpu" if is_on_gpu else limits.device,
            n_ctx=limits.n_ctx or min(plan.layout.n_ctx, plan.facts.n_ctx_train),
            n_threads=n_threads,
            kv_type=plan.layout.kv_type,
        ),
    )


def count_actors(nodes: Iterable[Mapping[str, float]], placement: Placement) -> int:
    """Count the actors that machines of these resources hold."""
    return sum(_n_on(resources, placement) for resources in nodes)


def _n_on(resources: Mapping[str, float], placement: Placement) -> int:
    asked = {"memory": placement.memory_bytes, "GPU": placement.n_gpus, "CPU": placement.n_cpus}
    found = [_times(resources.get(name, 0), one) for name, one in asked.items() if one]
    return min(found if placement.n_gpus or placement.n_cpus else [*found, placement.n_per_place])


def _times(whole: float, part: float) -> int:
    """How often a part goes into a whole, as Ray counts."""
    return round(whole * _UNITS) // round(part * _UNITS)


def _n_cpus(n_threads: int, n_on_machine: int, n_cpus: float, n_cores: int) -> float:
    """Ray's CPUs for these threads: Ray counts hyperthreads where a plan counts cores."""
    share = min(n_threads * max(1.0, n_cpus / n_cores), n_cpus / n_on_machine)
    return math.floor(share * 100) / 100


def _n_gpus(n_devices: int, n_here: int) -> float:
    """All devices of a model, or so much of one that n_here actors go on it and not one more."""
    return float(n_devices) if n_devices > 1 else _UNITS // n_here / _UNITS


def _n_fitting(plan: Plan, hardware: Hardware, told_bytes: int, host_bytes: int) -> int:
    """How many such models fit side by side, on one device or in host memory."""
    n_in_host = max(0, hardware.ram_available_bytes - MARGIN_HOST) // host_bytes
    free = [one.free_bytes for one in hardware.accelerators if one.name in plan.layout.devices]
    return min([n_in_host, *(one // (told_bytes + MARGIN_DEVICE) for one in free)])


def _with_slack(size_bytes: int) -> int:
    """An eighth more, in whole MiB: another machine's buffers may be a little larger."""
    return -(-size_bytes * 9 // 8 >> 20) + 1 << 20


def _too_many(plan: Plan, n_here: int, n_fitting: int, told_bytes: int) -> DoesNotFitError:
    where = plan.device or "the machine"
    return DoesNotFitError(
        f"{n_here} actors of {plan.model_id} do not fit on {where} at {format_size(told_bytes)} each, of which "
        f"{format_size(plan.free_bytes)} are free; {max(1, n_fitting)} would. Take fewer with n_actors, or less memory "
        "for each: a smaller quantization, or n_ctx in limits.",
        required_bytes=n_here * told_bytes,
        available_bytes=plan.free_bytes,
    )
