"""Whether the system would give this process so much memory, asked before llama.cpp asks.

llama.cpp's libraries end the process where a thread or a small allocation is refused; a refusal here harms nobody.
It must not know what the memory is for.
"""

from __future__ import annotations

import contextlib
import mmap

__all__ = ["can_reserve"]

_STACK_BYTES = 8 << 20  # 8 MiB, what a thread's stack reserves
# malloc's arenas, graphs and thread pools, none of which a plan counts.
_SLACK_BYTES = 96 << 20  # 96 MiB


def can_reserve(n_bytes: int, *, n_threads: int) -> bool:
    """Ask the system for address space and give it back untouched.

    Args:
        n_bytes: of buffers.
        n_threads: that llama.cpp will start.

    Returns:
        False where it is refused, as under RLIMIT_AS or a strict overcommit policy.
    """
    sizes = (max(1, n_bytes), _SLACK_BYTES, *[_STACK_BYTES] * n_threads)
    with contextlib.ExitStack() as stack:
        try:
            for size in sizes:
                stack.enter_context(contextlib.closing(mmap.mmap(-1, size)))
        except (OSError, ValueError, OverflowError):
            return False
    return True
