"""Asks a Ray cluster, before a job begins: plans and fetches on one machine, for what all actors are made with.

It must not know Datasets or texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gguf_embed.config import load_config
from gguf_embed.embedder import Embedder
from gguf_embed.encoding import EncodeOptions
from gguf_embed.fit import hardware
from gguf_embed.fit.planner import Limits
from gguf_embed.integrations.placement import Placement, count_actors, place_actors, share_threads
from gguf_embed.integrations.shared import missing_host
from gguf_embed.models.catalog import Catalog

__all__ = ["Question", "Survey", "import_ray", "survey_cluster"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to run.

    Attributes:
        model: a model reference.
        options: how texts become vectors.
        limits: of each actor.
        n_actors: in all, None for what fits.
        n_spare_cpus: of each machine, for what reads and writes: a job whose actors take all CPUs waits forever.
    """

    model: str
    options: EncodeOptions
    limits: Limits
    n_actors: int | None
    n_spare_cpus: int = 1

    def __post_init__(self) -> None:
        if self.n_actors is not None and self.n_actors < 1:
            raise ValueError(f"n_actors is {self.n_actors}; it is at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """How actors are made, and what each asks Ray for.

    Attributes:
        told: what an actor is made with: the model with its quantization, limits and fingerprint.
        placement: of one actor.
        n_actors: in all.
    """

    told: dict[str, Any]
    placement: Placement
    n_actors: int


def import_ray() -> Any:
    """Import Ray with its Datasets.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import ray  # noqa: PLC0415 - an extra
        import ray.data  # noqa: PLC0415
    except ImportError as error:
        raise missing_host("ray.data", "ray", error) from error
    return ray


def survey_cluster(question: Question, plan_on: Mapping[str, Any] | None = None) -> Survey:
    """Plan in a task on one machine, and count what all machines hold.

    Args:
        question: what is to run.
        plan_on: Ray's options for that task; None for one GPU where there is any and it is not to be the CPU.

    Raises:
        MissingExtraError: Ray is not installed.
        GGUFEmbedError: the model cannot be had, or does not fit.
    """
    ray = import_ray()
    nodes = _resources(ray, question.n_spare_cpus)
    n_gpus = 0 if question.limits.device == "cpu" else int(sum(one.get("GPU", 0) for one in nodes.values()))
    if plan_on is None:
        plan_on = {"num_gpus": 1} if n_gpus else {"num_cpus": 1}
    n_places = n_gpus or max(1, len(nodes))
    n_per_place = None if question.n_actors is None else math.ceil(question.n_actors / n_places)
    try:
        model, fingerprint, placement = ray.get(ray.remote(**plan_on)(_plan_here).remote(question, n_per_place))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # ours, as it was raised there
    return Survey(
        told={"model": model, "limits": placement.limits, "expect_fingerprint": fingerprint},
        placement=placement,
        n_actors=question.n_actors or max(1, count_actors(nodes.values(), placement)),
    )


def _plan_here(question: Question, n_per_place: int | None) -> tuple[str, str, Placement]:
    """Plan and fetch on the machine where Ray runs this."""
    ray, machine = import_ray(), hardware.probe()
    resources = _resources(ray, question.n_spare_cpus)[ray.get_runtime_context().get_node_id()]
    limits = share_threads(question.limits, machine, n_per_place)
    with Embedder(question.model, limits=limits) as embedder:
        placement = place_actors(embedder.plan, machine, limits, resources, n_per_place=n_per_place)
        return _exact(question.model, embedder.plan.quant), embedder.fingerprint_of(question.options), placement


def _exact(model: str, quant: str) -> str:
    """Name the quantization where the reference leaves it open."""
    reference = Catalog(load_config()).parse(model)
    return model if reference.path or reference.file or reference.quant else f"{model}:{quant}"


def _resources(ray: Any, n_spare_cpus: int) -> dict[str, dict[str, float]]:
    """What Ray counts on each machine that computes, by its id: "CPU" less what is spared, "GPU", "memory"."""
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    return {
        key: one | {"CPU": max(0.0, one["CPU"] - n_spare_cpus)} for key, one in nodes.items() if one.get("CPU", 0) > 0
    }
