"""host.py: the least of what the system, a container and the process itself allow."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_embed.fit import cgroups, host
from gguf_embed.fit.host import HostMemory, probe_host

GIB, MIB = 1 << 30, 1 << 20
MACHINE = HostMemory(total_bytes=16 * GIB, available_bytes=10 * GIB)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


class Linux:
    """A machine of 16 GiB with 10 free, whose groups and /proc lie in a folder."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.proc, self.root = folder / "proc-self-cgroup", folder / "cgroup"
        self.root.mkdir()
        memory = SimpleNamespace(total=MACHINE.total_bytes, available=MACHINE.available_bytes)
        patch.setattr(cgroups, "_CGROUP_ROOT", self.root)
        patch.setattr(cgroups, "_OWN_GROUPS", self.proc)
        patch.setattr(host.psutil, "virtual_memory", lambda: memory)
        patch.setattr(host, "_address_space", lambda: None)

    def be_in(self, *lines):
        """Write what /proc says of the process."""
        self.proc.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")

    def group(self, path, limit, used=0, cache=0, *, names=V2):
        """Write one group: its limit, its use, and how much of that is page cache."""
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        limit_name, used_name, key = names
        (folder / limit_name).write_text(f"{limit}\n", encoding="ascii")
        (folder / used_name).write_text(f"{used}\n", encoding="ascii")
        (folder / "memory.stat").write_text(f"anon 7\n{key}_not 9\n{key} {cache}\nfile 5\n", encoding="ascii")


@pytest.fixture
def linux(tmp_path, monkeypatch):
    return Linux(tmp_path, monkeypatch)


def test_without_limits_the_machine_is_what_it_is(linux):
    """No groups at all, as outside Linux: the system's own numbers."""
    assert probe_host() == MACHINE


@on_linux
def test_a_group_without_limits_changes_nothing(linux):
    """`max` of version 2 and the huge number of version 1 are no limits."""
    linux.be_in("0::/user.slice")
    linux.group("user.slice", "max", used=5 * GIB)
    assert probe_host() == MACHINE
    linux.be_in("4:memory:/user")
    linux.group("memory/user", 9223372036854771712, used=5 * GIB, names=V1)
    assert probe_host() == MACHINE


@on_linux
@pytest.mark.parametrize(
    ("line", "path", "names"),
    [
        ("0::/system.slice/it.service", "system.slice/it.service", V2),
        ("4:memory:/docker/1a2b", "memory/docker/1a2b", V1),
        ("4:cpu,memory:/docker/1a2b", "memory/docker/1a2b", V1),
    ],
)
def test_a_group_s_limit_less_its_use_can_be_had(linux, line, path, names):
    """4 GiB allowed, 3 used, 1 of them page cache that the kernel gives back: 2 are left."""
    linux.be_in("12:cpuset:/elsewhere", line)
    linux.group(path, 4 * GIB, used=3 * GIB, cache=GIB, names=names)
    assert probe_host() == HostMemory(total_bytes=4 * GIB, available_bytes=2 * GIB, limited_by="cgroup")


@on_linux
def test_a_wide_limit_is_told_only_where_it_holds(linux):
    """A group of 12 GiB, empty, makes the machine smaller, but it is the machine that has no more than 10 free."""
    linux.be_in("0::/it")
    linux.group("it", 12 * GIB)
    assert probe_host() == HostMemory(total_bytes=12 * GIB, available_bytes=10 * GIB)


@on_linux
def test_a_group_in_a_group_has_what_both_allow(linux):
    """The limit may be on a parent, up to the root of the tree, and not beyond."""
    linux.be_in("0::/outer/inner")
    linux.group("outer/inner", 8 * GIB, used=GIB)
    linux.group("outer", 6 * GIB, used=5 * GIB)
    linux.group("..", GIB)
    assert probe_host() == HostMemory(total_bytes=6 * GIB, available_bytes=GIB, limited_by="cgroup")
    linux.group(".", 3 * GIB, used=2 * GIB + 512 * MIB)
    assert probe_host() == HostMemory(total_bytes=3 * GIB, available_bytes=512 * MIB, limited_by="cgroup")


@on_linux
@pytest.mark.parametrize(
    ("line", "path", "names"), [("0::/docker/1a2b", ".", V2), ("4:memory:/docker/1a2b", "memory", V1)]
)
def test_inside_a_container_its_group_is_the_root(linux, line, path, names):
    """The host's path is not there; the limit is at the root of the mount."""
    linux.be_in(line)
    linux.group(path, 2 * GIB, used=GIB, names=names)
    assert probe_host() == HostMemory(total_bytes=2 * GIB, available_bytes=GIB, limited_by="cgroup")


@on_linux
def test_a_machine_with_both_versions_is_limited_by_the_first(linux):
    """A hybrid system keeps memory in version 1 and has an empty tree of version 2 elsewhere."""
    linux.be_in("4:memory:/it", "1:name=systemd:/it", "0::/it")
    linux.group("memory/it", 2 * GIB, used=GIB, names=V1)
    assert probe_host().available_bytes == GIB


@on_linux
def test_a_group_over_its_limit_has_nothing_left(linux):
    """Less than nothing is nothing, and more cache than use is no gift."""
    linux.be_in("0::/it")
    linux.group("it", GIB, used=2 * GIB)
    assert probe_host().available_bytes == 0
    linux.group("it", GIB, used=MIB, cache=2 * MIB)
    assert probe_host().available_bytes == GIB


