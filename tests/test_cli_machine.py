"""`doctor` and the refusals of `quantize`: what they say of this machine, and their exit codes."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fake_hub import FakeHub
from huggingface_hub.utils import close_session
from synthetic import write_bert

from gguf_embed.cli.app import run
from gguf_embed.fit import diagnosis, hardware
from gguf_embed.fit.diagnosis import System
from gguf_embed.fit.hardware import Accelerator, Hardware
from gguf_embed.fit.margins import load_margins, margins_path, remember_margin

REPO = "someone/Tiny-GGUF"
CARD = Accelerator(name="CUDA0", description="a card", total_bytes=8 << 30, free_bytes=7 << 30)
WELL = System(platform="linux", machine="x86_64", has_nvidia=True, can_offload=True)


@pytest.fixture(autouse=True)
def logs():
    """Commands set the log up for the whole process; it is put back as it was."""
    package = logging.getLogger("gguf_embed")
    before = (package.handlers[:], package.propagate, package.level)
    yield
    package.handlers[:], package.propagate = before[:2]
    package.setLevel(before[2])


@dataclasses.dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def shell(capsys):
    """Run one command line in this process."""

    def call(*arguments):
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def machine(monkeypatch):
    """Let doctor look at another machine."""

    def install(*devices, system=WELL, limited_by=""):
        known = Hardware(accelerators=devices, ram_total_bytes=16 << 30, ram_available_bytes=8 << 30, n_cores=4,
                         processor="a processor", ram_limited_by=limited_by)  # fmt: skip
        monkeypatch.setattr(hardware, "probe", lambda: known)
        monkeypatch.setattr(
            diagnosis, "probe_system", lambda visible: dataclasses.replace(system, visible_devices=visible)
        )
        return known

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return install


class Answering(BaseHTTPRequestHandler):
    """A hub that lists its models, or says what the server was told to say."""

    def do_GET(self):
        self.server.asked.append(self.path)
        status, body = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Quiet."""


@pytest.fixture
def front_page(monkeypatch):
    """A hub that answers as it is told; yields its server."""
    close_session()  # the shared client remembers the proxies it was made with
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.asked, server.answer = [], (200, b"[]")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    yield server
    server.shutdown()
    server.server_close()
    close_session()


# doctor


def test_a_machine_that_is_right(shell, machine, front_page):
    """Exit code 0; build, processor, memory, devices, folders, hub and versions, one line each, on stdout."""
    machine(CARD)
    done = shell("doctor")
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("\nall is well\n")
    facts = dict(line.split(None, 1) for line in done.out.splitlines() if not line.startswith(("all", "made", "learnt"))
                 and line)  # fmt: skip
    assert "built for GPUs" in facts["llama.cpp"]
    assert facts["processor"] == "a processor, 4 cores for this process"
    assert facts["memory"] == "8.00 GiB free of 16.0 GiB"
    assert facts["CUDA0"] == "a card, discrete, 7.00 GiB free of 8.00 GiB"
    assert facts["hub"].startswith(f"{front_page.url} answers in 0.")
    assert "gguf-embed 0." in facts["versions"]
    assert front_page.asked == ["/api/models?limit=1"]


def test_a_gpu_that_is_not_used(shell, machine, front_page):
    """Exit code 6, what is so, and what to type."""
    machine(system=dataclasses.replace(WELL, can_offload=False))
    done = shell("doctor")
    assert (done.code, done.err) == (6, "")
    assert "problem: an NVIDIA GPU is present, but this llama-cpp-python is CPU-only\n  fix: CMAKE_ARGS=" in done.out
    assert "built for the CPU only" in done.out
    assert "all is well" not in done.out


def test_hidden_devices_are_read_from_the_environment(shell, machine, front_page, monkeypatch):
    """CUDA_VISIBLE_DEVICES reaches the diagnosis."""
    machine()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    done = shell("doctor")
    assert done.code == 6
    assert "CUDA_VISIBLE_DEVICES is '-1', which hides every NVIDIA GPU\n  fix: unset CUDA_VISIBLE_DEVICES" in done.out


