"""Choosing, refusing and supervising a quantization, without llama.cpp: fake headers and fake children."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import sys
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_embed.errors import BackendError, StorageError, UnsupportedModelError
from gguf_embed.models import quantize
from gguf_embed.native.ggml import GGUFHeader, TensorInfo
from gguf_embed.native.quantize import _MAX_TEXT_BYTES, FTYPES, _cut

BY_BITS = sorted(FTYPES, key=quantize.BITS.__getitem__)


def tensor(name, *shape, type_name="F16", bits=16.0):
    """A row of a tensor table."""
    return TensorInfo(name=name, type_name=type_name, shape=shape, size_bytes=int(math.prod(shape) * bits / 8))


def header(*tensors):
    """A header with these tensors and nothing else."""
    return GGUFHeader(version=3, data_offset=1000, metadata={}, array_lengths={}, tensors=tensors)


MODEL = header(
    tensor("token_embd.weight", 1024, 150_000),
    tensor("blk.0.ffn_up.weight", 1024, 3072),
    tensor("blk.0.attn_norm.weight", 1024, type_name="F32", bits=32),
)


def child(script, tmp_path, on_progress=lambda done, total: None):
    """Run a Python script in the quantizer's place."""
    quantize._run_child([sys.executable, "-c", script], "m.gguf cannot be quantized to Q4_K_M", tmp_path, on_progress)


def test_every_quantization_has_its_bits():
    """What can be made can be compared and estimated."""
    assert set(quantize.BITS) == set(FTYPES)
    assert len(set(FTYPES.values())) == len(FTYPES)


def test_an_unknown_quantization_is_refused_with_the_list(tmp_path):
    """The name is checked before any file is looked at; those that need an importance matrix are not in the list."""
    for quant in ("Q9_X", "q4_k_m", "IQ2_XXS", "IQ3_XXS", "Q2_K_S"):
        with pytest.raises(ValueError, match=rf"'{quant}' is not one of F32, F16, .*Q4_K_M"):
            quantize.quantize_file(tmp_path / "none.gguf", tmp_path / "new" / "out.gguf", quant)
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_are_value_errors(tmp_path):
    """Threads below zero, a folder as target and the source as target are the caller's mistakes."""
    source = tmp_path / "model.gguf"
    source.write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="n_threads is -1"):
        quantize.quantize_file(source, tmp_path / "out.gguf", "Q8_0", n_threads=-1)
    with pytest.raises(ValueError, match="is a folder; name the file"):
        quantize.quantize_file(source, tmp_path, "Q8_0")
    with pytest.raises(ValueError, match="is the source itself"):
        quantize.quantize_file(source, tmp_path / ".." / tmp_path.name / "model.gguf", "Q8_0")
    assert source.read_bytes() == b"GGUF"


@pytest.mark.parametrize(
    ("source_quant", "quant"),
    [("Q4_K_M", "Q5_K_M"), ("Q3_K_M", "Q4_K_M"), ("Q8_0", "Q8_0"), ("Q8_0", "F16"), ("F16", "BF16"), ("F32", "F32"),
     ("Q4_0", "Q4_K_M")],
)  # fmt: skip
def test_bits_that_are_gone_do_not_come_back(source_quant, quant, tmp_path):
    """A source of fewer or equal bits is refused, and the message says what to take instead."""
    path = tmp_path / "model.gguf"
    with pytest.raises(UnsupportedModelError, match=rf"is {source_quant}, .* {quant} has .* F16 or Q8_0") as caught:
        quantize._check_bits(path, source_quant, quantize.BITS[source_quant], quant)
    assert caught.value.path == path


@pytest.mark.parametrize(("source_quant", "n_warnings"), [("F32", 0), ("F16", 0), ("Q8_0", 0), ("Q6_K", 1)])
def test_a_coarse_source_is_taken_with_a_warning(source_quant, n_warnings, tmp_path, caplog):
    """F16 and Q8_0 are good sources; what is coarser and still finer than the target is named once."""
    with caplog.at_level(logging.WARNING):
        quantize._check_bits(tmp_path / "model.gguf", source_quant, quantize.BITS[source_quant], "Q4_K_M")
    assert len(caplog.records) == n_warnings


