"""Loads what was planned, and steps down where memory is refused after all: once, aloud, and remembered.

It joins selection and engine; it must not know texts or vectors.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from gguf_embed import selfcheck
from gguf_embed.engine.session import Session
from gguf_embed.errors import AllocationError, DoesNotFitError
from gguf_embed.fit import hardware
from gguf_embed.fit.hardware import Hardware
from gguf_embed.fit.margins import load_margins, remember_margin
from gguf_embed.fit.planner import Limits, Plan
from gguf_embed.models.catalog import Catalog
from gguf_embed.native.buffers import Buffer
from gguf_embed.native.reserve import can_reserve
from gguf_embed.selection import Overrides, Selection, check_on_disk, select, session_settings
from gguf_embed.sizes import format_size

__all__ = ["load_session"]

logger = logging.getLogger(__name__)

# How far what llama.cpp allocates may be from the plan before that is worth a word. DESIGN, section 8.
_TOLERANCE_BYTES = 64 << 20
_TOLERANCE = 0.03
_REFUSED = "It looked as if it would fit, and the memory was refused when it was loaded."


def load_session(
    catalog: Catalog, selection: Selection, path: Path, *, limits: Limits, overrides: Overrides
) -> tuple[Selection, Session]:
    """Load the chosen file as planned, or as much less as the memory allows that llama.cpp really gets.

    Args:
        catalog: where the selection comes from.
        selection: as chosen.
        path: of its file.
        limits: what the plan may use.
        overrides: what the caller knows better than the file.

    Returns:
        What runs, with the plan that it runs by.

    Raises:
        DoesNotFitError: nothing on this disk can be loaded, down to the smallest context on the CPU.
        ModelLoadError: the file cannot be embedded with.
    """
    machine = hardware.probe()
    margins = dict(load_margins(catalog.config.state_dir, machine))
    again = partial(_choose_again, catalog, overrides=overrides, machine=machine, margins=margins)
    if not selection.plan.facts.is_exact:  # sizes were a listing's; now the file itself can be asked
        selection = again(selection, path, limits=limits)
        path = selection.source.path or path
    if (known := _recalled(limits, selection, path, catalog.config.state_dir, machine)) != limits:
        limits = known
        selection = again(selection, path, limits=limits)
    first = selection = check_on_disk(selection, path, overrides=overrides)
    while True:
        try:
            session = _open(selection, path)
        except AllocationError as error:
            _leave_alone(margins, selection.plan, machine)
            selection = _smaller(partial(again, selection, path, limits=limits), error)
            path = selection.source.path or path
        else:
            changed = _changed(limits, session, selection.plan, catalog.config.state_dir, machine)
            if changed is None:
                break
            session.close()  # what is done after all takes more memory: a plan of its own
            limits = changed
            first = selection = again(selection, path, limits=limits)
            path = selection.source.path or path
    if selection is not first:
        remember_margin(catalog.config.state_dir, machine, margins)
        _warn(first.plan, selection.plan)
    _compare(selection.plan, session.buffers)
    return selection, session


def _smaller(again: Callable[[], Selection], refused: AllocationError) -> Selection:
    """Choose again after memory was refused."""
    logger.info("%s", refused)
    try:
        return again()
    except DoesNotFitError as nothing_less:
        raise nothing_less.adding(_REFUSED) from refused


def _changed(limits: Limits, session: Session, plan: Plan, state_dir: Path, machine: Hardware) -> Limits | None:
    """Check what was loaded, once for this file on this machine.

    Returns:
        The limits to plan again with, None where it runs as planned: without skipping the head, or without flash
        attention, where these give other vectors.

    Raises:
        ModelLoadError: its vectors would be of no use.
    """
    if session.layout.skips_head != plan.layout.skips_head:
        return dataclasses.replace(limits, skips_head=False)
    try:
        key = selfcheck.look_key(session.settings, machine)
        look = selfcheck.recall(state_dir, key)
        if look is None:
            quant = plan.facts.quant or plan.quant
            look = selfcheck.first_look(session, quant=quant, state_dir=state_dir, key=key)
    except BaseException:
        session.close()
        raise
    for words in look.warnings:
        logger.warning("%s", words)
    if look.is_flash_attn_right or session.layout.flash_attn == "off":
        return None
    return _without_flash_attn(limits, plan, session.settings.path)


def _recalled(limits: Limits, selection: Selection, path: Path, state_dir: Path, machine: Hardware) -> Limits:
    """The limits, and what was found when this file was first loaded like this."""
    look = selfcheck.recall(state_dir, selfcheck.look_key(session_settings(selection, path), machine))
    if look is None or look.is_flash_attn_right or not limits.flash_attn:
        return limits
    return _without_flash_attn(limits, selection.plan, path)


def _without_flash_attn(limits: Limits, plan: Plan, path: Path) -> Limits:
    logger.warning(
        "%s: flash attention gives other vectors on %s and is left out, which takes more memory; with a newer "
        "driver or llama-cpp-python it is looked at again",
        path.name,
        " and ".join(_place_of(plan)),
    )
    return dataclasses.replace(limits, flash_attn=False)


def _open(selection: Selection, path: Path) -> Session:
    plan = selection.plan
    host_bytes = plan.cost.host_bytes - plan.cost.host.process_bytes
    if not can_reserve(host_bytes, n_threads=plan.n_threads):
        raise AllocationError(
            f"{path.name}: the system refuses this process {format_size(host_bytes)} of memory", path=path
        )
    return Session(session_settings(selection, path))


def _place_of(plan: Plan) -> tuple[str, ...]:
    return plan.layout.devices or ("host",)


def _leave_alone(margins: dict[str, int], plan: Plan, machine: Hardware) -> None:
    """Raise the margin of the memory that failed so far that this plan is not chosen again."""
    free = {one.name: one.free_bytes for one in machine.accelerators} | {"host": machine.ram_available_bytes}
    used = [usage.total_bytes for usage in plan.cost.devices] if plan.layout.devices else [plan.cost.host_bytes]
    if plan.is_unified:
        used = [plan.required_bytes]
    for name, used_bytes in zip(_place_of(plan), used, strict=True):
        margins[name] = max(margins.get(name, 0), free.get(name, 0) - used_bytes) + 1


def _choose_again(
    catalog: Catalog,
    selection: Selection,
    path: Path,
    *,
    limits: Limits,
    overrides: Overrides,
    machine: Hardware,
    margins: Mapping[str, int],
) -> Selection:
    """Choose among the file at hand and the smaller ones that are on this disk too."""
    sources = selection.resolved.sources
    here = dataclasses.replace(selection.source, path=path)
    smaller = [one for one in sources[sources.index(selection.source) + 1 :] if one.is_on_disk]
    resolved = dataclasses.replace(selection.resolved, sources=(here, *smaller), others=())
    chosen = select(catalog, resolved, limits=limits, overrides=overrides, here=machine, margins=margins)
    known = {one.quant for one in chosen.plan.rejected} | {chosen.plan.quant}
    others = tuple(one for one in selection.plan.rejected if one.quant not in known)
    plan = dataclasses.replace(chosen.plan, rejected=(*chosen.plan.rejected, *others))
    return dataclasses.replace(chosen, plan=plan)


def _warn(before: Plan, after: Plan) -> None:
    logger.warning(
        "memory was refused on %s for %s; running %s instead. Remembered for this machine; forget it with: "
        "gguf-embed doctor --forget",
        " and ".join(_place_of(before)),
        _summary(before),
        _summary(after),
    )


def _summary(plan: Plan) -> str:
    where = " and ".join(_place_of(plan))
    if plan.placement == "partial":
        where = f"{plan.n_layers_on_device} of {plan.facts.n_layer} layers on {where}"
    return (
        f"{plan.quant} on {where} with n_ctx {plan.layout.n_ctx:,}, n_ubatch {plan.layout.n_ubatch} "
        f"({format_size(plan.required_bytes)})"
    )


def _compare(plan: Plan, buffers: Sequence[Buffer]) -> None:
    """Hold what llama.cpp allocated against the plan, and say where it is more."""
    on_devices = 0
    for device, usage in zip(plan.layout.devices, plan.cost.devices, strict=True):
        real_bytes = sum(buffer.size_bytes for buffer in buffers if buffer.is_on(device))
        on_devices += real_bytes
        _say(device, real_bytes, usage.total_bytes)
    if plan.layout.load_mode == "none":  # a map is counted whole and used in part
        real_bytes = sum(buffer.size_bytes for buffer in buffers) - on_devices
        _say("host memory", real_bytes, plan.cost.host_bytes - plan.cost.host.process_bytes)


def _say(where: str, real_bytes: int, planned_bytes: int) -> None:
    is_over = real_bytes - planned_bytes > max(_TOLERANCE_BYTES, _TOLERANCE * planned_bytes)
    logger.log(
        logging.WARNING if is_over else logging.INFO,
        "%s: llama.cpp allocated %s; %s were planned",
        where,
        format_size(real_bytes),
        format_size(planned_bytes),
    )
