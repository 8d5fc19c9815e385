"""What llama.cpp would allocate, asked of a header in a child process, against what it allocates."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic
from fake_hub import FakeHub

from gguf_embed import Embedder, ModelLoadError
from gguf_embed.engine.session import Session
from gguf_embed.engine.settings import SessionSettings
from gguf_embed.fit import dryrun
from gguf_embed.fit.dryrun import DryRun
from gguf_embed.fit.memory import memory_cost
from gguf_embed.models.header import load_facts
from gguf_embed.native.buffers import Buffer
from gguf_embed.native.layout import Layout
from gguf_embed.native.simulate import simulate

SMALL = Layout(n_ctx=512, n_ubatch=128, n_seq_max=8)
SKIPPING = dataclasses.replace(SMALL, skips_head=True)
ENCODER = Layout(n_ctx=128, n_ubatch=128, n_seq_max=64)
LAYOUTS = {
    "qwen3": (SMALL, SKIPPING, dataclasses.replace(SKIPPING, kv_type="q8_0"), Layout(n_ctx=1024, skips_head=True)),
    "bert": (ENCODER, dataclasses.replace(ENCODER, n_seq_max=4)),
    "starter": (Layout(n_ctx=256, n_ubatch=256), Layout(n_ctx=512)),
}
MIB = 1 << 20


@pytest.fixture
def dry_run(tmp_path):
    """One that remembers in this test alone."""
    return DryRun(cache_dir=tmp_path / "dry-runs", devices="this machine")


@pytest.fixture
def children(monkeypatch):
    """Count the child processes that are started."""
    started = []
    real = subprocess.run

    def counting(*arguments, **options):
        started.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(subprocess, "run", counting)
    return started


@pytest.fixture
def header_only(qwen3, tmp_path):
    """The header of the synthetic Qwen3 and its facts, without the weights."""
    facts = load_facts(qwen3)
    path = tmp_path / "header-alone.gguf"
    path.write_bytes(qwen3.read_bytes()[: facts.header_bytes])
    return path, facts


def child_says(monkeypatch, code):
    """Let the child be a Python that runs `code`."""
    monkeypatch.setattr(dryrun, "child_command", lambda _: [sys.executable, "-c", code])


def allocated(path, facts, layout):
    """The buffers of a session that is really loaded."""
    settings = SessionSettings(
        path=path, pooling_type=facts.pooling_type, layout=layout, n_ctx_max=layout.n_ctx, n_batch=layout.n_ubatch
    )
    session = Session(settings)
    session.close()
    return session.buffers


def size_of(buffers, part):
    return sum(buffer.size_bytes for buffer in buffers if buffer.part == part)


# What it says


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_buffers_are_those_of_a_real_load(name, request, dry_run):
    """To the byte of llama.cpp's log: compute and output buffers; KV and weights are what the closed form says."""
    path = request.getfixturevalue(name)
    facts = load_facts(path)
    for layout, sizes in zip(LAYOUTS[name], dry_run.measure(path, facts, LAYOUTS[name]), strict=True):
        real, closed = allocated(path, facts, layout), memory_cost(facts, layout).host
        assert sizes.compute_bytes == ()
        assert sizes.host_compute_bytes == size_of(real, "compute") > 0
        assert sizes.host_output_bytes == size_of(real, "output")
        assert abs(closed.kv_bytes - size_of(real, "KV")) <= MIB / 100  # the log has hundredths of a MiB
        assert abs(closed.weights_bytes - size_of(real, "model")) <= MIB / 10


def test_a_header_alone_is_enough(dry_run, qwen3, header_only, tmp_path):
    """The first bytes of a file give the whole file's answer, leave those bytes as they are and nothing beside them."""
    path, facts = header_only
    before = sorted(tmp_path.iterdir())
    whole = DryRun(cache_dir=tmp_path / "other", devices="").measure(qwen3, facts, [SMALL, SKIPPING])
    assert dry_run.measure(path, facts, [SMALL, SKIPPING]) == whole
    assert None not in whole
    assert path.stat().st_size == facts.header_bytes
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "other", dry_run.cache_dir])