def test_the_quant_of_an_unnamed_file_is_measured():
    """Without a file_type, the type that most weights have counts, norms aside."""
    unnamed = header(
        tensor("token_embd.weight", 256, 1000, type_name="Q6_K", bits=6.5625),
        tensor("blk.0.ffn_up.weight", 256, 4000, type_name="IQ2_S", bits=2.5625),
        tensor("output_norm.weight", 10_000_000, type_name="F32", bits=32),
    )
    assert quantize._measured_quant(unnamed) == ("IQ2_S", 2.5625)


def test_fewer_bits_are_never_estimated_larger():
    """The estimates of a file follow the bits of the quantizations, and F16 is what the file has."""
    sizes = [quantize.estimate_size(MODEL, quant) for quant in BY_BITS]
    assert all(small <= large for small, large in pairwise(sizes))
    assert quantize.estimate_size(MODEL, "F16") == 1000 + sum(one.size_bytes for one in MODEL.tensors)


def test_rows_that_take_a_larger_type_are_estimated_so():
    """A model whose rows are no multiple of 256 needs more room than its quantization says."""
    odd, even = (header(tensor("blk.0.ffn_up.weight", n, 3072)) for n in (384, 512))
    per_weight = [(quantize.estimate_size(one, "Q4_K_M") - 1000) / (n * 3072) for one, n in ((odd, 384), (even, 512))]
    assert per_weight[0] > per_weight[1] * 1.2


@pytest.mark.parametrize(
    "name", ["position_embd.weight", "token_types.weight", "blk.0.ffn_up.bias", "token_embd_norm.weight"]
)
def test_what_llama_cpp_leaves_alone_is_estimated_as_it_is(name):
    """Positions, token types, biases and norms keep their bytes in every quantization."""
    rows = () if name.endswith(("bias", "norm.weight")) else (512,)
    kept = header(tensor(name, 384, *rows, type_name="F32", bits=32))
    assert {quantize.estimate_size(kept, quant) for quant in FTYPES} == {1000 + kept.tensors[0].size_bytes}


def test_too_little_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    """What is free and what is needed are in the message, and a margin stays for everything else."""
    need = quantize.estimate_size(MODEL, "Q4_K_M")
    usage = type("usage", (), {"free": need})
    monkeypatch.setattr(quantize.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"122 MiB free; the Q4_K_M file needs 186 MiB") as caught:
        quantize._check_room(tmp_path, need, "Q4_K_M")
    assert caught.value.path == tmp_path
    usage.free = need + quantize._DISK_MARGIN_BYTES
    quantize._check_room(tmp_path, need, "Q4_K_M")


def test_the_cache_names_its_blobs_by_checksum(tmp_path):
    """A link to a blob of the Hugging Face cache is not read again; any other file is."""
    digest = "ab" * 32
    blob = tmp_path / "blobs" / digest
    blob.parent.mkdir()
    blob.write_bytes(b"anything")
    link = tmp_path / "model.gguf"
    link.symlink_to(blob)
    assert quantize._source_sha256(link) == digest
    for name in ("a" * 40, "plain.gguf"):  # a git blob's name is no sha256
        other = tmp_path / "blobs" / name
        other.write_bytes(b"anything")
        assert quantize._source_sha256(other) == hashlib.sha256(b"anything").hexdigest()


