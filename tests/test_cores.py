"""cores.py: threads for physical, fast cores that this process may use, and no more than its quota."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_embed.fit import cgroups, cores
from gguf_embed.fit.cores import usable_cores

PERIOD_US = 100_000


class Linux:
    """A machine whose /sys, control groups and /proc lie in a folder; at first they are empty and psutil says 16."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.patch, self.proc, self.root = patch, folder / "proc-self-cgroup", folder / "cgroup"
        self.devices = folder / "devices"
        patch.setattr(cores, "_DEVICES", self.devices)
        patch.setattr(cgroups, "_CGROUP_ROOT", self.root)
        patch.setattr(cgroups, "_OWN_GROUPS", self.proc)
        for module in (cores, cgroups):
            patch.setattr(module, "sys", SimpleNamespace(platform="linux"))
        self.psutil_says(16)
        self.may_use(range(16))

    def psutil_says(self, n_physical):
        """What a platform that cpu files are missing on falls back to."""
        self.patch.setattr(cores, "psutil", SimpleNamespace(cpu_count=lambda *, logical: logical or n_physical))

    def may_use(self, cpus):
        """Set the affinity mask of the process."""
        self.patch.setattr(os, "sched_getaffinity", lambda _: set(cpus), raising=False)

    def has(self, *siblings, name="core_cpus_list"):
        """Write cores, each as the kernel lists its threads; the process may use them all."""
        allowed = set()
        for listed in siblings:
            first, last = int(listed.replace("-", ",").split(",")[0]), int(listed.replace("-", ",").split(",")[-1])
            for cpu in range(first, last + 1) if "-" in listed else {first, last}:
                self.write(f"system/cpu/cpu{cpu}/topology/{name}", f"{listed}\n")
                allowed.add(cpu)
        self.may_use(allowed)

    def write(self, name, text):
        """One file under /sys/devices."""
        path = self.devices / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def capacities(self, *values):
        """What each CPU in turn can do, 1024 the most."""
        for cpu, value in enumerate(values):
            self.write(f"system/cpu/cpu{cpu}/cpu_capacity", f"{value}\n")

    def be_in(self, *lines):
        """Write what /proc says of the process."""
        self.proc.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")

    def group(self, path, **files):
        """Write a group's files; an underscore in a name stands for its first dot."""
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("_", ".", 1)).write_text(f"{text}\n", encoding="utf-8")


@pytest.fixture
def linux(tmp_path, monkeypatch):
    return Linux(tmp_path, monkeypatch)


def desktop(linux):
    """Eight cores with two threads each, numbered as Linux does: CPU 8 is the second thread of core 0."""
    linux.has(*(f"{core},{core + 8}" for core in range(8)))


def hybrid(linux):
    """Eight performance cores with two threads each, CPUs 0 to 15, and sixteen efficiency cores."""
    linux.has(*(f"{cpu}-{cpu + 1}" for cpu in range(0, 16, 2)), *(str(cpu) for cpu in range(16, 32)))
    linux.write("cpu_core/cpus", "0-15\n")
    linux.write("cpu_atom/cpus", "16-31\n")


def plain(linux, n_cores=16):
    """Cores of one thread each."""
    linux.has(*(str(cpu) for cpu in range(n_cores)))


# --- Cores and threads ------------------------------------------------------------------------------------------


def test_hyperthreads_are_not_cores(linux):
    """Sixteen threads of eight cores are eight."""
    desktop(linux)
    assert usable_cores() == 8


def test_the_older_name_of_the_file_serves_too(linux):
    """Kernels before core_cpus_list have thread_siblings_list."""
    linux.has("0,2", "1,3", name="thread_siblings_list")
    assert usable_cores() == 2


def test_cores_whose_threads_are_many_and_apart(linux):
    """Four threads a core, listed as spans and as single numbers."""
    for cpu in range(8):
        core = cpu % 4 // 2
        linux.write(f"system/cpu/cpu{cpu}/topology/core_cpus_list", f"{2 * core}-{2 * core + 1},{2 * core + 4},"
                    f"{2 * core + 5}\n")  # fmt: skip
    linux.may_use(range(8))
    assert usable_cores() == 2


