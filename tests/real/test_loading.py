"""The step-down ladder: what happens where memory that looked free is refused when a model is loaded."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import synthetic
from fake_hub import FakeHub

from gguf_embed import AllocationError, DoesNotFitError, Embedder, Limits, loading
from gguf_embed.cli.app import run
from gguf_embed.engine import decoder
from gguf_embed.engine import session as engine
from gguf_embed.fit import hardware
from gguf_embed.native.buffers import Buffer
from gguf_embed.native.reserve import can_reserve

REPO = "someone/synthetic-GGUF"
MIB = 1 << 20


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine whose free memory holds still."""
    still = dataclasses.replace(hardware.probe(), accelerators=(), ram_available_bytes=8 << 30, ram_limited_by="")
    monkeypatch.setattr(hardware, "probe", lambda: still)
    monkeypatch.setenv("GGUF_EMBED_N_THREADS", "1")
    return still


class Loads:
    """Stands in for Session: refuses what `is_refused` says of its settings, loads the rest, and remembers both."""

    def __init__(self, is_refused):
        self.is_refused, self.tried, self.real = is_refused, [], loading.Session

    def __call__(self, settings):
        self.tried.append((settings.path.name, settings.layout.n_ctx, settings.layout.n_ubatch))
        if len(self.tried) > 40:
            pytest.fail("the same is tried for ever")
        if self.is_refused(settings):
            raise AllocationError(f"{settings.path.name}: memory was refused", path=settings.path)
        return self.real(settings)


@pytest.fixture
def refuse(monkeypatch):
    """Refuse the loads that a function of their settings names; without one, none."""

    def install(is_refused=lambda _: False):
        loads = Loads(is_refused)
        monkeypatch.setattr(loading, "Session", loads)
        return loads

    return install


@pytest.fixture
def hub(qwen3, qwen3_quantized, monkeypatch):
    """A hub with the synthetic Qwen3 as F32, F16 and Q8_0."""
    with FakeHub() as fake:
        fake.add(REPO, "synthetic-F32.gguf", qwen3.read_bytes())
        for quant in ("F16", "Q8_0"):
            fake.add(REPO, f"synthetic-{quant}.gguf", qwen3_quantized(quant).read_bytes())
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        yield fake


@pytest.fixture
def margins(tmp_path):
    """What was written down for this machine; {} where nothing was."""

    def load():
        path = tmp_path / "state" / "margins.json"
        if not path.exists():
            return {}
        [entry] = json.loads(path.read_text()).values()
        return entry["margins"]

    return load


@pytest.fixture
def logs():
    """Commands set the log up for the whole process; it is put back as it was."""
    package = logging.getLogger("gguf_embed")
    before = (package.handlers[:], package.propagate, package.level)
    yield
    package.handlers[:], package.propagate = before[:2]
    package.setLevel(before[2])


def above(n_ubatch):
    """Refuse larger decodes."""
    return lambda settings: settings.layout.n_ubatch > n_ubatch


def warnings_of(caplog):
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


# Stepping down


def test_a_plan_that_fits_is_loaded_in_silence(qwen3, refuse, margins, caplog):
    """Nothing is said, learnt or tried twice where memory is not refused."""
    loads = refuse()
    with Embedder(qwen3) as model:
        assert model.load() == qwen3
    assert loads.tried == [(qwen3.name, 1024, 512)]
    assert (warnings_of(caplog), margins()) == ([], {})


def test_a_refusal_takes_the_next_smaller_layout(qwen3, refuse, caplog):
    """One warning says what was planned and what runs instead, and the vectors are right."""
    with Embedder(qwen3) as model:
        right = model.encode(["the capital", "a" * 400])
    refuse(above(128))
    with Embedder(qwen3) as model:
        assert model.plan.layout.n_ubatch == 512
        rows = model.encode(["the capital", "a" * 400])
        assert (model.plan.layout.n_ubatch, model.plan.layout.n_ctx) == (128, 1024)
        assert model.plan.cost.is_measured
    assert np.einsum("ij,ij->i", rows, right).min() > 0.99999
    [words] = warnings_of(caplog)
    before, after = words.split("; running ")
    assert "memory was refused on host for F32 on host with n_ctx 1,024, n_ubatch 512 (" in before
    assert after.startswith("F32 on host with n_ctx 1,024, n_ubatch 128 (")
    assert "gguf-embed doctor --forget" in after


