"""`doctor`: is this machine right for it: build, devices, memory, caches, network, versions.

It must not know how anything is measured.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import click

from gguf_embed.cli.options import json_option, verbosity
from gguf_embed.cli.tables import print_facts, print_json
from gguf_embed.sizes import format_size

__all__ = ["doctor_command"]

_PACKAGES = ("gguf-embed", "llama-cpp-python", "huggingface-hub", "numpy")
_UNUSED_GPU = 6


@click.command("doctor")
@click.option("--forget", is_flag=True, help="Forget what failed loads, first checks and bench --tune taught here.")
@json_option
@verbosity
def doctor_command(forget: bool, as_json: bool) -> None:
    """Look this machine over: build, devices, memory, caches, network, versions.

    Exits with 6 and says what to type when a GPU is there and is not used.
    """
    from gguf_embed.config import load_config  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.fit.margins import forget_margins  # noqa: PLC0415
    from gguf_embed.fit.tuning import forget_tunings  # noqa: PLC0415
    from gguf_embed.selfcheck import forget_looks  # noqa: PLC0415

    config = load_config()
    if forget:
        forgotten = [forget(config.state_dir) for forget in (forget_margins, forget_tunings, forget_looks)]
        click.echo("forgotten" if any(forgotten) else "there was nothing to forget", err=True)
    facts = _facts(config)
    if as_json:
        print_json(facts)
    else:
        _print(facts)
    if any(finding.is_problem for finding in facts["findings"]):
        click.get_current_context().exit(_UNUSED_GPU)


def _facts(config: Any) -> dict[str, Any]:
    from gguf_embed.fit.diagnosis import diagnose, probe_system  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.fit.hardware import probe  # noqa: PLC0415
    from gguf_embed.fit.margins import load_margins  # noqa: PLC0415

    hardware, system = probe(), probe_system(config.cuda_visible_devices)
    return {
        "findings": diagnose(hardware, system),
        "hardware": hardware,
        "system": system,
        "margins": load_margins(config.state_dir, hardware),
        "folders": [_folder(name, path) for name, path in _folders(config)],
        "hub": _hub(config),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _folders(config: Any) -> list[tuple[str, Path]]:
    return [
        ("models", config.hub_cache),
        ("made here", config.cache_dir),
        ("learnt here", config.state_dir),
        ("settings", config.config_dir),
    ]


def _folder(name: str, path: Path) -> dict[str, Any]:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    files = path.rglob("*") if path.is_dir() and name != "settings" else ()
    used_bytes = sum(one.stat().st_blocks * 512 if hasattr(one.stat(), "st_blocks") else one.stat().st_size
                     for one in files if one.is_file() and not one.is_symlink())  # fmt: skip
    return {
        "name": name,
        "path": path,
        "is_there": path.is_dir(),
        "used_bytes": used_bytes,
        "free_bytes": shutil.disk_usage(existing).free,
    }


def _hub(config: Any) -> dict[str, Any]:
    from gguf_embed.errors import HubError  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.models.transfer import check_reachable  # noqa: PLC0415

    if config.offline:
        return {"endpoint": config.endpoint, "is_reachable": None, "why": "offline, as configured"}
    begun = time.monotonic()
    try:
        check_reachable(config.endpoint)
    except HubError as error:
        return {"endpoint": config.endpoint, "is_reachable": False, "why": str(error)}
    return {"endpoint": config.endpoint, "is_reachable": True, "answer_s": round(time.monotonic() - begun, 3)}


def _print(facts: dict[str, Any]) -> None:
    hardware, system = facts["hardware"], facts["system"]
    build = "for GPUs" if system.can_offload else "for the CPU only"
    print_facts(
        [
            ("llama.cpp", f"llama-cpp-python {facts['versions']['llama-cpp-python']}, built {build}"),
            ("processor", f"{hardware.processor}, {hardware.n_cores} cores for this process"),
            ("memory", _memory(hardware)),
            *[(one.name, _device(one)) for one in hardware.accelerators],
            *[(f"margin {name}", f"{format_size(size)}, learnt from failed loads; --forget drops it")
              for name, size in facts["margins"].items()],
            *[(folder["name"], _folder_words(folder)) for folder in facts["folders"]],
            ("hub", _hub_words(facts["hub"])),
            ("python", f"{facts['python']} on {facts['platform']}"),
            ("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
        ]
    )  # fmt: skip
    click.echo()
    for finding in facts["findings"]:
        click.echo(f"{'problem' if finding.is_problem else 'note'}: {finding.what}")
        if finding.fix:
            click.echo(f"  fix: {finding.fix}")
    if not any(finding.is_problem for finding in facts["findings"]):
        click.echo("all is well")


def _memory(hardware: Any) -> str:
    words = f"{format_size(hardware.ram_available_bytes)} free of {format_size(hardware.ram_total_bytes)}"
    return f"{words} (held by {hardware.ram_limited_by})" if hardware.ram_limited_by else words


def _device(device: Any) -> str:
    free, total = format_size(device.free_bytes), format_size(device.total_bytes)
    return f"{device.description}, {device.kind}, {free} free of {total}"


def _folder_words(folder: dict[str, Any]) -> str:
    used = f"{format_size(folder['used_bytes'])} used, " if folder["used_bytes"] else ""
    return f"{folder['path']} ({used}{format_size(folder['free_bytes'])} free on the disk)"


def _hub_words(hub: dict[str, Any]) -> str:
    if hub["is_reachable"]:
        return f"{hub['endpoint']} answers in {hub['answer_s']:.2f} s"
    return f"{hub['endpoint']} is not reached: {hub['why']}"
