"""`verify`: a file on this machine, check by check.

It must not know how anything is checked.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections import Counter
from typing import Any

import click

from gguf_embed.cli.exits import NOT_AS_IT_SHOULD, usage_errors
from gguf_embed.cli.options import is_quiet, json_option, limits_of, optional_model_argument, plan_options, verbosity
from gguf_embed.cli.tables import print_json

__all__ = ["verify_command"]

_WIDTH = 80
_COLORS = {"fault": "red", "ok": "green", "mended": "yellow", "unmeasured": "yellow"}


@click.command("verify")
@optional_model_argument
@click.option("--pooling", "pooling_type", type=click.Choice(["last", "mean", "cls"]),
              help="What the model's card says, for a file whose header does not.")  # fmt: skip
@click.option("--add-eos/--no-add-eos", default=None, help="What the model's card says of EOS.")
@click.option("--expect-fingerprint", metavar="HEX", help="Also check that vectors compare with those of before.")
@plan_options
@json_option
@verbosity
def verify_command(model: str | None, as_json: bool, **options: Any) -> None:
    """Prove that a file gives the vectors its model's authors meant.

    Reads every number of the file, runs it over texts on which models were seen to fail, in every way there is on
    this machine, and holds the answers against each other and the model card's. Exits with 9 when something is wrong.

    \b
      gguf-embed verify qwen3-embedding-4b
      gguf-embed verify ./file.gguf --pooling last
    """  # noqa: D301 - click reads the backspace itself
    from gguf_embed.errors import ModelLoadError  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.fingerprints import checked_fingerprint  # noqa: PLC0415
    from gguf_embed.model import LazyModel  # noqa: PLC0415
    from gguf_embed.quality.verification import Verification  # noqa: PLC0415
    from gguf_embed.selection import Overrides  # noqa: PLC0415

    limits, expects, prefer = limits_of(options), options.pop("expect_fingerprint"), options.pop("prefer")
    overrides = Overrides(**options)
    with usage_errors():
        expects = checked_fingerprint(expects) if expects is not None else None
        subject = LazyModel(model, limits=limits, prefer=prefer, overrides=overrides, in_process=True)
    try:
        with usage_errors(), contextlib.suppress(ModelLoadError):  # what is wrong with the file, the checks say
            _ = subject.path or subject.selection()  # refuses limits that this model cannot have
        _fetch(subject)
        verification = Verification(subject, overrides=overrides, expects=expects, n_threads=limits.n_threads)
        checks = _run(verification, as_json=as_json)
        if as_json:
            print_json(_facts(subject, verification, checks))
    finally:
        subject.close()
    if any(check.state == "fault" for check in checks):
        click.get_current_context().exit(NOT_AS_IT_SHOULD)


def _fetch(subject: Any) -> None:
    """Fetch with a progress bar; what is wrong with a file that is here is for the checks to say."""
    from gguf_embed.errors import ModelLoadError  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.progress import download_progress  # noqa: PLC0415

    if subject.path is not None:
        return
    try:
        if is_quiet():
            subject.fetch()
            return
        with download_progress(subject.text) as on_progress:
            subject.fetch(on_progress)
    except ModelLoadError:
        return


def _run(verification: Any, *, as_json: bool) -> list[Any]:
    """Print each check when it is done."""
    checks: list[Any] = []
    for check in verification.checks():
        if not checks and not as_json:
            click.echo(f"{verification.path}\n")
        checks.append(check)
        if not as_json:
            _print(check)
    if not as_json:
        click.echo(f"\n{_verdict(checks)}")
    return checks


def _print(check: Any) -> None:
    lines = textwrap.wrap(check.words, _WIDTH - 28) or [""]
    state = click.style(f"{check.state:<10}", fg=_COLORS.get(check.state), bold=check.state == "fault")
    click.echo(f"{check.name:<16}{state}  {lines[0]}")
    for line in lines[1:]:
        click.echo(f"{'':<28}{line}")


def _verdict(checks: list[Any]) -> str:
    counts = Counter(check.state for check in checks)
    if faults := [check.name for check in checks if check.state == "fault"]:
        return f"{'1 fault' if len(faults) == 1 else f'{len(faults)} faults'}: {', '.join(faults)}"
    rest = [f"{counts[state]} {state}" for state in ("mended", "note", "unmeasured", "skipped") if counts[state]]
    return f"{counts['ok']} checks are fine{', ' + ', '.join(rest) if rest else ''}; no fault was found"


def _facts(subject: Any, verification: Any, checks: list[Any]) -> dict[str, Any]:
    opened = verification.opened
    return {
        "model": subject.text,
        "file": verification.path,
        "quant": opened.selection.plan.quant if opened is not None else None,
        "devices": opened.layout.devices if opened is not None else None,
        "fingerprint": subject.fingerprint(subject.n_embd) if opened is not None else None,
        "is_right": not any(check.state == "fault" for check in checks),
        "checks": checks,
    }