def test_a_note_is_no_problem(shell, machine, front_page):
    """A container that holds the memory is worth a word, and exit code 0."""
    machine(CARD, limited_by="cgroup")
    done = shell("doctor")
    assert done.code == 0
    assert "note: memory is held to less than the machine has by cgroup\n" in done.out
    assert "(held by cgroup)" in done.out
    assert "fix:" not in done.out
    assert done.out.endswith("all is well\n")


@pytest.mark.parametrize("is_well", [True, False])
def test_as_json(shell, machine, front_page, is_well):
    """The same facts and the same exit code for a program; sizes are bytes, and stdout holds nothing else."""
    machine(CARD) if is_well else machine()
    done = shell("doctor", "--json")
    assert (done.code, done.err) == (0 if is_well else 6, "")
    facts = done.json
    assert facts["hardware"]["ram_total_bytes"] == 16 << 30
    assert [one["name"] for one in facts["hardware"]["accelerators"]] == ["CUDA0"] * is_well
    assert [one["is_problem"] for one in facts["findings"]] == [True] * (not is_well)
    assert facts["system"]["has_nvidia"] is True
    assert facts["hub"]["is_reachable"] is True
    assert facts["margins"] == {}
    assert set(facts["versions"]) == {"gguf-embed", "llama-cpp-python", "huggingface-hub", "numpy"}


def test_a_hub_out_of_reach_is_said_and_no_failure(shell, machine):
    """What is on disk runs without it."""
    machine(CARD)
    done = shell("doctor")  # nobody listens at the tests' endpoint
    assert done.code == 0
    assert "http://127.0.0.1:9 is not reached: ConnectError" in done.out
    facts = shell("doctor", "--json").json["hub"]
    assert facts["is_reachable"] is False
    assert "ConnectError" in facts["why"]


@pytest.mark.parametrize("answer", [(503, b"[]"), (404, b"{}"), (200, b"<html>log in</html>")])
def test_what_is_no_hub_is_not_reached(shell, machine, front_page, answer):
    """A login page or a failing server is told, and is no failure of this machine."""
    machine(CARD)
    front_page.answer = answer
    done = shell("doctor")
    assert done.code == 0
    assert f"{front_page.url} is not reached: " in done.out
    assert len(front_page.asked) == 1


def test_an_endpoint_that_is_none(shell, machine, monkeypatch):
    """A mistyped address is told as such."""
    machine(CARD)
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.co")
    done = shell("doctor")
    assert done.code == 0
    assert "huggingface.co is not reached: " in done.out


def test_offline_asks_nobody(shell, machine, front_page, monkeypatch):
    """With the network off the hub is not tried, and that is said."""
    machine(CARD)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = shell("doctor")
    assert done.code == 0
    assert f"{front_page.url} is not reached: offline, as configured" in done.out
    assert shell("doctor", "--json").json["hub"]["is_reachable"] is None
    assert front_page.asked == []


def test_folders_tell_what_they_hold(shell, machine, tmp_path, monkeypatch):
    """Folders that are there tell their size, those that are not tell the disk's room; links count once."""
    machine(CARD)
    monkeypatch.setenv("GGUF_EMBED_OFFLINE", "1")
    blob = tmp_path / "hub" / "blobs" / "one"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"x" * (1 << 20))
    (tmp_path / "hub" / "pointer.gguf").symlink_to(blob)
    (tmp_path / "hub" / "broken.gguf").symlink_to(tmp_path / "nowhere")
    folders = {folder["name"]: folder for folder in shell("doctor", "--json").json["folders"]}
    assert folders["models"]["used_bytes"] == pytest.approx(1 << 20, rel=0.01)
    assert folders["models"]["is_there"] is True
    assert folders["learnt here"]["is_there"] is False
    assert all(folder["free_bytes"] > 0 for folder in folders.values())
    assert not (tmp_path / "state").exists()  # looking makes nothing
    assert f"{tmp_path / 'hub'} (1 MiB used, " in shell("doctor").out


def test_forget(shell, machine, tmp_path, monkeypatch):
    """What failed loads taught is shown, and dropped when asked; whether there was anything is said on stderr."""
    known = machine(CARD)
    monkeypatch.setenv("GGUF_EMBED_OFFLINE", "1")
    remember_margin(tmp_path / "state", known, {"CUDA0": 1 << 30})
    done = shell("doctor")
    assert (done.code, done.err) == (0, "")
    assert "margin CUDA0  1.00 GiB, learnt from failed loads; --forget drops it" in done.out
    assert shell("doctor", "--json").json["margins"] == {"CUDA0": 1 << 30}
    done = shell("doctor", "--forget", "--json")
    assert (done.code, done.err, done.json["margins"]) == (0, "forgotten\n", {})
    assert load_margins(tmp_path / "state", known) == {}
    assert shell("doctor", "--forget").err == "there was nothing to forget\n"


