"""`pull`, `list`, `show`, `rm`, `models` and `completion`: what there is, here and elsewhere.

They must not know how files are fetched or kept.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from gguf_embed.cli.exits import usage_errors
from gguf_embed.cli.options import is_quiet, json_option, limits_of, model_argument, plan_options, verbosity
from gguf_embed.cli.tables import print_facts, print_json, print_table

__all__ = ["completion_command", "list_command", "models_command", "pull_command", "rm_command", "show_command"]


def _catalog() -> Any:
    from gguf_embed.config import load_config  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.models.catalog import Catalog  # noqa: PLC0415

    return Catalog(load_config())


@click.command("pull")
@model_argument
@plan_options
@json_option
@verbosity
def pull_command(model: str, as_json: bool, **options: Any) -> None:
    """Fetch MODEL: the quantization that fits here, or the one that is named.

    Prints the file's path. An interrupted download goes on where it stopped.
    A quantization that is named is fetched whether or not it fits here.
    """
    from gguf_embed.progress import download_progress  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.selection import Overrides, choose_source  # noqa: PLC0415

    catalog, limits = _catalog(), limits_of(options)
    with usage_errors():
        resolved = catalog.resolve(model, prefer=options["prefer"])
        source = choose_source(catalog, resolved, limits=limits, overrides=Overrides())
    if is_quiet():
        path = catalog.fetch(resolved, source)
    else:
        with download_progress(f"{resolved.model_id} {source.quant}") as on_progress:
            path = catalog.fetch(resolved, source, on_progress=on_progress)
    if as_json:
        facts = {"model": resolved.model_id, "quant": source.quant, "path": path}
        print_json(facts | {"size_bytes": path.stat().st_size})
    else:
        click.echo(path)


@click.command("list")
@json_option
@verbosity
def list_command(as_json: bool) -> None:
    """List the model files on this disk: the Hugging Face cache's GGUFs, and those made here."""
    from gguf_embed.models.shelf import files_on_disk  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.sizes import format_size  # noqa: PLC0415 - keeps --help quick

    files = files_on_disk(_catalog())
    if as_json:
        print_json([_file_facts(file) for file in files])
    elif not files:
        click.echo("no model files here yet; fetch one: gguf-embed pull qwen3-embedding-0.6b", err=True)
    else:
        rows = [(file.model_id, file.quant, format_size(file.size_bytes), str(file.path)) for file in files]
        print_table(("model", "quant", "size", "path"), rows, right=[2])


def _file_facts(file: Any) -> dict[str, Any]:
    return {"model": file.model_id, "quant": file.quant, "size_bytes": file.size_bytes, "path": file.path}


@click.command("rm")
@model_argument
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
@verbosity
def rm_command(model: str, yes: bool, as_json: bool) -> None:
    """Delete MODEL's files from this disk: all its quantizations, or the one that is named."""
    from gguf_embed.errors import UnknownModelError  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.models.shelf import delete, files_on_disk  # noqa: PLC0415
    from gguf_embed.sizes import format_size  # noqa: PLC0415

    catalog = _catalog()
    if catalog.parse(model).path is not None:
        raise click.UsageError(f"{model} is a file of yours; delete it yourself")
    files = files_on_disk(catalog, model)
    if not files:
        raise UnknownModelError(f"nothing of {model} is on this disk; see: gguf-embed list", model_id=model)
    for file in files:
        click.echo(f"{format_size(file.size_bytes)}  {file.path}", err=True)
    if not yes and not click.confirm("Delete?", err=True):
        click.echo("nothing was deleted", err=True)
        return
    freed_bytes = sum(delete(catalog, file) for file in files)
    if as_json:
        print_json({"deleted": [_file_facts(file) for file in files], "freed_bytes": freed_bytes})
    else:
        click.echo(f"freed {format_size(freed_bytes)}")


@click.command("models")
@json_option
@verbosity
def models_command(as_json: bool) -> None:
    """List the models that have a name here."""
    specs = _catalog().registry.models
    if as_json:
        print_json([{**dataclasses.asdict(spec), "quants": spec.quants} for spec in specs])
        return
    rows = [
        (
            spec.model_id,
            str(spec.n_embd),
            f"{spec.max_tokens:,}",
            " ".join(spec.ladder) + ("" if spec.commercial else " (non-commercial)"),
        )
        for spec in specs
    ]
    print_table(("model", "dim", "tokens", "quants"), rows, right=[1, 2])


