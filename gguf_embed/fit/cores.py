"""Cores that llama.cpp's threads should get: physical, fast, and this process's to use.

It must not know models or devices.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from gguf_embed.fit.cgroups import Group, probe_groups

__all__ = ["usable_cores"]

_DEVICES = Path("/sys/devices")
_SYSCTL = ("/usr/sbin/sysctl", "-n", "hw.perflevel0.physicalcpu")
_SYSCTL_TIMEOUT_S = 5


def usable_cores() -> int:
    """Count the cores that one thread each makes llama.cpp fastest on, at least 1.

    They are physical cores and not hyperthreads, performance cores and not efficiency cores, in this process's affinity
    mask, and no more than the CPU time that its control groups allow: threads spin at barriers, so that one more than
    the quota burns what the others need.

    Source: common_cpu_get_num_math() of llama.cpp's common/common.cpp, which knows neither the mask nor the quota.
    """
    if sys.platform == "darwin":
        return _apple_cores() or _physical_cores()
    affinity = getattr(os, "sched_getaffinity", None)
    if affinity is None:
        return _physical_cores()
    cpus = _fast_cpus(affinity(0))
    n_cores = _distinct_cores(cpus) or min(_physical_cores(), len(cpus))
    return max(1, min([n_cores, *_quotas()]))


def _physical_cores() -> int:
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def _apple_cores() -> int | None:
    """Performance cores of Apple Silicon, None on a Mac that has but one kind."""
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        done = subprocess.run(_SYSCTL, capture_output=True, encoding="ascii", check=True, timeout=_SYSCTL_TIMEOUT_S)
        return max(0, int(done.stdout)) or None
    return None


def _fast_cpus(cpus: set[int]) -> set[int]:
    """Those that are not efficiency cores; all of them where they are alike or the kernel does not say.

    Fast is above six tenths of the fastest: of ARM's cores the little ones are below, as the A55 of an RK3588 with 530
    against the A76's 1024, clocks counted or not.

    Source: tools/perf/Documentation/intel-hybrid.txt, Documentation/ABI/testing/sysfs-devices-system-cpu and
    arch/arm64/boot/dts/rockchip/rk3588-base.dtsi of Linux; the six tenths are ours.
    """
    performance = _cpu_list(_DEVICES / "cpu_core" / "cpus")
    if fast := {cpu for cpu in cpus if any(cpu in span for span in performance)}:
        return fast
    try:
        capacities = {cpu: int(_cpu_file(cpu, "cpu_capacity").read_text(encoding="ascii")) for cpu in cpus}
    except (OSError, ValueError):
        return cpus
    largest = max(capacities.values(), default=0)
    return {cpu for cpu, capacity in capacities.items() if 10 * capacity > 6 * largest} or cpus


def _distinct_cores(cpus: set[int]) -> int | None:
    """How many cores the CPUs are threads of, None where the kernel does not say it of each.

    Source: Documentation/admin-guide/cputopology.rst of Linux; the second name is what older kernels have.
    """
    cores = set()
    for cpu in cpus:
        for name in ("core_cpus_list", "thread_siblings_list"):
            siblings = _cpu_list(_cpu_file(cpu, f"topology/{name}"))
            if any(cpu in span for span in siblings):
                cores.add(siblings)
                break
        else:
            return None
    return len(cores)


def _cpu_file(cpu: int, name: str) -> Path:
    return _DEVICES / "system" / "cpu" / f"cpu{cpu}" / name


def _cpu_list(path: Path) -> tuple[range, ...]:
    """The kernel's notation of CPUs, such as 0-3,8; nothing where it cannot be read."""
    try:
        spans = [span.partition("-") for span in path.read_text(encoding="ascii").split(",")]
        return tuple(range(int(first), int(last or first) + 1) for first, _, last in spans)
    except (OSError, ValueError):
        return ()


def _quotas() -> Iterator[int]:
    """Whole CPUs' worth of time that each control group of this process allows, 0 for less than one."""
    for group in probe_groups("cpu"):
        with contextlib.suppress(OSError, ValueError):  # "max" is a ValueError: no quota
            quota, period = _quota_of(group)
            if quota > 0 and period > 0:  # version 1 has -1 for none
                yield quota // period


def _quota_of(group: Group) -> tuple[int, int]:
    """Microseconds of CPU time, and of the period in which they may be used.

    Raises:
        OSError, ValueError: the group sets none.

    Source: Documentation/admin-guide/cgroup-v2.rst and Documentation/scheduler/sched-bwc.rst of Linux.
    """
    if group.version == 2:
        quota, period = (group.folder / "cpu.max").read_text(encoding="ascii").split()
    else:
        quota = (group.folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
        period = (group.folder / "cpu.cfs_period_us").read_text(encoding="ascii")
    return int(quota), int(period)
