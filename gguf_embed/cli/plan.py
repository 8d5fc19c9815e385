"""`plan`: which quantization fits, at what cost, and why the others lost.

It must not know how a plan is made.
"""

from __future__ import annotations

from typing import Any

import click

from gguf_embed.cli.exits import usage_errors
from gguf_embed.cli.options import json_option, limits_of, optional_model_argument, plan_options, verbosity
from gguf_embed.cli.tables import print_facts, print_json, print_table
from gguf_embed.sizes import format_size

__all__ = ["plan_command"]


@click.command("plan")
@optional_model_argument
@click.option(
    "--profile", help="Plan for a known machine instead, such as rtx-3050-4gb, or for 'all'; 'list' shows them."
)
@click.option("--all", "show_all", is_flag=True, help="Weigh every quantization that the model has.")
@plan_options
@json_option
@verbosity
def plan_command(model: str | None, profile: str | None, show_all: bool, as_json: bool, **options: Any) -> None:
    """Show which quantization of MODEL fits here, and why.

    Downloads no weights; a header at most.

    \b
      gguf-embed plan qwen3-embedding-4b
      gguf-embed plan qwen3-embedding-4b --profile rtx-3050-4gb
      gguf-embed plan qwen3-embedding-4b --profile all
    """  # noqa: D301 - click reads the backspace itself
    from gguf_embed.fit.profiles import load_profiles  # noqa: PLC0415 - keeps --help quick

    profiles = load_profiles()
    if profile == "list":
        _print_profiles(profiles, as_json=as_json)
        return
    if profile not in (None, "all", *profiles):
        raise click.UsageError(f"no profile is called {profile!r}; there are {', '.join(profiles)}")
    question = _question(model, options, show_all=show_all)
    if profile == "all":
        _print_all(question, profiles, as_json=as_json)
        return
    selection = question(profiles.get(profile or ""))
    if as_json:
        print_json(_facts(selection))
    else:
        _print(selection, show_all=show_all)


