"""Selection: which file a reference came to, where it runs and with which pooling and EOS, decided before it loads.

It joins catalog and planner; it must not know texts or vectors.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gguf_embed.engine.settings import SessionSettings
from gguf_embed.errors import DoesNotFitError, UnsupportedModelError
from gguf_embed.fingerprints import TOKEN_RULE, Recipe, recipe_of, sha256_of
from gguf_embed.fit import hardware, planner
from gguf_embed.fit.dryrun import DryRun
from gguf_embed.fit.margins import load_margins
from gguf_embed.fit.memory import BufferSizes, Measurements
from gguf_embed.fit.planner import Limits, Plan
from gguf_embed.fit.tuning import Tuning, load_tuning
from gguf_embed.models.catalog import Catalog
from gguf_embed.models.facts import Header, find_donor, find_facts
from gguf_embed.models.header import ModelFacts, check_embeddable, load_facts
from gguf_embed.models.made import missing_offers
from gguf_embed.models.sources import Resolved, Source
from gguf_embed.models.specs import ModelSpec

__all__ = [
    "Overrides", "Selection", "check_on_disk", "choose_source", "recipe", "row_identity", "select",
    "session_settings",
]  # fmt: skip

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What the caller knows better than a file's header; None leaves it to the registry, then to the header."""

    pooling_type: str | None = None
    add_eos: bool | None = None

    def __post_init__(self) -> None:
        if self.pooling_type not in (None, "last", "mean", "cls"):
            raise ValueError(f"pooling_type is {self.pooling_type!r}; it is last, mean or cls")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """One reference, decided.

    Attributes:
        resolved: what the reference could mean.
        source: the chosen file.
        plan: where and how it runs.
        add_eos: what llama.cpp is told about EOS, None where the header speaks for itself.
    """

    resolved: Resolved
    source: Source
    plan: Plan
    add_eos: bool | None

    @property
    def pooling_type(self) -> str:
        """How token vectors become one: "last", "mean" or "cls"."""
        return self.plan.facts.pooling_type or ""

    @property
    def offers(self) -> tuple[tuple[str, str], ...]:
        """What is commonly wanted of this model and in no source: quantization and how it could be made here."""
        return missing_offers(self.resolved.spec) if self.resolved.spec is not None else ()


def select(
    catalog: Catalog,
    resolved: Resolved,
    *,
    limits: Limits,
    overrides: Overrides,
    machine: hardware.Hardware | None = None,
    here: hardware.Hardware | None = None,
    margins: Mapping[str, int] | None = None,
) -> Selection:
    """Weigh the quantizations that a reference came to and choose one.

    On this machine a header is read, llama.cpp says how large its buffers would be, and what was measured to be faster
    here is taken; for another one all of it comes from what is known already, in closed form.

    Args:
        catalog: where `resolved` comes from.
        resolved: what the reference could mean.
        limits: what the plan may use.
        overrides: what the caller knows better.
        machine: plan for another machine than this one.
        here: this machine, as it was probed before; None probes it now.
        margins: bytes to leave alone by device; None takes what this machine has taught before.

    Raises:
        HubError: a header or a listing that is needed cannot be fetched.
        ModelLoadError: a file cannot be embedded with.
        DoesNotFitError: nothing fits.
    """
    donor = find_donor(catalog, resolved) if machine is None or not _is_known(resolved) else None
    candidates = [_candidate(catalog, resolved, source, overrides, donor) for source in resolved.sources]
    others = [_candidate(catalog, resolved, source, overrides, donor) for source in resolved.others]
    here = machine or here or hardware.probe()
    if machine is None and margins is None:
        margins = load_margins(catalog.config.state_dir, here)
    question = partial(planner.plan, resolved.model_id, candidates, here, limits, others=others, margins=margins)
    try:
        plan = _plan(catalog, question, donor if machine is None else None, here)
    except DoesNotFitError as error:
        raise _with_offers(error, resolved) from error.__cause__
    if machine is None:
        plan = _tuned(plan, load_tuning(catalog.config.state_dir, here, plan.facts, plan.placement), limits)
    chosen = next(index for index, candidate in enumerate(candidates) if candidate.quant == plan.quant)
    return Selection(
        resolved=resolved,
        source=resolved.sources[chosen],
        plan=plan,
        add_eos=_eos_override(plan.facts, resolved.spec, overrides),
    )