def test_forget_that_cannot_be_done(shell, machine, tmp_path, monkeypatch):
    """A file that cannot be deleted is an error with its path, exit code 4."""
    machine(CARD)
    monkeypatch.setenv("GGUF_EMBED_OFFLINE", "1")
    margins_path(tmp_path / "state").mkdir(parents=True)
    done = shell("doctor", "--forget")
    assert (done.code, done.out) == (4, "")
    assert f"{margins_path(tmp_path / 'state')} cannot be deleted" in done.err


def test_this_machine(shell, monkeypatch):
    """On whatever machine this runs, doctor has an answer."""
    monkeypatch.setenv("GGUF_EMBED_OFFLINE", "1")
    done = shell("doctor", "--json")
    assert done.code in (0, 6)
    assert done.json["hardware"]["n_cores"] >= 1


# quantize: what is refused before anything is made


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub whose repository has small quantizations alone."""
    close_session()
    with FakeHub() as fake:
        body = write_bert(tmp_path / "bert.gguf").read_bytes()
        for quant in ("Q4_K_M", "Q6_K"):
            fake.add(REPO, f"tiny-{quant}.gguf", body)
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        yield fake
        close_session()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("all-minilm-l6-v2", "--to", "Q9_X"), 2, "'Q9_X' is no quantization that can be made; it is one of F32, F16"),
        (("all-minilm-l6-v2", "--to", "IQ1_S"), 2, "'IQ1_S' is no quantization that can be made"),
        (("all-minilm-l6-v2",), 2, "Missing option '--to'"),
        (("all-minilm-l6-v2", "--to", "Q4_K_S", "--threads", "0"), 2, "0 is not in the range"),
        (("all-minilm-l6v2", "--to", "Q4_K_S"), 3, "Did you mean all-minilm-l6-v2"),
        (("./nowhere.gguf", "--to", "Q4_K_S"), 3, "there is no file 'nowhere.gguf'"),
        (("jina-embeddings-v4-text-retrieval", "--to", "Q3_K_M"), 3, "Q4_K_M"),
        (("all-minilm-l6-v2", "--to", "Q4_K_S", "--from", "Q6_K"), 3, "F16, Q8_0"),
        ((REPO, "--to", "Q3_K_M"), 3, "Q4_K_M, Q6_K"),
    ],
)
def test_quantize_is_refused_with_words_and_a_code(shell, hub, arguments, code, words):
    """What cannot be made is told on stderr, with what there is; nothing is downloaded or printed."""
    done = shell("quantize", *arguments)
    assert (done.code, done.out) == (code, "")
    assert words in " ".join(done.err.split())
    assert hub.served_bytes < 10_000


def test_a_missing_quantization_is_offered(shell):
    """Where a quantization is in no source, the error has the command that makes it."""
    done = shell("embed", "-m", "all-minilm-l6-v2:Q4_K_S", "a text")
    assert (done.code, done.out) == (3, "")
    assert "'gguf-embed quantize all-minilm-l6-v2 --to Q4_K_S' makes it from Q8_0" in done.err
    done = shell("embed", "-m", "jina-embeddings-v4-text-retrieval:Q3_K_M", "a text")
    assert done.code == 3
    assert "quantize" not in done.err


def test_a_missing_quantization_of_a_repository_is_offered(shell, hub):
    """Of a repository that the registry does not know too, where it has something to start from."""
    done = shell("plan", f"{REPO}:Q4_K_S")
    assert done.code == 3
    assert "has no quant 'Q4_K_S'; it has Q4_K_M, Q6_K" in done.err
    assert "quantize" not in done.err
    hub.add(REPO, "tiny-Q8_0.gguf", hub.files[REPO, "tiny-Q6_K.gguf"])
    assert f"'gguf-embed quantize {REPO} --to Q4_K_S' makes it from Q8_0" in shell("plan", f"{REPO}:Q4_K_S").err