def test_a_refusal_is_remembered(qwen3, refuse, margins, caplog):
    """The next Embedder plans the smaller layout at once, without a failure or a word."""
    loads = refuse(above(256))
    Embedder(qwen3).load()
    learnt = margins()
    assert list(learnt) == ["host"]
    loads.tried.clear()
    caplog.clear()
    with Embedder(qwen3) as model:
        assert model.plan.layout.n_ubatch == 256
        model.load()
    assert loads.tried == [(qwen3.name, 1024, 256)]
    assert (warnings_of(caplog), margins()) == ([], learnt)


def test_what_was_learnt_leaves_smaller_models_alone(qwen3, bert, refuse):
    """A margin keeps away what is as large as what failed, and no more."""
    before = Embedder(bert).plan.layout
    refuse(lambda settings: settings.path == qwen3 and settings.layout.n_ubatch > 256)
    Embedder(qwen3).load()
    with Embedder(bert) as small:
        assert small.plan.layout == before
        assert small.encode("the cat").shape == (64,)


def test_doctor_forgets(qwen3, refuse, margins, logs, monkeypatch, capsys):
    """`gguf-embed doctor --forget` drops what was learnt, and the first plan is made again."""
    refuse(above(256))
    Embedder(qwen3).load()
    assert Embedder(qwen3).plan.layout.n_ubatch == 256
    monkeypatch.setenv("GGUF_EMBED_OFFLINE", "1")
    assert run(["doctor"]) in (0, 6)
    assert "margin host" in capsys.readouterr().out
    assert run(["doctor", "--forget"]) in (0, 6)
    captured = capsys.readouterr()
    assert "forgotten" in captured.err
    assert "margin host" not in captured.out
    assert margins() == {}
    assert Embedder(qwen3).plan.layout.n_ubatch == 512
    run(["doctor", "--forget"])
    assert "there was nothing to forget" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_costs_only_the_next_failure(qwen3, refuse, tmp_path, monkeypatch):
    """Without a place to remember, the smaller layout runs all the same."""
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("GGUF_EMBED_STATE_DIR", str(tmp_path / "file" / "state"))
    loads = refuse(above(256))
    for _ in range(2):
        with Embedder(qwen3) as model:
            assert model.encode("the").shape == (256,)
    assert [n_ubatch for _, _, n_ubatch in loads.tried] == [512, 256, 512, 256]


def test_free_memory_that_moves_does_not_try_for_ever(qwen3, refuse, machine, monkeypatch):
    """Where a little more is free at each look, as on any machine, each failure still leads to less."""
    looks = []

    def probe():
        looks.append(None)
        return dataclasses.replace(machine, ram_available_bytes=machine.ram_available_bytes + len(looks) * MIB)

    monkeypatch.setattr(hardware, "probe", probe)
    loads = refuse(above(128))
    Embedder(qwen3).load()
    assert len(loads.tried) < 20


def test_an_override_is_told_once(tmp_path, refuse, caplog):
    """That the file's header is overridden is said once, however many layouts are tried."""
    path = synthetic.write_qwen3(tmp_path / "silent.gguf", pooling_type=None)
    loads = refuse(above(128))
    Embedder(path, pooling_type="last").load()
    assert len(loads.tried) == 3
    assert sum("pooling is None in the file" in words for words in warnings_of(caplog)) == 1


# Several quantizations