def _plan(catalog: Catalog, question: Callable[..., Plan], donor: Header | None, here: hardware.Hardware) -> Plan:
    """Plan by llama.cpp's own figures where it can be asked, in closed form elsewhere."""
    if donor is None or donor.path is None:
        return question()
    dry_run = DryRun(cache_dir=catalog.config.cache_dir / "dry-runs", devices=here.fingerprint)
    name = Path(donor.source.name).name
    return _measured(question, partial(dry_run.measure, donor.path, name=name), donor.facts)


def _tuned(plan: Plan, tuning: Tuning, limits: Limits) -> Plan:
    """Take what `bench --tune` found to be faster here, within the layout's bounds; the user's own word comes first."""
    n_batch = tuning.n_batch or plan.n_batch
    n_threads = tuning.n_threads if limits.n_threads is None else None
    return dataclasses.replace(
        plan,
        n_batch=min(max(n_batch, plan.layout.n_seq_max), plan.layout.n_ubatch),
        n_threads=n_threads or plan.n_threads,
    )


def _with_offers(error: DoesNotFitError, resolved: Resolved) -> DoesNotFitError:
    """Add what could be made smaller here to what does not fit."""
    offers = missing_offers(resolved.spec) if resolved.spec is not None else ()
    if not offers:
        return error
    quant, offered = offers[-1]  # the smallest
    return error.adding(f"{quant} is in no source; {offered}.")


def _is_known(resolved: Resolved) -> bool:
    """Whether the registry alone can say what every quantization needs."""
    return resolved.spec is not None and resolved.spec.shape is not None


def _measured(
    question: Callable[..., Plan], measure: Callable[..., list[BufferSizes | None]], donor: ModelFacts
) -> Plan:
    """Plan, ask llama.cpp about the layouts of the plan, and plan again until it has spoken about all of them."""
    measurements = Measurements()
    while True:
        plan = question(measurements=measurements)
        facts = plan.facts
        wanted = {plan.layout: None, planner.grown(plan.layout, facts, plan.n_ctx_max): None}
        missing = [layout for layout in wanted if (plan.quant, layout) not in measurements]
        if not missing:
            return plan
        asked = dataclasses.replace(donor, pooling_type=facts.pooling_type)  # the graph is the same for all quants
        for layout, sizes in zip(missing, measure(asked, missing), strict=True):
            if sizes is None:
                return plan
            measurements = measurements.with_point(plan.quant, layout, sizes)


def _candidate(
    catalog: Catalog, resolved: Resolved, source: Source, overrides: Overrides, donor: Header | None
) -> planner.Candidate:
    facts = find_facts(catalog, resolved, source, donor=donor)
    pooling = _pooling(facts, Path(source.name), resolved.spec, overrides)
    return planner.Candidate(
        quant=source.quant or facts.quant or "unknown", facts=dataclasses.replace(facts, pooling_type=pooling)
    )


def choose_source(catalog: Catalog, resolved: Resolved, *, limits: Limits, overrides: Overrides) -> Source:
    """Choose the file to fetch; one that the reference names needs not fit this machine, only be of use.

    Raises:
        GGUFEmbedError: as `select`.
    """
    if resolved.reference.quant is None and resolved.reference.file is None:
        return select(catalog, resolved, limits=limits, overrides=overrides).source
    source = resolved.sources[0]
    facts = find_facts(catalog, resolved, source, donor=find_donor(catalog, resolved))
    _pooling(facts, Path(source.name), resolved.spec, overrides)
    return source