@click.command("show")
@model_argument
@json_option
@verbosity
def show_command(model: str, as_json: bool) -> None:
    """Show what is known of MODEL: the registry's facts, and the header of a file that is here."""
    from gguf_embed.models.header import load_facts  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.models.shelf import files_on_disk  # noqa: PLC0415

    catalog = _catalog()
    reference = catalog.parse(model)
    files = files_on_disk(catalog, model)
    path = reference.path or (files[0].path if files else None)
    header = load_facts(path) if path is not None else None
    spec = reference.spec
    if spec is None and header is None:
        header, path = _remote_header(catalog, model)
    recipe = _recipe(path, spec) if isinstance(path, Path) else None
    if as_json:
        on_disk = [_file_facts(file) for file in files]
        known = {"fingerprint": recipe.fingerprint if recipe else None, "recipe": recipe, "header": header}
        print_json({"model": spec, "file": path, "on_disk": on_disk} | known)
        return
    if spec is not None:
        print_facts(_spec_facts(spec))
    if header is not None:
        click.echo(f"\n{path}" if spec is not None else f"{path}")
        print_facts([*_header_facts(header, spec), *([("fingerprint", recipe.fingerprint)] if recipe else [])])
    elif spec is not None:
        click.echo(f"\nnot on this disk; fetch it: gguf-embed pull {spec.model_id}")


def _recipe(path: Path, spec: Any) -> Any:
    """What the vectors of a file hang on; None for one that gives none."""
    from gguf_embed.fingerprints import recipe_of  # noqa: PLC0415 - keeps --help quick

    recipe = recipe_of(path, spec=spec)
    return recipe if recipe.pooling_type in ("last", "mean", "cls") else None


def _remote_header(catalog: Any, model: str) -> tuple[Any, Any]:
    from gguf_embed.models.facts import fetch_header  # noqa: PLC0415 - keeps --help quick

    resolved = catalog.resolve(model)
    source = resolved.sources[0]
    return fetch_header(catalog, resolved, source).facts, source.name


def _spec_facts(spec: Any) -> list[tuple[str, str]]:
    matryoshka = spec.matryoshka
    prompts = [(f"prompt {name}", repr(text)) for name, text in _prompts(spec.prompts)]
    return [
        ("model", spec.model_id),
        ("aliases", ", ".join(spec.aliases) or "none"),
        ("from", spec.base_repo),
        ("licence", spec.license if spec.commercial else f"{spec.license} (non-commercial)"),
        ("dim", matryoshka.describe(spec.n_embd) if matryoshka is not None else str(spec.n_embd)),
        ("longest text", f"{spec.max_tokens:,} tokens"),
        ("pooling", spec.pooling_type),
        *prompts,
        ("quants", ", ".join(spec.quants)),
    ]


def _prompts(prompts: Any) -> list[tuple[str, str]]:
    template = [("query, with a task", prompts.query_template)] if prompts.query_template else []
    return [("query", prompts.query), *template, ("document", prompts.document), *prompts.others]


def _header_facts(facts: Any, spec: Any) -> list[tuple[str, str]]:
    from gguf_embed.sizes import format_size  # noqa: PLC0415 - keeps --help quick

    def source(of_file: Any, of_registry: Any) -> str:
        if of_registry is None or of_file == of_registry:
            return f"{of_file} (file)" if of_file is not None else "not said (file)"
        return f"{of_registry} (registry; the file says {of_file})"

    return [
        ("architecture", facts.architecture),
        ("quant", facts.quant or "not said"),
        ("layers", str(facts.n_layer)),
        ("n_embd", str(facts.n_embd)),
        ("vocabulary", f"{facts.n_vocab:,} tokens"),
        ("context", f"{facts.n_ctx_train:,} tokens"),
        ("pooling", source(facts.pooling_type, spec.pooling_type if spec else None)),
        ("EOS added", source(facts.add_eos, spec.add_eos if spec else None)),
        ("weights", format_size(facts.weights_bytes)),
        ("KV cache", f"{format_size(facts.kv_bytes_per_token)} a token"),
    ]


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the script that completes commands in SHELL.

    bash: add to ~/.bashrc: eval "$(gguf-embed completion bash)"
    """
    from click.shell_completion import get_completion_class  # noqa: PLC0415 - only here

    from gguf_embed.cli.app import cli  # noqa: PLC0415 - the group imports this module

    maker = get_completion_class(shell)
    if maker is None:
        raise click.UsageError(f"click completes no {shell}")
    click.echo(maker(cli, {}, "gguf-embed", "_GGUF_EMBED_COMPLETE").source())