def _print_profiles(profiles: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(dict(profiles))
    else:
        print_table(("profile", "machine"), [(name, machine.description) for name, machine in profiles.items()])


def _question(model: str | None, options: dict[str, Any], *, show_all: bool) -> Any:
    """Resolve the model once; what comes back plans it for a machine, None for this one."""
    from gguf_embed.config import load_config  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.models.catalog import Catalog  # noqa: PLC0415
    from gguf_embed.selection import Overrides, select  # noqa: PLC0415

    limits, config = limits_of(options), load_config()
    catalog = Catalog(config)
    text = config.model if model is None else model
    with usage_errors():
        resolved = catalog.resolve(text, prefer=options["prefer"], with_others=show_all)

    def question(machine: Any) -> Any:
        with usage_errors():
            return select(catalog, resolved, limits=limits, overrides=Overrides(), machine=machine)

    return question


def _facts(selection: Any) -> dict[str, Any]:
    plan, source = selection.plan, selection.source
    layout, cost = plan.layout, plan.cost
    return {
        "model": plan.model_id,
        "quant": plan.quant,
        "file": source.name,
        "is_on_disk": source.is_on_disk,
        "download_bytes": 0 if source.is_on_disk else source.size_bytes,
        "placement": plan.placement,
        "device": plan.device,
        "device_description": plan.device_description,
        "n_layers_on_device": plan.n_layers_on_device,
        "n_layer": plan.facts.n_layer,
        "layout": _slots(layout),
        "n_ctx_max": plan.n_ctx_max,
        "n_batch": plan.n_batch,
        "n_threads": plan.n_threads,
        "required_bytes": plan.required_bytes,
        "available_bytes": plan.available_bytes,
        "free_bytes": plan.free_bytes,
        "margin_bytes": plan.margin_bytes,
        "cost": {
            "devices": [_slots(usage) for usage in cost.devices],
            "host": _slots(cost.host),
            "device_bytes": cost.device_bytes,
            "host_bytes": cost.host_bytes,
            "is_measured": cost.is_measured,
        },
        "reason": plan.reason,
        "offers": dict(selection.offers),
        "rejected": [_slots(rejection) for rejection in plan.rejected],
    }


def _slots(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _print(selection: Any, *, show_all: bool) -> None:
    plan, source = selection.plan, selection.source
    click.echo(f"{plan.model_id} on {plan.device_description}\n")
    lost = {
        is_better: [
            (f"  {one.quant}", format_size(one.required_bytes), one.reason)
            for one in plan.rejected
            if one.is_better == is_better
        ]
        for is_better in (True, False)
    }
    rows = [*lost[True], (f"> {plan.quant}", format_size(plan.required_bytes), plan.reason), *lost[False]]
    print_table(("  quant", "needs", "verdict"), rows, right=[1])
    click.echo()
    size = f"{format_size(source.size_bytes)} to download" if source.size_bytes else "size not known yet"
    if source.origin == "wheel":
        size = "to be made from it"
    if source.is_on_disk:
        size = "on disk"
    print_facts([("file", f"{source.name} ({size})"), ("runs on", _where(plan)), *_parts(plan)])
    if selection.offers and (show_all or plan.placement == "partial"):
        click.echo()
        for quant, words in selection.offers:
            click.echo(f"{quant} is in no source; {words}")


def _where(plan: Any) -> str:
    if plan.placement == "cpu":
        return f"the CPU, {plan.n_threads} threads"
    if plan.placement == "partial":
        return f"{plan.n_layers_on_device} of {plan.facts.n_layer} layers on {plan.device}, the others on the CPU"
    return f"all of it on {plan.device}"


def _parts(plan: Any) -> list[tuple[str, str]]:
    """Bytes by part and memory, then what there is, and how all of it is known."""
    places = [*zip(plan.layout.devices, plan.cost.devices, strict=True), ("", plan.cost.host)]

    def part(*names: str) -> str:
        sizes = [(where, sum(getattr(usage, name) for name in names)) for where, usage in places]
        if len(sizes) == 1 or plan.is_unified:  # the mapped file lies in both memories and counts once
            return format_size(plan.facts.weights_bytes if names[0] == "weights_bytes" else sum(s for _, s in sizes))
        words = (f"{format_size(size)} {f'on {where}' if where else 'in host memory'}" for where, size in sizes if size)
        return ", ".join(words)

    known = "llama.cpp's own figures" if plan.cost.is_measured else "estimated, in closed form"
    return [
        ("weights", part("weights_bytes")),
        ("KV cache", f"{part('kv_bytes')} ({plan.layout.n_ctx:,} tokens in flight, {plan.layout.kv_type})"),
        ("buffers", f"{part('compute_bytes', 'output_bytes')} ({known})"),
        ("program", part("process_bytes")),
        ("free", f"{format_size(plan.free_bytes)}, of which {format_size(plan.margin_bytes)} are left alone"),
        ("longest text", f"{plan.n_ctx_max:,} tokens"),
    ]


def _print_all(question: Any, profiles: Any, *, as_json: bool) -> None:
    """Print one line a machine: what it gets, what that needs, what is left."""
    from gguf_embed.errors import DoesNotFitError  # noqa: PLC0415 - keeps --help quick

    rows, facts = [], {}
    for name, machine in profiles.items():
        try:
            selection = question(machine)
        except DoesNotFitError as error:
            rows.append((machine.description, "none", "", format_size(error.required_bytes), "", "does not fit"))
            facts[name] = {"required_bytes": error.required_bytes, "available_bytes": error.available_bytes}
            continue
        plan = selection.plan
        left = format_size(plan.available_bytes - plan.required_bytes)
        rows.append(
            (machine.description, plan.quant, _short_place(plan), format_size(plan.required_bytes), left,
             f"{plan.n_ctx_max:,}")
        )  # fmt: skip
        facts[name] = _facts(selection)
    if as_json:
        print_json(facts)
    else:
        print_table(("machine", "quant", "on", "needs", "left", "longest text"), rows, right=[3, 4, 5])


def _short_place(plan: Any) -> str:
    if plan.placement == "partial":
        return f"{plan.n_layers_on_device}/{plan.facts.n_layer} {plan.device}"
    return plan.device or "CPU"
