"""Control groups of Linux that this process is in, as folders, from its own up to the root.

It must not know what is limited in them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Group", "probe_groups"]

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One control group.

    Attributes:
        folder: where its files are.
        version: 1 or 2, of the interface; they name files differently.
    """

    folder: Path
    version: int

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise ValueError(f"version is {self.version}; it is 1 or 2")


def probe_groups(controller: str) -> Iterator[Group]:
    """Every control group that may hold this process back, innermost first; none outside Linux.

    Args:
        controller: the kernel's name of what they limit, such as "memory" or "cpu".

    Source: cgroups(7); Documentation/admin-guide/cgroup-v2.rst of Linux.
    """
    if sys.platform != "linux":
        return
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError:
        return
    for line in lines:
        fields = line.split(":", 2)
        if len(fields) != 3:  # after the last line feed
            continue
        _, controllers, path = fields
        if controllers == "":
            root, version = _CGROUP_ROOT, 2
        elif controller in controllers.split(","):
            root, version = _CGROUP_ROOT / controller, 1
            # Controllers that are mounted as one, such as cpu,cpuacct, mostly have a link for each.
            root = root if _is_folder(root) else _CGROUP_ROOT / controllers
        else:
            continue
        # Inside a container the path may be the host's; its own group is then the root of the mount.
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents) if _is_folder(folder) else (root,):
            if not group.is_relative_to(root):
                break
            yield Group(folder=group, version=version)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # before Python 3.14: a parent that may not be searched, a name too long
        return False
