"""The only reader of the environment and of the config file: both become one frozen Config.

It knows no model, no network and no hardware. Order: argument, environment, config file, default.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from gguf_embed.errors import ConfigError
from gguf_embed.sizes import parse_size

__all__ = ["DEFAULT_ENDPOINT", "DEFAULT_MODEL", "DEVICE_NAME", "Config", "load_config"]

DEFAULT_MODEL = "qwen3-embedding-4b"
DEFAULT_ENDPOINT = "https://huggingface.co"
_CACHE_BYTES = 4 << 30  # 4 GiB: 2.6 million vectors of 384 numbers, 400,000 of 2,560
# What a device may be called: by what it is, or by ggml's or PyTorch's name, such as CUDA0, MTL0, cuda:1 or mps.
DEVICE_NAME = re.compile(
    r"auto|gpu|cpu|(cuda|mtl|metal|mps|rocm|hip|vulkan|sycl|xpu|musa|cann|opencl|rpc):?\d*", re.IGNORECASE
)
# llama.cpp starts as many as it is told to, and crashes where the system refuses them.
MAX_THREADS = 512
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off", ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What holds for this user on this machine.

    Attributes:
        model: reference used when none is given.
        memory_bytes: most memory the plan may use, None for what is free.
        device: "auto", "gpu" (an error without one), "cpu" or a device's name.
        n_threads: CPU threads, None for the physical cores.
        offline: never use the network.
        endpoint: the model hub's address.
        api_key: that clients of a server must send, None for none.
        cuda_visible_devices: what CUDA is told to use of its devices, None for all.
        hub_cache: Hugging Face cache folder, shared with every other tool that uses it.
        cache_dir: models that this program makes itself (the starter model), and vectors.
        cache_bytes: what the vectors kept for jobs may grow to, 0 for none.
        state_dir: what was learnt about this machine.
        config_dir: holds config.toml and the user's own models.toml.
    """

    model: str = DEFAULT_MODEL
    memory_bytes: int | None = None
    device: str = "auto"
    n_threads: int | None = None
    offline: bool = False
    endpoint: str = DEFAULT_ENDPOINT
    api_key: str | None = field(default=None, repr=False)
    cuda_visible_devices: str | None = None
    hub_cache: Path
    cache_dir: Path
    cache_bytes: int = _CACHE_BYTES
    state_dir: Path
    config_dir: Path

    def __post_init__(self) -> None:
        if not DEVICE_NAME.fullmatch(self.device):
            raise ValueError(f"device is {self.device!r}; it is auto, gpu, cpu or a name such as CUDA0 or cuda:1")
        if self.memory_bytes is not None and self.memory_bytes < 1:
            raise ValueError(f"memory_bytes is {self.memory_bytes}; it is at least 1")
        if self.n_threads is not None and not 1 <= self.n_threads <= MAX_THREADS:
            raise ValueError(f"n_threads is {self.n_threads}; it is 1 to {MAX_THREADS}")


def load_config(environ: Mapping[str, str] | None = None) -> Config:
    """Read the environment and `config.toml`, where there is one.

    Args:
        environ: stands in for os.environ, for tests.

    Returns:
        The settings; every path absolute.

    Raises:
        ConfigError: a value cannot be used; the message names the variable or the file and key.
    """
    env = os.environ if environ is None else environ
    config_dir = _path(env.get("GGUF_EMBED_CONFIG_DIR") or platformdirs.user_config_dir("gguf-embed", appauthor=False))
    cache_dir = _path(env.get("GGUF_EMBED_CACHE_DIR") or platformdirs.user_cache_dir("gguf-embed", appauthor=False))
    state_dir = _path(env.get("GGUF_EMBED_STATE_DIR") or platformdirs.user_state_dir("gguf-embed", appauthor=False))
    settings: dict[str, Any] = {
        "hub_cache": _hub_cache(env), "cache_dir": cache_dir, "state_dir": state_dir, "config_dir": config_dir
    }  # fmt: skip
    settings |= _from_file(config_dir / "config.toml")
    settings["cuda_visible_devices"] = env.get("CUDA_VISIBLE_DEVICES")
    if endpoint := env.get("HF_ENDPOINT"):
        settings["endpoint"] = endpoint
    if raw := env.get("HF_HUB_OFFLINE"):
        settings |= _parsed("offline", raw, _boolean, source="HF_HUB_OFFLINE", path=None)
    for key, parse in _KEYS.items():
        variable = f"GGUF_EMBED_{key.upper()}"
        if raw := env.get(variable):
            settings |= _parsed(key, raw, parse, source=variable, path=None)
    settings["endpoint"] = settings.get("endpoint", DEFAULT_ENDPOINT).rstrip("/")
    return Config(**settings)


def _hub_cache(env: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps its files.

    Source: huggingface_hub 2.4 constants.py, the same order of variables.
    """
    if explicit := env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE"):
        return _path(explicit)
    if hf_home := env.get("HF_HOME"):
        return _path(hf_home) / "hub"
    return _path(env.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def _from_file(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Mend it or move it away.", key="", path=path) from error
    settings: dict[str, Any] = {}
    for key, value in table.items():
        if key not in _KEYS:
            raise ConfigError(f"{path}: unknown key {key!r}; the keys are {', '.join(_KEYS)}", key=key, path=path)
        settings |= _parsed(key, value, _KEYS[key], source=f"{path}: {key}", path=path)
    return settings


def _parsed(key: str, raw: Any, parse: Any, *, source: str, path: Path | None) -> dict[str, Any]:
    try:
        value = parse(raw)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source} is {raw!r}: {error}", key=key, path=path) from error
    return {_FIELDS.get(key, key): value}


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(
            f"{text!r} is below a home folder that is not known; set HOME, or GGUF_EMBED_CONFIG_DIR, "
            "GGUF_EMBED_CACHE_DIR, GGUF_EMBED_STATE_DIR and HF_HUB_CACHE to whole paths",
            key="HOME",
        ) from error


def _text(raw: Any) -> str:
    if not isinstance(raw, str) or not raw:
        raise ValueError("it is a non-empty text")
    return raw


def _boolean(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    word = str(raw).strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("it is true or false")


def _device(raw: Any) -> str:
    word = str(raw).strip()
    if not DEVICE_NAME.fullmatch(word):
        raise ValueError("it is auto, gpu, cpu or a name such as CUDA0 or cuda:1")
    return word.lower()


def _threads(raw: Any) -> int:
    if isinstance(raw, bool) or not re.fullmatch(r"[1-9]\d{0,2}", str(raw).strip()) or int(raw) > MAX_THREADS:
        raise ValueError(f"it is a whole number from 1 to {MAX_THREADS}")
    return int(raw)


def _memory(raw: Any) -> int:
    return parse_size(str(raw))


def _cache_size(raw: Any) -> int:
    return 0 if str(raw).strip() == "0" else parse_size(str(raw))


# One environment variable, GGUF_EMBED_<KEY>, for each key of config.toml.
_KEYS: dict[str, Any] = {
    "model": _text,
    "memory": _memory,
    "device": _device,
    "n_threads": _threads,
    "offline": _boolean,
    "endpoint": _text,
    "api_key": _text,
    "cache_size": _cache_size,
}
_FIELDS = {"memory": "memory_bytes", "cache_size": "cache_bytes"}