def test_partials_of_dead_runs_are_cleared_and_no_others(tmp_path):
    """Under the target's lock, its partials are garbage; another target's are not, however alike the name."""
    target = tmp_path / "model[1]+Q4_K_M.gguf"
    stale = [tmp_path / f"{target.name}.{pid}.partial" for pid in (1, 99_999, os.getpid())]
    kept = [
        tmp_path / name for name in ("model1Q4_K_M.gguf.7.partial", f"x{target.name}.7.partial", f"{target.name}.part")
    ]
    for path in (*stale, *kept):
        path.write_bytes(b"half")
    with quantize._locked(target):
        assert not [path for path in stale if path.exists()]
        assert all(path.exists() for path in kept)


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    """What the disk refuses is named as such."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot take the file"), quantize._locked(tmp_path / "file" / "out.gguf"):
        pass


def test_a_child_reports_and_ends(tmp_path, caplog):
    """Tensors done are handed on in order, warnings are logged, and a line cut short by death is no line."""
    seen = []
    script = (
        "import json\nfor n in (1, 2): print(json.dumps({'done': n, 'total': 2}), flush=True)\n"
        "print(json.dumps({'warning': '3 of 5 tensor(s) required fallback quantization'}))\nprint('{\"done', end='')"
    )
    child(script, tmp_path, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert "3 of 5 tensor(s) required fallback" in caplog.text


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        pytest.param("print('{\"error\": \"m.gguf: no\"}'); raise SystemExit(1)", BackendError, r"^m\.gguf: no$",
                     id="said"),
        pytest.param("print('{\"error\": \"basic_ios::clear: iostream error\"}'); raise SystemExit(1)", StorageError,
                     "for want of room", id="disk full"),
        pytest.param("raise RuntimeError('unforeseen')", BackendError,
                     "to Q4_K_M: the quantizer ended with code 1.* RuntimeError: unforeseen$", id="bug"),
        pytest.param("raise SystemExit(3)", BackendError, "code 3.* it gave no reason", id="silent"),
    ],
)  # fmt: skip
def test_a_child_that_fails_is_an_error_with_its_reason(script, kind, message, tmp_path):
    """Its own words come first; what it printed last stands in for them."""
    with pytest.raises(kind, match=message):
        child(script, tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_a_child_that_aborts_is_an_error_with_its_last_words(tmp_path):
    """The assertion of ggml is quoted, not the stack that follows it; an unexplained SIGKILL hints at memory."""
    abort = (
        "import os, sys\nsys.stderr.write('/src/llama-quant.cpp:42: GGML_ASSERT(x) failed\\n#0 0x7f in main\\n')\n"
        "sys.stderr.flush(); os.abort()"
    )
    with pytest.raises(BackendError, match=r"stopped by SIGABRT.* llama-quant\.cpp:42: GGML_ASSERT\(x\) failed$"):
        child(abort, tmp_path)
    with pytest.raises(BackendError, match="stopped by SIGKILL, as a machine that is out of memory does"):
        child("import os; os.kill(os.getpid(), 9)", tmp_path)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, BrokenPipeError, RuntimeError])
def test_whatever_is_raised_here_kills_the_child(raised, tmp_path):
    """Ctrl-C and the caller's own errors end the child at once and come through as they are."""

    def stop(_done, _total):
        raise raised

    begun = time.monotonic()
    with pytest.raises(raised):
        child('import time; print(\'{"done": 1, "total": 9}\', flush=True); time.sleep(60)', tmp_path, stop)
    assert time.monotonic() - begun < 10


def test_a_python_that_does_not_start_is_an_error(tmp_path, monkeypatch):
    """An application that carries its interpreter inside would start itself; that is refused, not tried."""
    with pytest.raises(BackendError, match="cannot be started to quantize in"):
        quantize._run_child([str(tmp_path / "no-python")], "m", tmp_path, lambda done, total: None)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(BackendError, match="no Python interpreter of its own"):
        quantize._command(tmp_path / "a", tmp_path / "b", "Q8_0", 0, {})


@pytest.mark.parametrize("first", ["", "/elsewhere"])
def test_the_child_gets_this_processs_import_path(first, monkeypatch, tmp_path):
    """The same package is found, and the working folder only where it is the package's own."""
    root = str(quantize.Path(quantize.__file__).parents[2])
    for path in ([first, "/lib", root], [first, "/lib"]):
        monkeypatch.setattr(sys, "path", path)
        command = quantize._command(tmp_path / "-a.gguf", tmp_path / "b", "Q8_0", 2, {"k": "v"})
        found = quantize.json.loads(command[4])
        assert command[1:3] == ["-P", "-c"]
        assert "" not in found
        assert found.count(root) == 1
        assert [entry for entry in found if entry != root] == [entry for entry in path if entry not in ("", root)]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_texts_are_cut_between_characters(text):
    """What llama.cpp can hold of a text is a beginning of it, whole where it fits."""
    cut = _cut(text)
    assert len(cut) <= _MAX_TEXT_BYTES
    assert text.startswith(cut.decode())
    if len(text.encode()) <= _MAX_TEXT_BYTES:
        assert cut.decode() == text
    else:
        assert len(cut) > _MAX_TEXT_BYTES - 4