def test_a_smaller_file_on_disk_is_next(hub, refuse, caplog):
    """After the layouts of one quantization come those of the next that is on disk; nothing is downloaded for it."""
    for quant in ("F32", "Q8_0"):
        Embedder(f"{REPO}:{quant}").load()
    served, seen = hub.served_bytes, len(hub.requests)
    loads = refuse(lambda settings: "Q8_0" not in settings.path.name)
    with Embedder(REPO, prefer="quality") as model:
        assert model.plan.quant == "F32"
        assert model.load().name == "synthetic-Q8_0.gguf"
        assert (model.plan.quant, model.plan.facts.quant) == ("Q8_0", "Q8_0")
        assert model.encode("the").shape == (256,)
    assert [name for name, *_ in loads.tried][-2:] == ["synthetic-F32.gguf", "synthetic-Q8_0.gguf"]
    assert len(set(loads.tried)) == len(loads.tried)  # nothing twice, as the F16 under another file's name would be
    assert hub.served_bytes == served
    assert all(one.path.startswith("/api/models/") for one in hub.requests[seen:])  # a listing, as every time
    [words] = warnings_of(caplog)
    assert "refused on host for F32" in words
    assert "running Q8_0 on host" in words


def test_a_file_keeps_its_name_through_two_failures(hub, refuse):
    """After the first file, layouts of the second are refused too: what runs is still called by its own name."""
    for quant in ("F32", "F16"):
        Embedder(f"{REPO}:{quant}").load()
    loads = refuse(lambda settings: "F32" in settings.path.name or settings.layout.n_ubatch > 128)
    with Embedder(REPO, prefer="quality") as model:
        assert model.load().name == "synthetic-F16.gguf"
        assert sum("F16" in name for name, *_ in loads.tried) >= 2
        assert model.plan.quant == model.plan.facts.quant == "F16"
        assert model.fingerprint == Embedder(f"{REPO}:F16").fingerprint


def test_a_named_quantization_is_not_replaced(hub, refuse):
    """Who asks for one by name gets that one or an error, whatever else is on disk."""
    for quant in ("F32", "Q8_0"):
        Embedder(f"{REPO}:{quant}").load()
    refuse(lambda settings: "F32" in settings.path.name)
    with pytest.raises(DoesNotFitError):
        Embedder(f"{REPO}:F32").load()