def test_layouts_are_answered_in_their_order(dry_run, qwen3):
    """Each layout has its own answer, also where some are remembered; a larger context takes more."""
    facts = load_facts(qwen3)
    wide = dataclasses.replace(SMALL, n_ctx=1024, n_ubatch=512)
    [alone] = dry_run.measure(qwen3, facts, [wide])
    small, again, skipping = dry_run.measure(qwen3, facts, [SMALL, wide, SKIPPING])
    assert again == alone
    assert small.host_compute_bytes < alone.host_compute_bytes
    assert skipping.host_output_bytes < small.host_output_bytes


def test_no_such_context_is_none_for_that_layout_alone(dry_run, tmp_path):
    """What llama.cpp cannot create is None and not remembered; the layouts beside it keep their answers."""
    path = synthetic.write_qwen3(tmp_path / "narrow.gguf", shape=synthetic.Qwen3Shape(n_layer=1, head_dim=40))
    blocks = dataclasses.replace(SMALL, kv_type="q8_0")  # of 32, which 40 is no multiple of
    one, none, other = dry_run.measure(path, load_facts(path), [SMALL, blocks, SKIPPING])
    assert none is None
    assert None not in (one, other)
    assert len(list(dry_run.cache_dir.iterdir())) == 2


def test_simulate_in_this_process(qwen3):
    """Buffers of each context, none of weights or caches, and a reason where there can be no such context."""
    other = dataclasses.replace(SMALL, load_mode="mmap")
    one, two = simulate(qwen3, [SMALL, other], pooling_type="last")
    assert {buffer.part for buffer in one} == {"compute", "output"}
    assert one == two


def test_what_llama_cpp_would_abort_on_is_not_asked(dry_run, tmp_path):
    """A decode that is no whole multiple of n_seq_max fails an assertion of mean pooling; it is no context here."""
    path = synthetic.write_bert(tmp_path / "mean.gguf", pooling_type=1)
    layouts = [Layout(n_ctx=100, n_ubatch=100, n_seq_max=64), Layout(n_ctx=128, n_ubatch=128, n_seq_max=64)]
    none, sizes = dry_run.measure(path, load_facts(path), layouts)
    assert (none, sizes is None) == (None, False)


@pytest.mark.parametrize(
    ("place", "device", "expected"),
    [("CUDA0", "CUDA0", True), ("CUDA_Host", "CUDA0", False), ("CUDA1", "CUDA0", False), ("CPU", "CUDA0", False),
     ("CUDA0_Host", "CUDA0", False), ("MTL0", "MTL0", True), ("CPU_REPACK", "CPU", True)],
)  # fmt: skip
def test_a_buffer_lies_where_its_name_says(place, device, expected):
    """Pinned host memory is the host's, whatever device it is pinned for."""
    assert Buffer(part="compute", place=place, size_bytes=1).is_on(device) is expected


# What it remembers


def test_an_answer_is_kept(dry_run, qwen3, children):
    """The second question starts no child; a file with the same header under another name shares the answer."""
    facts = load_facts(qwen3)
    first = dry_run.measure(qwen3, facts, [SMALL, SKIPPING])
    assert len(children) == 1
    copy = qwen3.with_name("copy.gguf")
    shutil.copy(qwen3, copy)
    assert dry_run.measure(copy, facts, [SKIPPING, SMALL]) == first[::-1]
    assert len(children) == 1