@pytest.mark.parametrize(
    ("cpus", "expected"), [({0, 8, 1}, 2), ({0, 8}, 1), ({3}, 1), ({0, 1, 2}, 3), (set(range(16)), 8)]
)
def test_only_cores_in_the_affinity_mask_count(linux, cpus, expected):
    """Three hyperthreads of two cores are two."""
    desktop(linux)
    linux.may_use(cpus)
    assert usable_cores() == expected


# --- Fast and slow ----------------------------------------------------------------------------------------------


def test_intel_s_efficiency_cores_do_not_count(linux):
    """Eight performance cores with hyperthreads and sixteen efficiency cores: eight."""
    hybrid(linux)
    assert usable_cores() == 8


@pytest.mark.parametrize(
    ("cpus", "expected"), [(range(16, 32), 16), ({16, 17, 18}, 3), ({0, 1, 2, 16, 17}, 2), ({15, 31}, 1)]
)
def test_efficiency_cores_serve_where_the_mask_has_no_others(linux, cpus, expected):
    """A process held to efficiency cores has those; one that has both is as fast as its performance cores."""
    hybrid(linux)
    linux.may_use(cpus)
    assert usable_cores() == expected


def test_little_cores_do_not_count(linux):
    """An RK3588: four A55 and four A76."""
    plain(linux, 8)
    linux.capacities(*[397] * 4, *[1024] * 4)
    assert usable_cores() == 4


def test_middle_cores_count(linux):
    """A telephone with little, middle and big cores: what is near the biggest."""
    plain(linux, 8)
    linux.capacities(*[250] * 4, *[760] * 3, 1024)
    assert usable_cores() == 4


@pytest.mark.parametrize(("little", "expected"), [(530, 4), (614, 4), (615, 8)])
def test_above_six_tenths_is_fast(linux, little, expected):
    """The line is six tenths of the biggest, so that an RK3588 has four cores whether or not its clocks are known."""
    plain(linux, 8)
    linux.capacities(*[little] * 4, *[1024] * 4)
    assert usable_cores() == expected


def test_dense_cores_count_in_full(linux):
    """AMD's Zen 5c beside Zen 5: the kernel names no kind, and their capacity is near."""
    linux.has(*(f"{2 * core}-{2 * core + 1}" for core in range(12)))
    linux.capacities(*[1024] * 8, *[660] * 16)
    assert usable_cores() == 12


@pytest.mark.parametrize(("cpus", "expected"), [({0, 1, 2}, 3), ({0, 1, 7}, 1)])
def test_the_biggest_is_that_of_the_mask(linux, cpus, expected):
    """Held to little cores, they are all there is."""
    plain(linux, 8)
    linux.capacities(*[397] * 4, *[1024] * 4)
    linux.may_use(cpus)
    assert usable_cores() == expected


@pytest.mark.parametrize("values", [[1024] * 8, [0] * 8, [1024, "x", *[100] * 6], [1024, *[100] * 6], [1024, "é"]])
def test_capacities_that_say_nothing_leave_all(linux, values):
    """All alike, all nothing, garbage in one file, or a file missing."""
    plain(linux, 8)
    linux.capacities(*values)
    assert usable_cores() == 8


@pytest.mark.parametrize("text", ["", "\n", "garbage", "0-", "-", "0-3-9", "40-60", "3-0", "1e9", "é"])
def test_a_list_of_fast_cpus_that_names_none_of_ours_leaves_all(linux, text):
    """Whatever stands there, a machine keeps cores to compute on."""
    plain(linux, 4)
    linux.may_use({1, 2, 3})
    linux.write("cpu_core/cpus", text)
    assert usable_cores() == 3


def test_a_list_as_long_as_a_lie_takes_no_memory(linux):
    """Spans are not counted out."""
    plain(linux, 4)
    linux.write("cpu_core/cpus", "2-99999999999999\n")
    assert usable_cores() == 2


# --- Where the kernel says nothing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_physical", "cpus", "expected"), [(6, range(12), 6), (6, range(4), 4), (None, range(3), 3), (None, {7}, 1)]
)
def test_without_files_psutil_says_it_and_the_mask_holds(linux, monkeypatch, n_physical, cpus, expected):
    """Containers, WSL and odd kernels: psutil's cores, then the system's CPUs, never more than may be used."""
    linux.psutil_says(n_physical)
    linux.may_use(cpus)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert usable_cores() == expected