def test_what_was_planned_from_a_sibling_is_planned_again(hub, qwen3_quantized, refuse, caplog):
    """A file that was fetched is weighed by its own header before it loads; nothing is said, no reason gets lost."""
    own = Embedder(qwen3_quantized("F16")).plan
    loads = refuse()
    with Embedder(REPO, prefer="quality", limits=Limits(memory_bytes=own.required_bytes + MIB // 8)) as model:
        before = model.plan
        model.load()
        after = model.plan
    assert (before.quant, before.facts.is_exact) == ("F16", False)
    assert (after.quant, after.facts, after.layout) == ("F16", own.facts, before.layout)
    assert after.cost.host.weights_bytes == own.cost.host.weights_bytes
    assert [one.quant for one in after.rejected] == [one.quant for one in before.rejected] == ["F32", "Q8_0"]
    assert len(loads.tried) == 1
    assert warnings_of(caplog) == []


# Nothing loads


def test_nothing_that_loads_is_an_error_of_its_own(qwen3, refuse, margins, caplog):
    """Down to the smallest context all is refused: DoesNotFitError with the shortfall; nothing is learnt from it."""
    loads = refuse(lambda _: True)
    with pytest.raises(DoesNotFitError, match="memory was refused when it was loaded") as caught:
        Embedder(qwen3).load()
    assert (loads.tried[0][1:], loads.tried[-1][1:]) == ((1024, 512), (512, 128))
    assert len(set(loads.tried)) == len(loads.tried)
    assert [one.quant for one in caught.value.rejected] == ["F32"]
    assert (margins(), warnings_of(caplog)) == ({}, [])


def test_no_session_leaks(qwen3, monkeypatch):
    """Every model and context that was opened on the way down is closed again."""
    opened = []

    class Model(engine.Model):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            opened.append(self)

    real = decoder.Context

    def context(model, layout, **options):
        if layout.n_ubatch >= 128:  # all but the canary's
            raise AllocationError("refused", path=model.path)
        made = real(model, layout, **options)
        opened.append(made)
        return made

    monkeypatch.setattr(engine, "Model", Model)
    monkeypatch.setattr(decoder, "Context", context)
    with pytest.raises(DoesNotFitError):
        Embedder(qwen3).load()
    assert len(opened) >= 8
    assert all(one._handle is None for one in opened)


def test_an_embedder_may_be_tried_again(qwen3, refuse):
    """After nothing could be loaded, the same Embedder loads once there is memory."""
    loads = refuse(lambda _: True)
    with Embedder(qwen3) as model:
        with pytest.raises(DoesNotFitError):
            model.load()
        loads.is_refused = lambda _: False
        assert model.encode("the").shape == (256,)
        assert model.plan.layout.n_ubatch == 512


# Asking the system first


def test_what_the_system_refuses_is_never_given_to_llama_cpp(qwen3, refuse, margins, monkeypatch, caplog):
    """A reservation that is refused steps down as a failed load does, before llama.cpp could end the process."""
    loads = refuse()
    asked = []

    def refusing(n_bytes, *, n_threads):
        asked.append((n_bytes, n_threads))
        return n_bytes < asked[0][0] - 3 * MIB

    monkeypatch.setattr(loading, "can_reserve", refusing)
    with Embedder(qwen3, limits=Limits(n_threads=2)) as model:
        first = model.plan
        model.load()
    assert asked[0] == (first.cost.host_bytes - first.cost.host.process_bytes, 2)
    assert loads.tried == [(qwen3.name, 1024, model.plan.layout.n_ubatch)]
    assert model.plan.layout.n_ubatch < 512
    assert len(warnings_of(caplog)) == 1
    assert list(margins()) == ["host"]


def test_a_refused_reservation_names_file_and_size(qwen3, refuse, monkeypatch, caplog):
    """The log tells what was asked of the system; where nothing is given, nothing is loaded."""
    loads = refuse()
    monkeypatch.setattr(loading, "can_reserve", lambda *_, **__: False)
    with caplog.at_level(logging.INFO, "gguf_embed.loading"), pytest.raises(DoesNotFitError):
        Embedder(qwen3).load()
    assert f"{qwen3.name}: the system refuses this process 1" in caplog.text
    assert loads.tried == []


def test_reservations():
    """A little is always to be had; more than any address space is not, and is no error."""
    assert can_reserve(0, n_threads=1)
    assert can_reserve(MIB, n_threads=2)
    assert not can_reserve(1 << 60, n_threads=1)
    assert not can_reserve(1 << 80, n_threads=1)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux")
def test_reservations_under_a_limit():
    """Under RLIMIT_AS a buffer, a thread's stack and the slack count; what was refused or granted is given back."""
    program = """
        import resource, psutil
        from gguf_embed.native.reserve import can_reserve
        used = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20),) * 2)
        asked = [(100, 1), (350, 1), (100, 60), (250, 1), (100, 1)] * 5
        print(*[int(can_reserve(size << 20, n_threads=n)) for size, n in asked])
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["1", "0", "0", "1", "1"] * 5


# Plan and truth


@pytest.mark.parametrize(("more_mib", "is_told"), [(-20, False), (60, False), (70, True)])
def test_more_than_planned_is_told(qwen3, refuse, caplog, more_mib, is_told):
    """llama.cpp may allocate up to 64 MiB more than the plan says without a word, and any less."""
    loads = refuse()
    real = loads.real

    def larger(settings):
        session = real(settings)
        session.buffers = (*session.buffers, Buffer(part="compute", place="CPU", size_bytes=more_mib * MIB))
        return session

    loads.real = larger
    with Embedder(qwen3) as model:
        model.load()
    told = [words for words in warnings_of(caplog) if words.startswith("host memory: llama.cpp allocated")]
    assert bool(told) is is_told


def test_a_plan_is_true(qwen3, bert, starter, caplog):
    """What llama.cpp allocates is within 1 MiB of what was planned for it."""
    for path in (qwen3, bert, starter):
        with Embedder(path) as model:
            model.load()
            planned = model.plan.cost.host_bytes - model.plan.cost.host.process_bytes
            real = sum(buffer.size_bytes for buffer in model._model._session.buffers)
            assert abs(real - planned) <= MIB
    assert warnings_of(caplog) == []