@pytest.mark.parametrize("change", ["header", "layout", "pooling", "build", "version", "devices"])
def test_an_answer_holds_for_its_question_alone(dry_run, qwen3, children, tmp_path, monkeypatch, change):
    """Another header, layout, pooling, build of llama.cpp or machine is asked anew."""
    facts, path, layout, asked = load_facts(qwen3), qwen3, SMALL, dry_run
    child_says(monkeypatch, f"print({json.dumps({'buffers': [[]]})!r})")
    dry_run.measure(path, facts, [layout])
    if change == "header":
        path = tmp_path / "other.gguf"
        path.write_bytes(qwen3.read_bytes().replace(b"synthetic", b"Synthetic", 1))
    elif change == "layout":
        layout = SKIPPING
    elif change == "pooling":
        facts = dataclasses.replace(facts, pooling_type="mean")
    elif change == "build":
        monkeypatch.setattr(dryrun, "library_stamp", lambda: "rebuilt")
    elif change == "version":
        monkeypatch.setattr(dryrun, "version", lambda _: "9.9.9")
    else:
        asked = dataclasses.replace(dry_run, devices="another machine")
    asked.measure(path, facts, [layout])
    assert len(children) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"compute_bytes": 3}', '{"compute_bytes": [], "x": 1}'])
def test_a_damaged_answer_is_asked_again(dry_run, qwen3, children, monkeypatch, damage):
    """What a crash left of an answer counts for nothing, and is replaced."""
    facts = load_facts(qwen3)
    child_says(monkeypatch, f"print({json.dumps({'buffers': [[]]})!r})")
    first = dry_run.measure(qwen3, facts, [SMALL])
    [kept] = dry_run.cache_dir.iterdir()
    kept.write_text(damage)
    assert dry_run.measure(qwen3, facts, [SMALL]) == first
    assert len(children) == 2
    assert dry_run.measure(qwen3, facts, [SMALL]) == first
    assert len(children) == 2


def test_a_folder_that_cannot_be_written_costs_only_time(qwen3, children, tmp_path, monkeypatch):
    """The answer is given all the same, and asked for anew the next time."""
    (tmp_path / "file").write_text("no folder")
    nowhere = DryRun(cache_dir=tmp_path / "file" / "dry-runs", devices="")
    child_says(monkeypatch, f"print({json.dumps({'buffers': [[]]})!r})")
    facts = load_facts(qwen3)
    assert nowhere.measure(qwen3, facts, [SMALL])[0] is not None
    assert nowhere.measure(qwen3, facts, [SMALL])[0] is not None
    assert len(children) == 2


# What goes wrong


def test_a_child_that_aborts_is_the_file_s_fault(dry_run, qwen3, monkeypatch):
    """llama.cpp's abort takes the child down, and the error names the file and llama.cpp's own words, not a stack."""
    words = "/llama.cpp/ggml/src/ggml.c:3354: GGML_ASSERT(n > 0) failed"
    stack = f"{words}\\n#0 ggml_abort ()\\n360\\t../csu/libc-start.c: No such file or directory.\\n"
    child_says(monkeypatch, f"import os; os.write(2, b'{stack}'); os.abort()")
    with pytest.raises(ModelLoadError, match=r"synthetic-qwen3-F32\.gguf makes llama\.cpp abort") as caught:
        dry_run.measure(qwen3, load_facts(qwen3), [SMALL])
    assert caught.value.path == qwen3
    assert "GGML_ASSERT(n > 0) failed" in str(caught.value)
    assert "libc-start" not in str(caught.value)


def test_an_abort_under_a_memory_limit_is_not_the_file_s_fault(dry_run, qwen3, monkeypatch):
    """Where the process is held to little address space, an abort tells nothing of the file."""
    child_says(monkeypatch, "import os; os.abort()")
    monkeypatch.setattr(dryrun, "_is_squeezed", lambda: True)
    assert dry_run.measure(qwen3, load_facts(qwen3), [SMALL]) == [None]