@pytest.mark.parametrize("text", ["", "garbage", "1-", "9-12", "8"])
def test_threads_that_are_told_of_some_cpus_alone_are_not_believed(linux, text):
    """One file with garbage, or one that leaves its own CPU out: psutil is asked instead."""
    desktop(linux)
    linux.psutil_says(5)
    linux.write("system/cpu/cpu15/topology/core_cpus_list", text)
    assert usable_cores() == 5
    linux.may_use(range(8))
    assert usable_cores() == 8


@pytest.mark.parametrize("n_cpus", [5, None])
def test_a_system_without_masks_has_its_physical_cores(linux, monkeypatch, n_cpus):
    """Windows: psutil's, then the CPUs, then one."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: n_cpus)
    assert usable_cores() == 16
    linux.psutil_says(None)
    assert usable_cores() == (n_cpus or 1)


# --- Quotas -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("250000 100000", 2), ("50000 100000", 1), ("200000 100000", 2), ("199999 100000", 1), ("30000 10000", 3),
     ("9000000 100000", 16), ("max 100000", 16)],
)  # fmt: skip
def test_a_container_has_the_whole_cpus_of_its_quota(linux, quota, expected):
    """Two and a half of sixteen are two, for threads that wait for each other spin; a half is one."""
    plain(linux)
    linux.be_in("0::/")
    linux.group(".", cpu_max=quota)
    assert usable_cores() == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"), [(250_000, 100_000, 2), (50_000, 100_000, 1), (75_000, 25_000, 3), (-1, 1000, 16)]
)
@pytest.mark.parametrize(("line", "path"), [("3:cpu:/docker/1a", "cpu/docker/1a"), ("3:cpu:/docker/1a", "cpu"),
                                            ("3:cpu,cpuacct:/it", "cpu/it"), ("3:cpu,cpuacct:/it", "cpu,cpuacct/it"),
                                            ("3:cpu,cpuacct:/docker/1a", "cpu,cpuacct")])  # fmt: skip
def test_version_1_has_its_own_files(linux, line, path, quota, period, expected):
    """Two files instead of one, -1 for none, and controllers that may be mounted together."""
    plain(linux)
    linux.be_in("5:cpuset,cpuacct:/it", line, "0::/")
    linux.group(path, cpu_cfs_quota_us=quota, cpu_cfs_period_us=period)
    assert usable_cores() == expected


def test_the_tightest_of_nested_groups_counts(linux):
    """A pod's limit holds its containers, and no file beyond the root does."""
    plain(linux)
    linux.be_in("0::/pod/container/scope")
    linux.group("pod", cpu_max="400000 100000")
    linux.group("pod/container", cpu_max="600000 100000")
    linux.group("pod/container/scope", cpu_max="max 100000")
    linux.group("pod/neighbour", cpu_max="100000 100000")
    linux.group("..", cpu_max="100000 100000")
    assert usable_cores() == 4
    linux.group("pod/container", cpu_max="300000 100000")
    assert usable_cores() == 3
    linux.group(".", cpu_max="20000 10000")
    assert usable_cores() == 2


def test_other_controllers_say_nothing_of_time(linux):
    """A group of cpuset or cpuacct is none of cpu, whatever lies in its folder."""
    plain(linux)
    linux.be_in("5:cpuset:/it", "4:cpuacct:/it", "1:name=systemd:/it")
    for folder in ("cpuset/it", "cpuacct/it", "cpu/it", "name=systemd/it"):
        linux.group(folder, cpu_max="100000 100000", cpu_cfs_quota_us=100_000, cpu_cfs_period_us=100_000)
    assert usable_cores() == 16


@pytest.mark.parametrize("text", ["", "100000", "a b", "100000 0", "0 100000", "-5 100000", "1 2 3", "é 1"])
def test_a_quota_that_says_nothing_is_none(linux, text):
    """Garbage costs that group's limit alone."""
    plain(linux)
    linux.be_in("0::/outer/inner")
    linux.group("outer", cpu_max="300000 100000")
    linux.group("outer/inner", cpu_max=text)
    assert usable_cores() == 3