def check_on_disk(selection: Selection, path: Path, *, overrides: Overrides) -> Selection:
    """Look at the file that was really fetched, and say where its header is overridden.

    Returns:
        The selection with the file's own facts in its plan, where the registry's stood before.

    Raises:
        ModelLoadError: it cannot be embedded with.
    """
    facts, spec = load_facts(path), selection.resolved.spec
    pooling = _pooling(facts, path, spec, overrides)
    add_eos = _eos_override(facts, spec, overrides)
    whose = "as told" if spec is None else f"as the registry has it for {spec.model_id}"
    if facts.pooling_type != pooling:
        by = "as told" if overrides.pooling_type is not None else whose
        logger.warning("%s: pooling is %s in the file; using %s, %s", path.name, facts.pooling_type, pooling, by)
    if add_eos is not None:
        by = "as told" if overrides.add_eos is not None else whose
        logger.warning("%s: add_eos_token is %s in the file; using %s, %s", path.name, facts.add_eos, add_eos, by)
    known = dataclasses.replace(facts, pooling_type=pooling, n_ctx_train=selection.plan.facts.n_ctx_train)
    return dataclasses.replace(selection, plan=dataclasses.replace(selection.plan, facts=known), add_eos=add_eos)


def session_settings(selection: Selection, path: Path) -> SessionSettings:
    """Tell the engine, which knows no plans, how to run the chosen file."""
    plan = selection.plan
    return SessionSettings(
        path=path,
        pooling_type=selection.pooling_type,
        add_eos=selection.add_eos,
        layout=plan.layout,
        n_ctx_max=plan.n_ctx_max,
        n_batch=plan.n_batch,
        n_threads=plan.n_threads,
        must_skip_head=plan.must_skip_head,
    )


def recipe(selection: Selection, path: Path, *, dim: int, normalize: bool = True, prompt: str | None = None) -> Recipe:
    """Say what moves vectors of `dim` components that a file gives as it is used here; as `recipe_of` otherwise."""
    spec = selection.resolved.spec
    return recipe_of(
        path,
        spec=spec,
        dim=dim,
        normalize=normalize,
        prompt=prompt,
        kv_type=selection.plan.layout.kv_type,
        pooling_type=selection.pooling_type,
        add_eos=selection.add_eos,
    )


def row_identity(selection: Selection, path: Path, *, overrides: Overrides) -> str:
    """Tell apart what gives other raw rows for the same tokens, before anything is loaded.

    Args:
        selection: how the file is used.
        path: the file; read once where its checksum is not known from the cache.
        overrides: what the caller knows better than the file.

    Returns:
        A text that is equal only where file, pooling, EOS, KV type and this program's rules for tokens are.
    """
    spec = selection.resolved.spec
    wanted = overrides.add_eos if overrides.add_eos is not None else spec.add_eos if spec is not None else None
    return f"{sha256_of(path)} {selection.pooling_type} {wanted} {selection.plan.layout.kv_type} {TOKEN_RULE}"


def _pooling(facts: ModelFacts, path: Path, spec: ModelSpec | None, overrides: Overrides) -> str:
    if spec is not None and (facts.architecture, facts.n_embd) != (spec.arch, spec.n_embd):
        raise UnsupportedModelError(
            f"{path.name} goes by the name of {spec.model_id} and is another model: {facts.architecture} with "
            f"{facts.n_embd} components, not {spec.arch} with {spec.n_embd}. Rename it, or give it an entry in "
            "your models.toml.",
            path=path,
        )
    known = spec.pooling_type if spec is not None else None
    return check_embeddable(facts, path, pooling_type=overrides.pooling_type or known)


def _eos_override(facts: ModelFacts, spec: ModelSpec | None, overrides: Overrides) -> bool | None:
    wanted = overrides.add_eos if overrides.add_eos is not None else spec.add_eos if spec is not None else None
    return None if wanted == facts.add_eos else wanted
