"""One comparison from its start to its figures: which systems, which texts, who is as fast as whom.

It must not know the command line or how figures are shown.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from gguf_embed.bench.measuring import Speed, Timing, measure, speeds
from gguf_embed.bench.peers import server_arguments
from gguf_embed.bench.question import Question
from gguf_embed.bench.systems import System
from gguf_embed.bench.workload import INSTRUCTION, Task, cut, make_round
from gguf_embed.errors import BackendError
from gguf_embed.fit import hardware
from gguf_embed.fit.hardware import Hardware

__all__ = ["OURS", "Comparison", "SystemFacts", "compare"]

logger = logging.getLogger(__name__)

OURS = "gguf-embed"
_PACKAGES = ("llama-cpp-python", "numpy")
_MAX_CUTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemFacts:
    """One system that was measured.

    Attributes:
        name: as in the speeds.
        version: its own word.
        load_s: seconds from its start until it was ready.
        peak_bytes: the most host memory it held.
        facts: what else it says of itself; of ours, the plan that it ran by.
    """

    name: str
    version: str
    load_s: float
    peak_bytes: int
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What came out.

    Attributes:
        model_id: of the model.
        quant: of its file.
        machine: where.
        versions: of packages and Python.
        systems: that were measured, ours first.
        tasks: one round of them, for what was embedded.
        speeds: by workload and system.
        timings: everything that was measured.
        not_measured: peers that were asked for, and why they were not measured.
    """

    model_id: str
    quant: str
    machine: Hardware
    versions: Mapping[str, str]
    systems: tuple[SystemFacts, ...]
    tasks: tuple[Task, ...]
    speeds: tuple[Speed, ...]
    timings: tuple[Timing, ...]
    not_measured: Mapping[str, str]


def compare(question: Question, *, on_step: Callable[[str], None]) -> Comparison:
    """Start every system, measure them side by side, and end them.

    Args:
        question: what and how.
        on_step: told in words what comes next.

    Raises:
        BackendError: gguf-embed itself cannot run the model, or died.
    """
    machine = hardware.probe()  # while nothing is loaded
    with contextlib.ExitStack() as stack:
        on_step(f"starting {OURS}")
        ours = stack.enter_context(System(OURS, _our_settings(question)))
        rounds, n_tokens_max = _make_rounds(question, ours)
        peers, not_measured = [], _missing(question)
        for name, settings in _peers(question, ours.facts, n_tokens_max):
            if settings["system"] in not_measured:
                continue
            on_step(f"starting {name}")
            try:
                peers.append(stack.enter_context(System(name, settings)))
            except BackendError as error:
                not_measured[name] = str(error)
                logger.warning("%s", error)
        measurement = measure([ours, *peers], rounds, on_step=on_step)
        not_measured |= measurement.lost
        alive = [system for system in (ours, *peers) if system.name in measurement.systems]
        for system in alive:
            system.stop()
    return Comparison(
        model_id=ours.facts["model_id"],
        quant=ours.facts["quant"],
        machine=machine,
        versions={name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        systems=tuple(_facts_of(system) for system in alive),
        tasks=rounds[-1],
        speeds=speeds(measurement),
        timings=measurement.timings,
        not_measured=not_measured,
    )


def _our_settings(question: Question) -> dict[str, Any]:
    limits = dataclasses.asdict(question.limits)
    return {"system": OURS, "model": question.model, "limits": limits, "prefer": question.prefer}


def _make_rounds(question: Question, ours: System) -> tuple[list[tuple[Task, ...]], int]:
    """Make the tasks of all rounds, cut to what the model takes, with their tokens; and the longest text's."""
    facts = ours.facts
    query_prompt = facts["query_prompt"] or (INSTRUCTION if facts["pooling_type"] == "last" else "")
    rounds, longest = [], 0
    for number in range(question.n_rounds + 1):
        made = make_round(
            question.workloads,
            n_texts=question.n_texts,
            number=number,
            query_prompt=query_prompt,
            document_prompt=facts["document_prompt"],
        )
        tasks = []
        for task in made:
            fitting, n_tokens = _fit(task, ours)
            tasks.append(dataclasses.replace(fitting, n_tokens=sum(n_tokens)))
            longest = max(longest, *n_tokens)
        rounds.append(tuple(tasks))
    return rounds, longest


def _fit(task: Task, ours: System) -> tuple[Task, list[int]]:
    """Cut texts that are too long, and count the tokens of each."""
    for _ in range(_MAX_CUTS):
        n_tokens = ours.count(task.whole_texts)
        if max(n_tokens) <= ours.facts["max_tokens"]:
            break
        task = cut(task, n_tokens, max_tokens=ours.facts["max_tokens"])
    return task, n_tokens


def _missing(question: Question) -> dict[str, str]:
    """Say which peers cannot be started at all."""
    missing = {}
    if "llama-server" in question.against and question.llama_server is None:
        missing["llama-server"] = "llama-server: not found on PATH; name it with --llama-server"
    if "sentence-transformers" in question.against and question.sentence_transformers_model is None:
        missing["sentence-transformers"] = (
            "sentence-transformers: no model of it is known to compare with; name one with "
            "--sentence-transformers-model"
        )
    for words in missing.values():
        logger.warning("%s", words)
    return missing


def _peers(question: Question, facts: Mapping[str, Any], n_tokens_max: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the settings of every system that ours is compared with."""
    if "llama-cpp-python" in question.against:
        n_gpu_layers = {"cpu": 0, "partial": facts["n_gpu_layers"]}.get(facts["placement"], -1)
        file = {"path": facts["path"], "n_threads": facts["n_threads"], "n_gpu_layers": n_gpu_layers}
        yield "llama-cpp-python", file | {"system": "llama-cpp-python", "n_tokens_max": n_tokens_max}
    if "llama-server" in question.against:
        for name, is_tuned in (("llama-server", False), ("llama-server, tuned", True)):
            arguments = server_arguments(
                facts, n_tokens_max=n_tokens_max, is_tuned=is_tuned, own=question.llama_server_args
            )
            yield name, {"system": "llama-server", "program": str(question.llama_server), "arguments": arguments}
    if "sentence-transformers" in question.against:
        device = "cpu" if facts["placement"] == "cpu" else None
        model = {"model": question.sentence_transformers_model, "n_threads": facts["n_threads"], "device": device}
        yield "sentence-transformers", model | {"system": "sentence-transformers"}


def _facts_of(system: System) -> SystemFacts:
    return SystemFacts(
        name=system.name,
        version=system.version,
        load_s=system.load_s,
        peak_bytes=system.peak_bytes,
        facts=system.facts,
    )
