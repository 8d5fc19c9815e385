"""Options that several commands share, and the models they come to.

It must not know what commands print.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from gguf_embed.cli.app import set_verbosity
from gguf_embed.cli.exits import usage_errors

__all__ = [
    "SizeType",
    "fetch_model",
    "is_quiet",
    "json_option",
    "limit_options",
    "limits_of",
    "load_model",
    "model_argument",
    "model_option",
    "open_model",
    "optional_model_argument",
    "plan_options",
    "verbosity",
]

Command = Callable[..., Any]
# As models.ladders has them, which takes too long to load for --help.
PREFERENCES = ("default", "quality", "speed", "small", "measured")


class SizeType(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.4
    """A size such as 4GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it; bytes are taken as they are."""
        from gguf_embed.sizes import parse_size  # noqa: PLC0415 - completion loads nothing

        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    from gguf_embed.config import load_config  # noqa: PLC0415 - only when a shell asks
    from gguf_embed.models.registry import load_registry  # noqa: PLC0415

    registry = load_registry(load_config().config_dir / "models.toml")
    names = [name for spec in registry.models for name in (spec.model_id, *spec.aliases)]
    return [name for name in names if name.startswith(incomplete.lower())]


model_argument = click.argument("model", shell_complete=_complete_model)
optional_model_argument = click.argument("model", required=False, shell_complete=_complete_model)
model_option = click.option(
    "-m", "--model", shell_complete=_complete_model, help="Model reference; the configured default when left out."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def verbosity(command: Command) -> Command:
    """Add -q and -v."""

    @click.option("-q", "--quiet", is_flag=True, help="No progress, no warnings.")
    @click.option("-v", "--verbose", is_flag=True, help="Show what happens, llama.cpp's log included.")
    @functools.wraps(command)
    def wrapped(*args: Any, quiet: bool, verbose: bool, **options: Any) -> Any:
        set_verbosity(quiet=quiet, verbose=verbose)
        click.get_current_context().ensure_object(dict)["quiet"] = quiet
        return command(*args, **options)

    return wrapped


def plan_options(command: Command) -> Command:
    """Add what limits a plan: device, memory, longest text, threads, KV type, ladder."""
    prefer = click.option("--prefer", type=click.Choice(PREFERENCES), default="default", show_default=True,
                          help="Which quantizations to try first.")  # fmt: skip
    return limit_options(prefer(command))


def limit_options(command: Command) -> Command:
    """Add what limits a plan whose quantization is named."""
    for option in (
        click.option("--threads", "n_threads", type=click.IntRange(1, 512), help="CPU threads; all cores if left out."),
        click.option("--n-ctx", type=click.IntRange(min=1), help="Longest text in tokens; what fits if left out."),
        click.option("--skip-head/--no-skip-head", "skips_head", default=None,
                     help="Force or forbid to stop before the vocabulary projection."),
        click.option("--no-flash-attn", "flash_attn", is_flag=True, flag_value=False, default=True,
                     help="Leave flash attention out, where it gives wrong vectors."),
        click.option("--kv-type", type=click.Choice(["f16", "q8_0"]), help="KV cache; q8_0 takes half the memory."),
        click.option("--memory", "memory_bytes", type=SizeType(),
                     help="Use at most this much of the device, or of the host on a CPU."),
        click.option("--device", help="auto, gpu, cpu, or a device's name: CUDA1, cuda:1, mps."),
    ):  # fmt: skip
        command = option(command)
    return command


def limits_of(options: dict[str, Any]) -> Any:
    """Take the limits out of a command's options; the configured ones stand where none are given."""
    from gguf_embed.config import load_config  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.fit.planner import Limits  # noqa: PLC0415

    config = load_config()
    with usage_errors():
        names = ("memory_bytes", "device", "n_ctx", "n_threads", "kv_type", "skips_head", "flash_attn")
        return Limits(**{name: options.pop(name) for name in names}).over(config)


def open_model(model: str | None, options: dict[str, Any]) -> Any:
    """Make an Embedder of a reference and a command's options; nothing is fetched yet."""
    from gguf_embed.embedder import Embedder  # noqa: PLC0415 - keeps --help quick

    limits = limits_of(options)
    with usage_errors():
        return Embedder(model, limits=limits, **options)


def load_model(embedder: Any) -> None:
    """Plan, fetch with a progress bar, and load."""
    _with_progress(embedder, embedder.load)


def fetch_model(embedder: Any) -> None:
    """Plan, and fetch with a progress bar; nothing is loaded."""
    _with_progress(embedder, embedder.fetch)


def _with_progress(embedder: Any, get: Callable[..., Any]) -> None:
    from gguf_embed.progress import download_progress  # noqa: PLC0415 - keeps --help quick

    with usage_errors():
        plan = embedder.plan
    if is_quiet():
        get()
        return
    with download_progress(f"{plan.model_id} {plan.quant}") as on_progress:
        get(on_progress)


def is_quiet() -> bool:
    """Whether -q was given."""
    return bool(click.get_current_context().ensure_object(dict).get("quiet"))