@pytest.mark.parametrize(
    "code", ["raise SystemExit(3)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "print('hello')", ""]
)
def test_a_child_that_fails_gives_no_answer(dry_run, qwen3, monkeypatch, code):
    """One that dies of something else, or whose answer is none, leaves the plan to the closed form."""
    child_says(monkeypatch, code)
    assert dry_run.measure(qwen3, load_facts(qwen3), [SMALL, SKIPPING]) == [None, None]
    assert not dry_run.cache_dir.exists()


def test_a_child_that_hangs_is_given_up(dry_run, qwen3, monkeypatch):
    """After the time limit there is no answer, and no error."""
    monkeypatch.setattr(dryrun, "_TIMEOUT_S", 0.3)
    child_says(monkeypatch, "import time; time.sleep(60)")
    assert dry_run.measure(qwen3, load_facts(qwen3), [SMALL]) == [None]


def test_a_child_that_cannot_be_started_gives_no_answer(dry_run, qwen3, monkeypatch):
    """An interpreter that is gone is no error."""
    monkeypatch.setattr(dryrun, "child_command", lambda _: ["/nowhere/python"])
    assert dry_run.measure(qwen3, load_facts(qwen3), [SMALL]) == [None]


@pytest.mark.parametrize("is_frozen", [False, True])
def test_without_an_interpreter_there_is_no_answer(dry_run, qwen3, monkeypatch, children, is_frozen):
    """An application that carries its Python inside cannot start a child, and is not asked to."""
    if is_frozen:
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    else:
        monkeypatch.setattr(sys, "executable", "")
    assert dry_run.measure(qwen3, load_facts(qwen3), [SMALL]) == [None]
    assert children == []


def test_no_room_for_a_hole_gives_no_answer(dry_run, header_only, monkeypatch, children):
    """Where the temporary folder cannot take the hollow file, nobody is asked."""
    path, facts = header_only
    large = dataclasses.replace(facts, layer_sizes=(1 << 61, 1 << 61))
    assert dry_run.measure(path, large, [SMALL]) == [None]
    assert children == []


def test_a_header_that_llama_cpp_refuses_has_its_reason(dry_run, tmp_path, monkeypatch):
    """A model that lacks a tensor is refused before its weights move, with llama.cpp's words and the file's name."""
    real = synthetic.qwen3_tensors
    monkeypatch.setattr(
        synthetic, "qwen3_tensors", lambda *a, **k: (one for one in real(*a, **k) if one[0] != "blk.1.ffn_up.weight")
    )
    path = synthetic.write_qwen3(tmp_path / "lacking.gguf")
    facts = load_facts(path)
    path.write_bytes(path.read_bytes()[: facts.header_bytes])
    with pytest.raises(ModelLoadError, match=r"lacking\.gguf.*blk\.1\.ffn_up\.weight") as caught:
        dry_run.measure(path, facts, [SMALL])
    assert caught.value.path == path
    assert "/gguf-embed-" not in str(caught.value)  # the hollow file's folder, gone by now


def test_an_abort_names_the_file_of_the_hub(qwen3, tmp_path, monkeypatch):
    """Of a header that is kept under its checksum, the error tells the file that the user asked for."""
    monkeypatch.setattr("gguf_embed.selection.DryRun", dryrun.DryRun)  # not what the run's other tests have asked
    child_says(monkeypatch, "import os; os.abort()")
    with FakeHub() as hub:
        hub.add("someone/synthetic-GGUF", "synthetic-F32.gguf", qwen3.read_bytes())
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(ModelLoadError, match=r"^synthetic-F32\.gguf makes llama\.cpp abort"):
            _ = Embedder("someone/synthetic-GGUF:F32").plan


def test_the_program_answers_on_stdout(qwen3):
    """Run as a module it takes a request and writes an answer, and a refusal is an answer."""
    request = {"path": str(qwen3), "pooling_type": "last", "layouts": [dataclasses.asdict(SMALL)]}
    command = [sys.executable, "-m", "gguf_embed.native.simulate"]
    folder = Path(dryrun.__file__).parents[2]
    for path, key in ((str(qwen3), "buffers"), ("/nowhere.gguf", "error")):
        text = json.dumps(request | {"path": path})
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True, cwd=folder)
        assert list(json.loads(done.stdout)) == [key]