@on_linux
@pytest.mark.parametrize("name", [*V2[:2], "memory.stat"])
def test_a_group_that_cannot_be_read_is_passed_over(linux, name):
    """A file that is missing or says nothing costs that group's limit alone."""
    linux.be_in("0::/outer/inner")
    linux.group("outer", 3 * GIB, used=GIB)
    linux.group("outer/inner", 2 * GIB, used=GIB)
    (linux.root / "outer/inner" / name).unlink()
    assert probe_host().available_bytes == 2 * GIB


@on_linux
def test_a_group_s_name_need_not_be_ascii(linux):
    """Names of groups are bytes of their makers' choice."""
    linux.proc.write_bytes("0::/größe\n".encode())
    linux.group("größe", 2 * GIB, used=GIB)
    assert probe_host().available_bytes == GIB


@on_linux
@pytest.mark.parametrize("inside", [b"\x0c", b"\xc2\x85", b"\xe2\x80\xa8", b":", b"\xff"])
def test_a_group_s_name_may_hold_what_python_takes_for_something_else(linux, inside):
    """Only a line feed ends a line of /proc, only the first two colons divide it, and it may be no UTF-8."""
    linux.proc.write_bytes(b"0::/it" + inside + b"self\n")
    linux.group(os.fsdecode(b"it" + inside + b"self"), 2 * GIB, used=GIB)
    assert probe_host().available_bytes == GIB


@on_linux
@pytest.mark.parametrize("garbage", ["memory", "4:memory", "", "0::/" + 300 * "a"])
def test_a_line_of_proc_that_says_nothing_costs_that_line_alone(linux, garbage):
    """Fewer fields than three, or a name that no folder can have."""
    linux.be_in(garbage, "0::/it")
    linux.group("it", 2 * GIB, used=GIB)
    assert probe_host().available_bytes == GIB


@on_linux
def test_a_container_s_own_groups_are_not_the_host_s_of_that_name(linux):
    """The path is the host's; that the container too has a system.slice is chance."""
    linux.be_in("0::/system.slice/docker-1a.scope")
    linux.group("system.slice", GIB)
    linux.group(".", 4 * GIB)
    assert probe_host() == HostMemory(total_bytes=4 * GIB, available_bytes=4 * GIB, limited_by="cgroup")


@on_linux
def test_controllers_mounted_as_one_need_no_link_for_each(linux):
    """`cpu,memory` is the folder's name where there is no `memory`."""
    linux.be_in("4:cpu,memory:/it")
    linux.group("cpu,memory/it", 2 * GIB, used=GIB, names=V1)
    assert probe_host().available_bytes == GIB


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_outside_linux_there_are_no_groups(linux, monkeypatch, platform):
    """A folder of that name says nothing there."""
    monkeypatch.setattr(cgroups, "sys", SimpleNamespace(platform=platform))
    linux.be_in("0::/it")
    linux.group("it", 2 * GIB, used=GIB)
    assert probe_host() == MACHINE


SIZES = st.integers(0, 20 * 1024).map(lambda n_mib: n_mib * MIB)


@on_linux
@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(SIZES | st.just("max"), SIZES, SIZES), min_size=1, max_size=4), st.sampled_from([V1, V2]))
def test_the_least_of_all_groups_counts(groups, names):
    """However deep groups lie in each other, the tightest is what can be had, and never less than nothing."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        linux = Linux(Path(folder), patch)
        paths = ["/".join("abcd"[: depth + 1]) for depth in range(len(groups))]
        linux.be_in(f"0::/{paths[-1]}" if names is V2 else f"3:memory:/{paths[-1]}")
        for path, (limit, used, cache) in zip(paths, groups, strict=True):
            linux.group(path if names is V2 else f"memory/{path}", limit, used, cache, names=names)
        found = probe_host()
    room = [limit - max(0, used - cache) for limit, used, cache in groups if limit != "max"]
    assert found.total_bytes == min([16 * GIB, *(limit for limit, _, _ in groups if limit != "max")])
    assert found.available_bytes == max(0, min([10 * GIB, *room]))
    assert (found.limited_by == "cgroup") == (min([10 * GIB, *room]) < 10 * GIB)


@settings(deadline=None, max_examples=25)
@given(SIZES, st.integers(1, 64))
def test_a_limited_address_space_holds_threads_too(room, n_threads):
    """72 MiB a thread are not there for a model; what is left counts where it is the least."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        Linux(Path(folder), patch)
        patch.setattr(host, "_address_space", lambda: room)
        found = probe_host(n_threads=n_threads)
    left = room - n_threads * 72 * MIB
    assert found.available_bytes == max(0, min(10 * GIB, left))
    assert found.limited_by == ("RLIMIT_AS" if left < 10 * GIB else "")
    assert found.total_bytes == 16 * GIB


LIMITED = """
import resource, sys
import psutil
from gguf_embed.fit.host import probe_host

n_threads, room = int(sys.argv[1]), int(sys.argv[2])
limit = psutil.Process().memory_info().vms + room
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
found = probe_host(n_threads=n_threads)
print(found.available_bytes, found.limited_by)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="others count address space in their own ways")
@pytest.mark.parametrize(("n_threads", "expected"), [(1, 440 * MIB), (4, 224 * MIB), (64, 0)])
def test_a_process_under_ulimit_has_what_its_limit_leaves(n_threads, expected):
    """512 MiB of address space, as `ulimit -v` sets it, less the threads'; a process that runs takes a little more."""
    command = [sys.executable, "-c", LIMITED, str(n_threads), str(512 * MIB)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    available, limited_by = done.stdout.split()
    assert limited_by == "RLIMIT_AS"
    assert expected - 8 * MIB <= int(available) <= expected


def test_this_machine_has_memory():
    """Asked for real, there is some, and no more than all of it."""
    found = probe_host()
    assert 0 < found.available_bytes <= found.total_bytes
    assert found.limited_by in ("", "cgroup", "RLIMIT_AS")
