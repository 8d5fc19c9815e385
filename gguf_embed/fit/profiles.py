"""Known machines from profiles.toml, as Hardware.

It must not know what is planned for them.
"""

from __future__ import annotations

import functools
import importlib.resources
import tomllib
from collections.abc import Mapping
from types import MappingProxyType

from gguf_embed.fit.hardware import Accelerator, Hardware
from gguf_embed.sizes import parse_size

__all__ = ["load_profiles"]


@functools.cache
def load_profiles() -> Mapping[str, Hardware]:
    """Read every profile, in the file's order."""
    text = (importlib.resources.files("gguf_embed.fit") / "profiles.toml").read_text(encoding="utf-8")
    profiles = {}
    for name, table in tomllib.loads(text).items():
        device = table.get("device")
        accelerators = () if device is None else (
            Accelerator(
                name=device["name"],
                description=table["description"],
                total_bytes=parse_size(device["total"]),
                free_bytes=parse_size(device["free"]),
                kind="unified" if device.get("unified", False) else "discrete",
            ),
        )  # fmt: skip
        profiles[name] = Hardware(
            accelerators=accelerators,
            ram_total_bytes=parse_size(table["ram"]["total"]),
            ram_available_bytes=parse_size(table["ram"]["available"]),
            n_cores=table["n_cores"],
            description=table["description"],
        )
    return MappingProxyType(profiles)
