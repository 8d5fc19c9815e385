"""headers.py and facts.py over a hub on loopback: one header speaks for a model, is read once and kept."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from dataclasses import dataclass

import pytest
import synthetic
from fake_hub import COMMIT, FakeHub
from huggingface_hub.utils import close_session

from gguf_embed.config import Config
from gguf_embed.errors import HubError, InvalidGGUFError, UnsupportedModelError
from gguf_embed.fit.planner import Limits
from gguf_embed.models.catalog import Catalog
from gguf_embed.models.facts import fetch_header, find_donor, find_facts
from gguf_embed.models.header import load_facts
from gguf_embed.models.headers import HeaderCache
from gguf_embed.models.hub import Hub, RemoteFile
from gguf_embed.native.ggml import load_header
from gguf_embed.selection import Overrides, select

REPO, UNKNOWN, LISTED = "org/Tiny-GGUF", "someone/Unknown-GGUF", "org/Listed-GGUF"
MIB = 1 << 20
# Bits a weight, as the header of a real file of this class would add up to.
BITS = {"F16": 16.0, "Q8_0": 8.5, "Q6_K": 6.57, "Q4_K_M": 4.96}

REGISTRY = """schema = 1
[models.tiny]
base_repo = "org/Tiny"
license = "MIT"
arch = "qwen3"
pooling_type = "last"
n_embd = 256
max_tokens = 512
ladder = ["F16", "Q8_0", "Q4_K_M", "Q6_K"]
[[models.tiny.discover]]
repo = "org/Listed-GGUF"
quants = {{ Q6_K = {listed_bytes} }}
{files}
"""
FILE = """[[models.tiny.files]]
quant = "{quant}"
repo = "org/Tiny-GGUF"
file = "tiny-{quant}.gguf"
revision = "{commit}"
size_bytes = {size_bytes}
sha256 = "{sha256}"
"""
SHAPE = """[models.tiny.shape]
n_layer = 3
n_embd = 256
n_ff = 512
n_head = 4
n_head_kv = 2
head_dim = 128
n_vocab = 290
"""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The F16 of a model and its facts; other quantizations are its header and as many bytes as they would have."""

    body: bytes
    header_bytes: int
    weights_bytes: int

    def as_quant(self, quant):
        n_bytes = int(self.weights_bytes * BITS[quant] / 16)
        return (
            self.body if quant == "F16" else self.body[: self.header_bytes] + quant.encode() * (n_bytes // len(quant))
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small Qwen3."""
    path = synthetic.write_qwen3(tmp_path_factory.mktemp("tiny") / "tiny-F16.gguf", f16=True)
    facts = load_facts(path)
    return Model(body=path.read_bytes(), header_bytes=facts.header_bytes, weights_bytes=facts.weights_bytes)


@pytest.fixture
def hub(model):
    close_session()  # the shared client remembers the proxies it was made with
    with FakeHub() as fake:
        for quant in ("F16", "Q8_0", "Q4_K_M"):
            fake.add(REPO, f"tiny-{quant}.gguf", model.as_quant(quant))
            fake.add(UNKNOWN, f"unknown-{quant}.gguf", model.as_quant(quant))
        fake.add(LISTED, "tiny.Q6_K.gguf", model.as_quant("Q6_K"))
        yield fake
        close_session()


@pytest.fixture
def catalog(hub, model, tmp_path):
    """Make a catalog whose registry knows the model; with its shape, where asked for."""

    def make(*, with_shape=False, offline=False):
        folder = tmp_path / "config"
        folder.mkdir(exist_ok=True)
        files = [
            FILE.format(quant=quant, commit=COMMIT, size_bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
            for quant in ("F16", "Q8_0", "Q4_K_M")
            for body in [model.as_quant(quant)]
        ]
        listed_bytes = len(model.as_quant("Q6_K")) - model.header_bytes
        text = REGISTRY.format(files="".join(files), listed_bytes=listed_bytes)
        (folder / "models.toml").write_text(text + (SHAPE if with_shape else ""), encoding="utf-8")
        config = Config(endpoint=hub.url, offline=offline, device="cpu", hub_cache=tmp_path / "hub",
                        cache_dir=tmp_path / "cache", state_dir=tmp_path / "state", config_dir=folder)  # fmt: skip
        patient = Hub(endpoint=hub.url, cache_dir=config.hub_cache, offline=offline,
                      max_attempts=2, sleep=lambda _: None)  # fmt: skip
        return Catalog(config, patient)

    return make


@pytest.fixture
def lay(model, tmp_path):
    """Put a pinned file into the cache as an earlier download left it."""

    def lay_file(quant):
        path = tmp_path / "hub" / f"models--{REPO.replace('/', '--')}" / "snapshots" / COMMIT / f"tiny-{quant}.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(model.as_quant(quant))
        return path

    return lay_file


def headers_read(hub):
    """Files that bytes were asked of."""
    return [seen.path.rpartition("/")[2] for seen in hub.requests if seen.method == "GET" and "/resolve/" in seen.path]


def all_facts(catalog, resolved):
    donor = find_donor(catalog, resolved)
    return {source.quant: find_facts(catalog, resolved, source, donor=donor) for source in resolved.sources}


# Headers that are kept


def remote(**changes):
    known = {"repo": REPO, "revision": "main", "file": "a.gguf", "size_bytes": 9, "sha256": None}
    return RemoteFile(**known | changes)


PINNED, SUMMED = {"revision": COMMIT}, {"sha256": "a" * 64}


@pytest.mark.parametrize("changes", [SUMMED, PINNED, SUMMED | PINNED])
def test_a_header_is_kept_by_checksum_or_commit(tmp_path, changes):
    """What cannot change is found again, byte for byte; nothing else lies beside it."""
    cache = HeaderCache(tmp_path / "headers")
    assert cache.find(remote(**changes)) is None
    path = cache.keep(remote(**changes), b"GGUF header")
    assert cache.find(remote(**changes)) == path
    assert path.read_bytes() == b"GGUF header"
    assert list(path.parent.iterdir()) == [path]


def test_a_branch_is_not_kept(tmp_path):
    """A file that may be another one tomorrow is read again."""
    cache = HeaderCache(tmp_path / "headers")
    assert cache.keep(remote(), b"header") is None
    assert cache.find(remote()) is None
    assert not (tmp_path / "headers").exists()


def test_headers_are_told_apart(tmp_path):
    """Another checksum, commit, repository or file has another header; one checksum is one file, wherever it is."""
    cache = HeaderCache(tmp_path / "headers")
    others = [
        {"sha256": "b" * 64},
        PINNED,
        {"revision": "d" * 40},
        PINNED | {"file": "b.gguf"},
        PINNED | {"repo": "x/y"},
    ]
    paths = {cache.keep(remote(**SUMMED), b"first")}
    paths |= {cache.keep(remote(**changes), str(changes).encode()) for changes in others}
    assert len(paths) == 6
    assert [cache.find(remote(**changes)).read_bytes() for changes in others] == [str(one).encode() for one in others]
    assert cache.find(remote(repo="x/y", file="c.gguf", **SUMMED)).read_bytes() == b"first"


def test_the_ones_used_last_are_kept(tmp_path):
    """The folder holds 24 headers; looking one up counts as using it."""
    cache, names = HeaderCache(tmp_path / "headers"), [f"{index:064x}" for index in range(26)]
    for index, name in enumerate(names[:24]):
        path = cache.keep(remote(sha256=name), b"header")
        os.utime(path, ns=(index, index))
    assert cache.find(remote(sha256=names[0])) is not None
    for name in names[24:]:
        cache.keep(remote(sha256=name), b"header")
    assert [name for name in names if cache.find(remote(sha256=name)) is None] == [names[1], names[2]]


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path):
    """Keeping is a convenience: without a folder there is nothing to find, and no error."""
    (tmp_path / "file").write_text("no folder")
    cache = HeaderCache(tmp_path / "file" / "headers")
    assert cache.keep(remote(**SUMMED), b"header") is None
    assert cache.find(remote(**SUMMED)) is None


# One header speaks for all quantizations


def test_one_header_is_read_for_all_quantizations(catalog, hub, model):
    """Of the best one's file, its head alone; the listed repository is not asked for its file at all."""
    make = catalog()
    resolved = make.resolve("tiny")
    facts = all_facts(make, resolved)
    assert [seen.method for seen in hub.requests] == ["GET"]
    assert headers_read(hub) == ["tiny-F16.gguf"]
    assert hub.requests[0].headers["range"] == f"bytes=0-{MIB - 1}"
    assert hub.served_bytes <= MIB
    assert {quant: one.is_exact for quant, one in facts.items()} == {
        "F16": True, "Q8_0": False, "Q4_K_M": False, "Q6_K": False,
    }  # fmt: skip
    assert {(one.n_layer, one.n_embd, one.n_vocab, one.pooling_type) for one in facts.values()} == {
        (3, 256, facts["F16"].n_vocab, "last")
    }


def test_a_sibling_s_bytes_are_those_of_the_listing(catalog, model):
    """The parts of every quantization add up to its own size: of the file, or of its tensors where those are known."""
    facts = all_facts(make := catalog(), make.resolve("tiny"))
    assert facts.pop("F16").weights_bytes == model.weights_bytes
    for quant, one in facts.items():
        assert (one.quant, one.weights_bytes) == (quant, len(model.as_quant(quant)) - model.header_bytes)
    assert facts["Q8_0"].layer_bytes > facts["Q6_K"].layer_bytes > facts["Q4_K_M"].layer_bytes


def test_the_registry_s_longest_text_holds_for_all(catalog):
    """Header and siblings alike are held to the model's card."""
    facts = all_facts(make := catalog(), make.resolve("tiny"))
    assert {one.n_ctx_train for one in facts.values()} == {512}  # the header says 1,024


def test_a_second_plan_makes_no_request(catalog, hub, tmp_path):
    """The header is kept: the next process plans by the same figures, without the network."""
    plans = []
    for _ in range(2):
        make = catalog()
        plans.append(select(make, make.resolve("tiny"), limits=Limits(), overrides=Overrides()).plan)
        assert len(hub.requests) == 1
    assert (plans[0].quant, plans[0].facts, plans[0].cost) == (plans[1].quant, plans[1].facts, plans[1].cost)
    assert plans[0].cost.is_measured
    assert len(list((tmp_path / "cache" / "headers").iterdir())) == 1


def test_a_kept_header_speaks_for_its_siblings(catalog, hub):
    """Whichever one is kept, it will do for the others; a quantization that is planned alone has its own read."""
    one, other = catalog(), catalog()
    find_donor(one, one.resolve("tiny:Q4_K_M"))
    assert headers_read(hub) == ["tiny-Q4_K_M.gguf"]
    hub.requests.clear()
    assert find_donor(other, other.resolve("tiny")).source.quant == "Q4_K_M"
    assert hub.requests == []
    find_donor(other, other.resolve("tiny:Q8_0"))
    assert headers_read(hub) == ["tiny-Q8_0.gguf"]


def test_an_unknown_repository_is_planned_by_one_header(catalog, hub, model):
    """What the registry does not know is listed once, and one of its headers is read; then the listing alone."""
    for n_headers in (1, 0):
        hub.requests.clear()
        make = catalog()
        facts = all_facts(make, make.resolve(UNKNOWN, prefer="quality"))
        assert list(facts) == ["F16", "Q8_0", "Q4_K_M"]
        assert facts["Q8_0"].weights_bytes == len(model.as_quant("Q8_0")) - model.header_bytes
        assert len(headers_read(hub)) == n_headers
        assert len(hub.requests) == 1 + n_headers


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_size_of_another_model_is_not_believed(catalog, hub, model, tmp_path, factor):
    """A file that is far too small or large for a sibling is read itself."""
    body = model.as_quant("Q8_0")
    kept = body[: int(len(body) * factor)] if factor < 1 else body * int(factor)
    hub.add(UNKNOWN, "unknown-Q8_0.gguf", kept)
    make = catalog()
    facts = all_facts(make, make.resolve(UNKNOWN, prefer="quality"))
    assert headers_read(hub) == ["unknown-F16.gguf", "unknown-Q8_0.gguf"]
    assert facts["Q8_0"].is_exact


def test_a_quantization_whose_bits_are_not_known_is_read_itself(catalog, hub, model):
    """Nothing can be said of its layers from a sibling."""
    hub.add(UNKNOWN, "unknown-IQ2_XXS.gguf", model.as_quant("Q4_K_M") + b"IQ2")
    make = catalog()
    first = find_donor(make, make.resolve(f"{UNKNOWN}:F16"))
    resolved = make.resolve(f"{UNKNOWN}:IQ2_XXS")
    facts = find_facts(make, resolved, resolved.sources[0], donor=first)
    assert facts.is_exact
    assert headers_read(hub)[-1] == "unknown-IQ2_XXS.gguf"


def test_a_donor_on_disk_needs_no_network(catalog, hub, lay, model):
    """One quantization that is here speaks for those that are not, whichever it is."""
    path = lay("F16")
    for offline in (False, True):
        make = catalog(offline=offline)
        donor = find_donor(make, make.resolve("tiny"))
        assert (donor.path, donor.source.quant, donor.facts) == (path, "F16", load_facts(path))
    make = catalog()
    plan = select(make, make.resolve("tiny"), limits=Limits(), overrides=Overrides()).plan
    assert plan.facts.weights_bytes == model.weights_bytes
    assert hub.requests == []


def test_a_donor_outside_the_ladder_counts_too(catalog, hub, lay):
    """A file on disk that is not to be chosen may still tell of the others."""
    lay("F16")
    make = catalog()
    resolved = make.resolve(f"{REPO}:Q8_0")
    others = make.resolve(f"{REPO}:F16").sources
    assert find_donor(make, dataclasses.replace(resolved, others=others)).source.quant == "F16"
    assert hub.requests == []


# When the hub is down


def test_the_hub_down_is_an_estimate_and_a_warning(catalog, hub, caplog):
    """The registry's shape plans all the same: one warning with the reason, no figures of llama.cpp's."""
    hub.faults.status = 503
    make = catalog(with_shape=True)
    plan = select(make, make.resolve("tiny"), limits=Limits(), overrides=Overrides()).plan
    assert (plan.quant, plan.cost.is_measured, plan.facts.is_exact) == ("F16", False, False)
    [record] = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert record.getMessage().startswith("the plan is an estimate from the registry: ")
    assert "503" in record.getMessage()


@pytest.mark.parametrize("with_shape", [True, False])
def test_one_header_that_cannot_be_had_is_estimated(catalog, hub, lay, caplog, with_shape):
    """A sibling that its donor does not tell of is read; with the hub down the shape will do, and that is said."""
    lay("F16")
    make = catalog(with_shape=with_shape)
    resolved = make.resolve("tiny")
    donor = find_donor(make, resolved)
    silent = dataclasses.replace(donor, facts=dataclasses.replace(donor.facts, quant=None))
    hub.faults.status = 503
    if not with_shape:
        with pytest.raises(HubError):
            find_facts(make, resolved, resolved.sources[1], donor=silent)
        return
    facts = find_facts(make, resolved, resolved.sources[1], donor=silent)
    assert (facts.is_exact, facts.weights_bytes) == (False, resolved.sources[1].size_bytes)
    [record] = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert record.getMessage().startswith("Q8_0 is an estimate from the registry")


def test_the_hub_down_without_a_shape_is_an_error(catalog, hub, caplog):
    """Where nothing is known of a model, nothing is guessed, and no estimate is told of."""
    hub.faults.status = 503
    make = catalog()
    with pytest.raises(HubError):
        select(make, make.resolve("tiny"), limits=Limits(), overrides=Overrides())
    assert "estimate" not in caplog.text


def test_a_shape_is_enough_for_another_machine(catalog, hub):
    """find_facts without a donor asks nothing where the registry knows the shape; and reads a header where not."""
    make = catalog(with_shape=True)
    resolved = make.resolve("tiny")
    facts = [find_facts(make, resolved, source) for source in resolved.sources]
    assert [one.is_exact for one in facts] == [False] * 4
    assert [one.weights_bytes for one in facts] == [source.size_bytes for source in resolved.sources]
    assert hub.requests == []
    make = catalog()
    resolved = make.resolve("tiny")
    assert find_facts(make, resolved, resolved.sources[1]).is_exact
    assert headers_read(hub) == ["tiny-Q8_0.gguf"]


def test_only_a_listed_repository_and_a_shape_ask_nothing(catalog, hub):
    """Listing a repository for a header that the shape makes needless is no plan's work."""
    make = catalog(with_shape=True)
    assert find_donor(make, make.resolve("tiny:Q6_K")) is None
    assert hub.requests == []
    make = catalog()
    assert find_donor(make, make.resolve("tiny:Q6_K")).facts.n_layer == 3
    assert headers_read(hub) == ["tiny.Q6_K.gguf"]


# Headers that are of no use


@pytest.mark.parametrize("damage", [b"", b"GGUF", b"no header at all"])
def test_a_damaged_kept_header_is_read_again(catalog, hub, damage):
    """What a crash or a disk left of it counts for nothing, and is replaced."""
    make = catalog()
    resolved = make.resolve("tiny")
    path = find_donor(make, resolved).path
    path.write_bytes(damage)
    again = find_donor(make, resolved)
    assert again.facts.n_layer == 3
    assert len(headers_read(hub)) == 2
    assert again.path.stat().st_size == again.facts.header_bytes


def test_a_kept_header_that_vanishes_is_read_again(catalog, hub, monkeypatch):
    """Another process may drop it between two looks."""
    make = catalog()
    resolved = make.resolve("tiny")
    find_donor(make, resolved).path.unlink()
    real = HeaderCache.find
    monkeypatch.setattr(HeaderCache, "find", lambda self, remote: real(self, remote) or self._path(remote))
    assert find_donor(make, resolved).facts.n_layer == 3


def test_a_header_of_no_gguf_is_refused(catalog, hub):
    """And nothing is kept of it."""
    hub.add(UNKNOWN, "unknown-F16.gguf", b"not a model" * 1000)
    make = catalog()
    resolved = make.resolve(f"{UNKNOWN}:F16")
    with pytest.raises(InvalidGGUFError):
        fetch_header(make, resolved, resolved.sources[0])
    assert not (make.config.cache_dir / "headers").exists()


def test_a_header_without_its_sizes_is_refused(catalog, hub, model):
    """A GGUF that is no model is refused as such."""
    hub.add(UNKNOWN, "unknown-F16.gguf", model.body.replace(b"qwen3.block_count", b"qwen3.block_kount"))
    make = catalog()
    with pytest.raises(UnsupportedModelError, match=r"unknown-F16\.gguf has no usable qwen3\.block_count"):
        find_donor(make, make.resolve(f"{UNKNOWN}:F16"))


def test_what_is_kept_is_the_header_alone(catalog, model):
    """To the byte: llama.cpp reads it, and no weight is in it."""
    make = catalog()
    donor = find_donor(make, make.resolve("tiny"))
    assert donor.path.read_bytes() == model.body[: model.header_bytes]
    assert donor.facts.header_bytes == model.header_bytes
    with pytest.raises(InvalidGGUFError, match="cut short"):
        load_header(donor.path)
