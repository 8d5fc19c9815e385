"""Exact buffer sizes: llama.cpp loads the header alone, in a child process, and says what contexts would need.

Answers are kept by header, layout, build and device. It must not know which layouts are wanted, nor why.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gguf_embed.errors import ModelLoadError
from gguf_embed.fit.memory import BufferSizes
from gguf_embed.models.header import ModelFacts
from gguf_embed.native.backend import library_stamp
from gguf_embed.native.buffers import Buffer
from gguf_embed.native.child import child_command, last_words
from gguf_embed.native.layout import Layout

__all__ = ["DryRun"]

logger = logging.getLogger(__name__)

# The largest model's header takes 0.5 s; a GPU's driver may take seconds to wake.
_TIMEOUT_S = 60.0
# Tensors are padded in a file; a hole may be larger than what they take.
_PADDING_BYTES = 1 << 20
# What a child dies of when the file, not its surroundings, is at fault.
_ABORTS = {getattr(signal, name, None) for name in ("SIGABRT", "SIGSEGV", "SIGFPE", "SIGBUS", "SIGILL")} - {None}


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """Runs headers dry, and remembers.

    Attributes:
        cache_dir: where answers are kept.
        devices: names and sizes of this machine's devices; answers of others do not count.
    """

    cache_dir: Path
    devices: str

    def measure(
        self, path: Path, facts: ModelFacts, layouts: Sequence[Layout], *, name: str | None = None
    ) -> list[BufferSizes | None]:
        """Ask llama.cpp how large the buffers of some layouts would be.

        Args:
            path: a GGUF, or the first bytes of one with its whole header.
            facts: of the file.
            layouts: to ask about.
            name: what errors call the file; None for its own name.

        Returns:
            Sizes for each layout; None where there can be no such context here, or nobody to ask.

        Raises:
            ModelLoadError: llama.cpp refuses the header, or aborts on it.
        """
        head = _read_head(path, facts.header_bytes)
        digest = hashlib.sha256(head).hexdigest()
        places = {layout: self._place(digest, facts, layout) for layout in layouts}
        kept = [_load(places[layout]) for layout in layouts]
        missing = [layout for layout, sizes in zip(layouts, kept, strict=True) if sizes is None]
        if not missing:
            return kept
        try:
            answers = iter(self._ask(path, head, facts, missing))
        except _RefusedError as error:
            raise ModelLoadError(f"{name or path.name} {error}", path=path) from None
        found = []
        for layout, sizes in zip(layouts, kept, strict=True):
            if sizes is None and (sizes := next(answers)) is not None:
                _keep(places[layout], sizes)
            found.append(sizes)
        return found

    def _ask(self, path: Path, head: bytes, facts: ModelFacts, layouts: list[Layout]) -> list[BufferSizes | None]:
        nothing: list[BufferSizes | None] = [None] * len(layouts)
        command = child_command("gguf_embed.native.simulate")
        if command is None:
            return nothing
        with tempfile.TemporaryDirectory(prefix="gguf-embed-", ignore_cleanup_errors=True) as folder:
            file_bytes = facts.header_bytes + facts.weights_bytes
            if path.stat().st_size < file_bytes:
                hollow = _write_hollow(Path(folder) / path.name, head, file_bytes + _PADDING_BYTES)
                if hollow is None:
                    return nothing
                path = hollow
            request = {
                "path": str(path),
                "pooling_type": facts.pooling_type,
                "layouts": [dataclasses.asdict(layout) for layout in layouts],
            }
            try:
                done = subprocess.run(
                    command, input=json.dumps(request), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
                )
            except (OSError, subprocess.SubprocessError) as error:
                logger.info("no dry run of %s: %s", path.name, error)
                return nothing
        return _read_answer(done, layouts)

    def _place(self, digest: str, facts: ModelFacts, layout: Layout) -> Path:
        """Where the answer for a header with this sha256 is kept."""
        asked = [
            digest, facts.pooling_type, dataclasses.asdict(layout), self.devices,
            version("llama-cpp-python"), library_stamp(),
        ]  # fmt: skip
        name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]
        return self.cache_dir / f"{name}.json"


def _load(place: Path) -> BufferSizes | None:
    try:
        kept = json.loads(place.read_text(encoding="utf-8"))
        return BufferSizes(**kept | {"compute_bytes": tuple(kept["compute_bytes"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _keep(place: Path, sizes: BufferSizes) -> None:
    fresh = place.with_suffix(f".{os.getpid()}.tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(dataclasses.asdict(sizes)), encoding="utf-8")
        fresh.replace(place)
    except OSError as error:
        logger.debug("a dry run cannot be kept: %s", error)


def _read_head(path: Path, header_bytes: int) -> bytes:
    with path.open("rb") as file:
        return file.read(header_bytes)


def _write_hollow(path: Path, head: bytes, file_bytes: int) -> Path | None:
    """Write a header and let the rest be a hole; None where the disk has no room or knows no holes."""
    try:
        with path.open("wb") as file:
            file.write(head)
            file.truncate(file_bytes)
    except OSError as error:
        logger.info("no dry run: %s", error)
        return None
    return path


class _RefusedError(Exception):
    """Why a header cannot be loaded, in words that follow the file's name."""


def _read_answer(done: subprocess.CompletedProcess[str], layouts: list[Layout]) -> list[BufferSizes | None]:
    if -done.returncode in _ABORTS and not _is_squeezed():
        raise _RefusedError(
            f"makes llama.cpp abort ({last_words(done.stderr)}). The file is damaged or needs another llama.cpp: fetch "
            "it again, or pip install -U llama-cpp-python"
        )
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        logger.info("no dry run: exit code %d: %s", done.returncode, last_words(done.stderr))
        return [None] * len(layouts)
    if "error" in answer:
        raise _RefusedError(f"cannot be loaded: {answer['error']}")
    return [
        None if isinstance(one, str) else _sizes([Buffer(**buffer) for buffer in one], layout)
        for one, layout in zip(answer["buffers"], layouts, strict=True)
    ]


def _is_squeezed() -> bool:
    """Whether this process, and so its child, is held to less memory than llama.cpp may want to start with."""
    if os.name != "posix":
        return False
    import resource  # noqa: PLC0415 - not on Windows

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _sizes(buffers: list[Buffer], layout: Layout) -> BufferSizes:
    """Sort buffers by the memory that they lie in."""
    compute = [buffer for buffer in buffers if buffer.part == "compute"]
    on_devices = tuple(sum(one.size_bytes for one in compute if one.is_on(device)) for device in layout.devices)
    return BufferSizes(
        compute_bytes=on_devices,
        host_compute_bytes=sum(one.size_bytes for one in compute) - sum(on_devices),
        host_output_bytes=sum(one.size_bytes for one in buffers if one.part == "output"),
    )
