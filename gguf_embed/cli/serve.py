"""`serve`: local HTTP.

It must not know routes or how anything is computed.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from gguf_embed.cli.exits import usage_errors
from gguf_embed.cli.options import SizeType, is_quiet, json_option, limits_of, plan_options, verbosity
from gguf_embed.errors import MissingExtraError

__all__ = ["serve_command"]

_MODULES = ("httptools", "msgspec", "orjson", "prometheus_client", "starlette", "uvicorn")


@click.command("serve")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to bind; beyond loopback with a key only."
)
@click.option("--port", type=click.IntRange(0, 65535), default=11435, show_default=True, help="0 for a free one.")
@click.option("--uds", type=click.Path(dir_okay=False), help="Listen on this UNIX socket instead.")
@click.option("--api-key", help="Clients must send it; better GGUF_EMBED_API_KEY, which ps does not show.")
@click.option(
    "--api-key-file", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="File that holds it."
)
@click.option("--alias", "aliases", multiple=True, metavar="NAME=MODEL", help="A further name for a model.")
@click.option("--allow-origin", "allow_origins", multiple=True, metavar="ORIGIN", help="Web pages that may call.")
@click.option("--allow-host", "allow_hosts", multiple=True, metavar="NAME", help="A further name of this machine.")
@click.option("--keep-alive", default="5m", show_default=True, help="How long an idle model stays; -1 for always.")
@click.option("--lazy", is_flag=True, help="Load models at their first use instead of now.")
@click.option("--max-body", type=SizeType(), default="32MiB", show_default=True, help="Largest request.")
@click.option("--max-inputs", type=click.IntRange(min=1), default=2048, show_default=True, help="Most texts of one.")
@click.option("--max-queue", type=click.IntRange(min=1), default=512, show_default=True, help="Requests that may wait.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds for a request.",
)
@click.option("--exit-with-parent", is_flag=True, help="Stop when the program that started this one is gone.")
@click.option("--access-log", is_flag=True, help="Log each request; never its texts.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@json_option
@plan_options
@verbosity
def serve_command(models: tuple[str, ...], as_json: bool, access_log: bool, log_format: str, **options: Any) -> None:
    """Serve models over local HTTP: OpenAI's, Ollama's and TEI's routes, and a page at /.

    The first MODEL, or the configured one, is meant where a request names none; others that are on this disk are
    loaded when they are asked for. The address is printed on stdout when connections are accepted.

    \b
      gguf-embed serve qwen3-embedding-0.6b
      gguf-embed serve --port 0 --exit-with-parent --json
    """  # noqa: D301 - click reads the backspace itself
    _check_extra()
    from gguf_embed.config import load_config  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.server.running import run  # noqa: PLC0415

    config = load_config()
    exit_with_parent = options.pop("exit_with_parent")
    settings = _settings(models or (config.model,), config, options)
    _set_log(access_log=access_log, is_json=log_format == "json")

    def on_ready(url: str) -> None:
        click.echo(json.dumps({"url": url, "pid": os.getpid()}) if as_json else url)
        sys.stdout.flush()
        if not is_quiet() and sys.stderr.isatty():
            click.echo(
                "open it in a browser, or set it as an app's OpenAI, Ollama or TEI address; Ctrl-C stops", err=True
            )

    run(settings, config, on_ready=on_ready, exit_with_parent=exit_with_parent)


def _check_extra() -> None:
    missing = [name for name in _MODULES if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"serve needs {', '.join(missing)}; install them with: pip install 'gguf-embed[server]'", extra="server"
        )


def _settings(models: tuple[str, ...], config: Any, options: dict[str, Any]) -> Any:
    from gguf_embed.server.settings import ServerSettings, parse_keep_alive  # noqa: PLC0415 - keeps --help quick

    limits = limits_of(options)
    key_file = options.pop("api_key_file")
    key = options.pop("api_key") or config.api_key
    if key_file is not None:
        key = key_file.read_text(encoding="utf-8").strip()
    with usage_errors():
        return ServerSettings(
            models=models,
            aliases=tuple(_pair(text) for text in options.pop("aliases")),
            api_key=key,
            keep_alive_s=parse_keep_alive(options.pop("keep_alive")),
            preload=not options.pop("lazy"),
            max_body_bytes=options.pop("max_body"),
            timeout_s=options.pop("timeout"),
            limits=limits,
            **options,
        )


def _pair(text: str) -> tuple[str, str]:
    name, equals, model = text.partition("=")
    if not (name and equals and model):
        raise ValueError(f"--alias is {text!r}; write NAME=MODEL")
    return name, model


def _set_log(*, access_log: bool, is_json: bool) -> None:
    """Say what happens to models; each request only where that is wanted."""
    package = logging.getLogger("gguf_embed")
    if package.level == logging.WARNING:
        logging.getLogger("gguf_embed.server").setLevel(logging.INFO)
    logging.getLogger("gguf_embed.server.access").setLevel(logging.INFO if access_log else logging.WARNING)
    if is_json:
        for handler in package.handlers:
            handler.setFormatter(_JSONFormatter())
    logging.getLogger("uvicorn").handlers[:] = package.handlers


class _JSONFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        facts |= getattr(record, "facts", {})
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps(facts, ensure_ascii=False)