@pytest.mark.parametrize("name", ["cpu.cfs_quota_us", "cpu.cfs_period_us"])
def test_half_a_quota_is_none(linux, name):
    """Version 1 needs both files."""
    plain(linux)
    linux.be_in("3:cpu:/it")
    linux.group("cpu/it", cpu_cfs_quota_us=100_000, cpu_cfs_period_us=100_000)
    assert usable_cores() == 1
    (linux.root / "cpu/it" / name).unlink()
    assert usable_cores() == 16


def test_quota_mask_and_kind_hold_together(linux):
    """Six and a half CPUs' time of a hybrid, then a mask of two of its performance cores."""
    hybrid(linux)
    linux.be_in("0::/")
    linux.group(".", cpu_max="650000 100000")
    assert usable_cores() == 6
    linux.may_use({0, 1, 2, 20, 21})
    assert usable_cores() == 2


QUOTAS = st.none() | st.integers(1_000, 20 * PERIOD_US)


@settings(deadline=None, max_examples=25)
@given(st.lists(QUOTAS, min_size=1, max_size=4), st.sets(st.integers(0, 15), min_size=1), st.sampled_from([1, 2]))
def test_never_a_thread_more_than_core_or_quota(quotas, cpus, version):
    """However deep groups lie and whatever the mask: the tightest counts, one thread at the least."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        linux = Linux(Path(folder), patch)
        desktop(linux)
        linux.may_use(cpus)
        paths = ["/".join("abcd"[: depth + 1]) for depth in range(len(quotas))]
        linux.be_in(f"0::/{paths[-1]}" if version == 2 else f"3:cpu:/{paths[-1]}")
        for path, quota in zip(paths, quotas, strict=True):
            if version == 2:
                linux.group(path, cpu_max=f"{quota or 'max'} {PERIOD_US}")
            else:
                linux.group(f"cpu/{path}", cpu_cfs_quota_us=quota or -1, cpu_cfs_period_us=PERIOD_US)
        found = usable_cores()
    n_cores = len({cpu % 8 for cpu in cpus})
    assert found == max(1, min([n_cores, *(quota // PERIOD_US for quota in quotas if quota)]))


# --- Apple ----------------------------------------------------------------------------------------------------------


class Mac:
    """A sysctl that answers, or fails, as it is told; psutil says 10 cores."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.commands: list[tuple[str, ...]] = []
        self.answer: str | Exception = ""
        patch.setattr(cores, "sys", SimpleNamespace(platform="darwin"))
        patch.setattr(cores, "psutil", SimpleNamespace(cpu_count=lambda *, logical: logical or 10))
        patch.setattr(cores.subprocess, "run", self.run)

    def run(self, command, *, timeout, check, **options):
        self.commands.append(tuple(command))
        assert check
        assert timeout <= 10
        if isinstance(self.answer, Exception):
            raise self.answer
        return subprocess.CompletedProcess(command, 0, stdout=self.answer)


@pytest.fixture
def mac(monkeypatch):
    return Mac(monkeypatch)


def test_apple_s_efficiency_cores_do_not_count(mac):
    """Six of ten cores are performance cores, and sysctl was asked for those."""
    mac.answer = "6\n"
    assert usable_cores() == 6
    assert [command[-1] for command in mac.commands] == ["hw.perflevel0.physicalcpu"]


@pytest.mark.parametrize(
    "answer",
    ["", "0\n", "-1\n", "six\n", FileNotFoundError("sysctl"), PermissionError("sandbox"),
     subprocess.CalledProcessError(1, "sysctl"), subprocess.TimeoutExpired("sysctl", 5),
     UnicodeDecodeError("ascii", b"\xff", 0, 1, "not ASCII")],
    ids=repr,
)  # fmt: skip
def test_a_mac_that_does_not_tell_has_its_physical_cores(mac, answer):
    """Intel's Macs do not know that name; a sandbox may have no sysctl."""
    mac.answer = answer
    assert usable_cores() == 10


# --- Here -----------------------------------------------------------------------------------------------------------


def test_this_machine_has_a_core():
    """Asked for real: at least one, and no more than the CPUs of the process."""
    affinity = getattr(os, "sched_getaffinity", None)
    assert 1 <= usable_cores() <= (len(affinity(0)) if affinity else os.cpu_count())
