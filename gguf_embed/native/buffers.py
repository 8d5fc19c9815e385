"""The sizes of the buffers that llama.cpp allocates, or would, as its log tells them.

It must not know what a buffer is for, nor what was planned.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from gguf_embed.native.backend import listening

__all__ = ["Buffer", "recording"]

# Source: src/llama-model.cpp, llama-kv-cache.cpp and llama-context.cpp of llama.cpp 0c1e57098.
_LINE = re.compile(r"(\S+) +(model|KV|compute|output) buffer size = +([\d.]+) MiB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """One buffer.

    Attributes:
        part: "model", "KV", "compute" or "output".
        place: ggml's name of the memory, such as "CUDA0", "CUDA_Host", "CPU_Mapped" or "CPU_REPACK".
        size_bytes: to the hundredth of a MiB that the log gives.
    """

    part: str
    place: str
    size_bytes: int

    def is_on(self, device: str) -> bool:
        """Whether it lies in the memory of the device with ggml's name `device`."""
        return self.place.startswith(device) and not self.place.endswith("_Host")


@contextlib.contextmanager
def recording() -> Iterator[list[Buffer]]:
    """Collect the buffers that calls into llama.cpp on this thread allocate."""
    buffers: list[Buffer] = []

    def receive(line: str) -> None:
        if found := _LINE.search(line):
            size_bytes = round(float(found[3]) * (1 << 20))
            buffers.append(Buffer(part=found[2], place=found[1], size_bytes=size_bytes))

    with listening(receive):
        yield buffers
