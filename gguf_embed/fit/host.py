"""Host memory that this process can have: the system's, its container's, its own limits.

It must not know devices or models.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from gguf_embed.fit.cgroups import probe_groups

__all__ = ["HostMemory", "is_running", "probe_host", "resident_bytes"]

# Of a group, by the version of the interface: its limit, its use, and in memory.stat what of that is page cache.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
# What a limit on the address space must also hold and no plan counts: stacks and malloc's arena of each thread.
_ADDRESSES_PER_THREAD = 72 << 20  # 8 + 64 MiB, glibc's defaults


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """Memory of the host as this process may use it.

    Attributes:
        total_bytes: of the machine, or what its control group allows.
        available_bytes: what can still be had without swapping.
        limited_by: "" for the machine itself, else what holds it to less: "cgroup" or "RLIMIT_AS".
    """

    total_bytes: int
    available_bytes: int
    limited_by: str = ""


def probe_host(*, n_threads: int = 1) -> HostMemory:
    """Ask the system, the control group and the process's own limit; the least counts.

    Args:
        n_threads: threads that llama.cpp will start, which a limited address space must hold too.
    """
    memory = psutil.virtual_memory()
    total, available, limited_by = memory.total, memory.available, ""
    for limit, used in _cgroup_limits():
        if limit - used < available:
            available, limited_by = max(0, limit - used), "cgroup"
        total = min(total, limit)
    room = _address_space()
    if room is not None and room - n_threads * _ADDRESSES_PER_THREAD < available:
        available, limited_by = max(0, room - n_threads * _ADDRESSES_PER_THREAD), "RLIMIT_AS"
    return HostMemory(total_bytes=total, available_bytes=available, limited_by=limited_by)


def resident_bytes(process_id: int | None = None) -> int:
    """Return the memory that a process holds, pages of mapped files included; 0 for one that is gone.

    Args:
        process_id: None for this one.
    """
    try:
        return int(psutil.Process(process_id).memory_info().rss)
    except psutil.Error:
        return 0


def is_running(process_id: int) -> bool:
    """Whether there is such a process."""
    return bool(psutil.pid_exists(process_id))


def _cgroup_limits() -> Iterator[tuple[int, int]]:
    """Limit and use in bytes of every control group of memory that this process is in, innermost first.

    Use leaves out the page cache that the kernel would give up first.
    Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of Linux.
    """
    for group in probe_groups("memory"):
        if found := _limit_of(group.folder, *_FILES[group.version]):
            yield found


def _limit_of(group: Path, limit_name: str, used_name: str, cache_key: str) -> tuple[int, int] | None:
    with contextlib.suppress(OSError, ValueError):
        limit = int((group / limit_name).read_text(encoding="ascii"))  # "max" is a ValueError: no limit
        used = int((group / used_name).read_text(encoding="ascii"))
        stat = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        cache = next((int(line.split()[1]) for line in stat if line.startswith(f"{cache_key} ")), 0)
        return limit, max(0, used - cache)
    return None


def _address_space() -> int | None:
    """Bytes of address space that RLIMIT_AS leaves this process, None where it is not limited."""
    if os.name != "posix":
        return None
    import resource  # noqa: PLC0415 - not on Windows

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else max(0, limit - psutil.Process().memory_info().vms)
