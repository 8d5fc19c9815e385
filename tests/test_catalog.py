"""catalog.py over a hub on loopback: from what was typed to sources, facts and files."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from pathlib import Path

import pytest
from fake_hub import COMMIT, FakeHub
from huggingface_hub.utils import close_session
from synthetic import write_bert

from gguf_embed.config import Config
from gguf_embed.errors import (
    AccessDeniedError,
    ChecksumError,
    InvalidGGUFError,
    OfflineError,
    StorageError,
    UnknownModelError,
    UnknownQuantError,
)
from gguf_embed.models.catalog import Catalog
from gguf_embed.models.facts import fetch_header, find_donor, find_facts
from gguf_embed.models.hub import Hub
from gguf_embed.models.shelf import delete, files_on_disk
from gguf_embed.models.wheel import wheel_model_path

REPO, MORE, OTHER = "org/My-Model-GGUF", "org/More-GGUF", "someone/Other-GGUF"
N_TENSOR_BYTES = 300_000

# A model with two pinned files and one in a repository that is listed when it is wanted.
REGISTRY = """schema = 1
[models.my-model]
aliases = ["mine"]
base_repo = "org/My-Model"
license = "MIT"
arch = "bert"
pooling_type = "mean"
n_embd = 64
max_tokens = 100
ladder = ["Q8_0", "Q4_K_M", "Q3_K_M"]
quality_ladder = ["F16", "Q8_0", "Q4_K_M", "Q3_K_M"]
[[models.my-model.discover]]
repo = "{more}"
quants = {{ Q3_K_M = {n_tensor_bytes} }}
{files}
"""
FILE = """[[models.my-model.files]]
quant = "{quant}"
repo = "{repo}"
file = "my-model-{quant}.gguf"
revision = "{commit}"
size_bytes = {size_bytes}
sha256 = "{sha256}"
"""
SHAPE = """[models.my-model.shape]
n_layer = 2
n_embd = 64
n_ff = 256
n_head = 4
n_head_kv = 4
head_dim = 16
n_vocab = 41
"""


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory):
    """A small BERT; files differ by what is appended after its tensors."""
    return write_bert(tmp_path_factory.mktemp("bert") / "bert.gguf").read_bytes()


@pytest.fixture
def fake(gguf_bytes):
    close_session()  # the shared client remembers the proxies it was made with
    with FakeHub() as server:
        for quant in ("F16", "Q8_0", "Q4_K_M"):
            server.add(REPO, f"my-model-{quant}.gguf", gguf_bytes + quant.encode())
        server.add(MORE, "My-Model.i1-Q3_K_M.gguf", gguf_bytes + b"Q3")
        for quant in ("Q2_K", "Q4_K_S", "Q4_K_M", "Q8_0"):
            server.add(OTHER, f"other-{quant}.gguf", gguf_bytes + b"other" + quant.encode())
        yield server
        close_session()


@pytest.fixture
def config(fake, tmp_path):
    settings = tmp_path / "config"
    settings.mkdir()
    files = [
        FILE.format(
            quant=quant, repo=REPO, commit=COMMIT, size_bytes=len(body), sha256=hashlib.sha256(body).hexdigest()
        )
        for quant in ("F16", "Q8_0", "Q4_K_M")
        for body in [fake.files[REPO, f"my-model-{quant}.gguf"]]
    ]
    text = REGISTRY.format(more=MORE, n_tensor_bytes=N_TENSOR_BYTES, files="".join(files))
    (settings / "models.toml").write_text(text, encoding="utf-8")
    return Config(endpoint=fake.url, hub_cache=tmp_path / "hub", cache_dir=tmp_path / "cache",
                  state_dir=tmp_path / "state", config_dir=settings)  # fmt: skip


@pytest.fixture
def make(config):
    def make_catalog(**changes):
        changed = dataclasses.replace(config, **changes)
        hub = Hub(endpoint=changed.endpoint, cache_dir=changed.hub_cache, offline=changed.offline,
                  max_attempts=2, sleep=lambda _: None)  # fmt: skip
        return Catalog(changed, hub)

    return make_catalog


@pytest.fixture
def catalog(make):
    return make()


def quants(resolved):
    return [source.quant for source in resolved.sources]


@pytest.fixture
def lay(config, gguf_bytes):
    """Put a file into the cache as an earlier download left it."""

    def lay_file(repo, file):
        folder = config.hub_cache / f"models--{repo.replace('/', '--')}"
        path = folder / "snapshots" / COMMIT / file
        for one, content in ((path, gguf_bytes + file.encode()), (folder / "refs" / "main", COMMIT.encode())):
            one.parent.mkdir(parents=True, exist_ok=True)
            one.write_bytes(content)
        return path

    return lay_file


def fetch(catalog, text):
    resolved = catalog.resolve(text)
    return catalog.fetch(resolved, resolved.sources[0])


# Models of the registry


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [
        ("default", ["Q8_0", "Q4_K_M", "Q3_K_M"]),
        ("quality", ["F16", "Q8_0", "Q4_K_M", "Q3_K_M"]),
    ],
)
def test_a_model_comes_in_the_order_of_its_ladder(catalog, fake, prefer, expected):
    """The ladder that is asked for, best first, without a request."""
    resolved = catalog.resolve("mine", prefer=prefer)
    assert quants(resolved) == expected
    assert (resolved.model_id, resolved.spec.model_id) == ("my-model", "my-model")
    assert fake.requests == []


def test_what_is_outside_the_ladder_is_listed_when_asked_for(catalog):
    """with_others brings the rest, best first, beside the ladder."""
    resolved = catalog.resolve("mine", with_others=True)
    assert quants(resolved) == ["Q8_0", "Q4_K_M", "Q3_K_M"]
    assert [source.quant for source in resolved.others] == ["F16"]


def test_a_pinned_file_is_known_to_the_byte(catalog, fake):
    """Repo, file, commit, size and sum come from the registry."""
    body = fake.files[REPO, "my-model-Q4_K_M.gguf"]
    (source,) = catalog.resolve("my-model:q4_k_m").sources
    assert (source.origin, source.quant, source.repo, source.file) == ("hub", "Q4_K_M", REPO, "my-model-Q4_K_M.gguf")
    assert (source.revision, source.size_bytes) == (COMMIT, len(body))
    assert source.sha256 == hashlib.sha256(body).hexdigest()
    assert (source.path, source.is_on_disk) == (None, False)
    assert source.name == f"{REPO}/my-model-Q4_K_M.gguf"


def test_a_named_quant_stands_alone(catalog):
    """A quant that no ladder tries by itself can be named."""
    assert quants(catalog.resolve("my-model:F16")) == ["F16"]


def test_a_quant_that_a_model_lacks_is_told_what_there_is(catalog):
    """The error lists the quants of every source."""
    with pytest.raises(UnknownQuantError) as caught:
        catalog.resolve("my-model:Q5_K_M")
    assert caught.value.available == ("Q8_0", "Q4_K_M", "Q3_K_M", "F16")


def test_a_misspelt_model_is_answered_with_the_one_that_was_meant(catalog):
    """The user's own models are suggested too."""
    with pytest.raises(UnknownModelError, match="Did you mean my-model") as caught:
        catalog.resolve("my-modl")
    assert caught.value.suggestions[0] == "my-model"


def test_another_preference_is_the_caller_s_mistake(catalog):
    """Prefer is one of three words."""
    with pytest.raises(ValueError, match="prefer is 'best'"):
        catalog.resolve("my-model", prefer="best")


def test_the_original_s_name_means_the_registry_s_model(catalog, fake):
    """owner/name of the unquantised model, which holds no GGUF, comes to the model's own files."""
    assert quants(catalog.resolve("org/My-Model")) == ["Q8_0", "Q4_K_M", "Q3_K_M"]
    assert fake.requests == []


def test_a_pinned_repository_s_name_means_its_files(catalog, fake):
    """Of the ladder, those that this repository holds, without listing it."""
    assert quants(catalog.resolve(REPO)) == ["Q8_0", "Q4_K_M"]
    assert [source.sha256 is not None for source in catalog.resolve(f"hf.co/{REPO}:F16").sources] == [True]
    assert fake.requests == []


def test_a_file_is_fetched_once_and_then_found(catalog, fake):
    """What was fetched is verified, lies in the cache, and is on disk for the next resolve, without a request."""
    seen = []
    resolved = catalog.resolve("my-model:Q8_0")
    path = catalog.fetch(resolved, resolved.sources[0], on_progress=lambda *both: seen.append(both))
    body = fake.files[REPO, "my-model-Q8_0.gguf"]
    assert path.read_bytes() == body
    assert seen[-1] == (len(body), len(body))
    n_requests = len(fake.requests)
    again = catalog.resolve("my-model")
    assert [source.is_on_disk for source in again.sources] == [True, False, False]
    assert catalog.fetch(again, again.sources[0]) == path
    assert len(fake.requests) == n_requests


def test_bytes_that_are_not_the_pinned_ones_are_refused(catalog, fake):
    """A rewritten repository does not get past the registry's sum."""
    fake.add(REPO, "my-model-Q8_0.gguf", b"x" * len(fake.files[REPO, "my-model-Q8_0.gguf"]))
    with pytest.raises(ChecksumError):
        fetch(catalog, "my-model:Q8_0")


def test_a_discoverable_repository_is_listed_when_its_file_is_wanted(catalog, fake):
    """Resolving asks nothing; fetching finds the file by its quant; then it is on disk."""
    resolved = catalog.resolve("my-model:Q3_K_M")
    (source,) = resolved.sources
    assert (source.origin, source.repo, source.file, source.size_bytes) == ("repo", MORE, None, N_TENSOR_BYTES)
    assert fake.requests == []
    path = catalog.fetch(resolved, source)
    assert path.name == "My-Model.i1-Q3_K_M.gguf"
    assert path.read_bytes() == fake.files[MORE, "My-Model.i1-Q3_K_M.gguf"]
    assert catalog.resolve("my-model:Q3_K_M").sources[0].path == path


def test_a_discoverable_repository_without_the_quant_says_what_it_has(catalog, fake):
    """The registry may promise what the repository no longer holds."""
    fake.files[MORE, "My-Model.Q2_K.gguf"] = fake.files.pop((MORE, "My-Model.i1-Q3_K_M.gguf"))
    with pytest.raises(UnknownQuantError, match="my-model has no Q3_K_M; it has Q2_K"):
        fetch(catalog, "my-model:Q3_K_M")


def test_two_files_of_one_quant_are_not_guessed_between(catalog, fake, gguf_bytes):
    """The error lists both with their sizes, and how to name one."""
    fake.add(MORE, "My-Model.Q3_K_M.gguf", gguf_bytes)
    with pytest.raises(UnknownQuantError, match=r"several Q3_K_M files.*Name one: owner/repo/file\.gguf") as caught:
        fetch(catalog, "my-model:Q3_K_M")
    assert caught.value.available == ("My-Model.Q3_K_M.gguf", "My-Model.i1-Q3_K_M.gguf")


# Repositories and files that the registry does not know


def test_an_unknown_repository_is_listed(catalog, fake):
    """Its files come in the default ladder's order, pinned to the commit that was listed."""
    resolved = catalog.resolve(OTHER)
    assert quants(resolved) == ["Q4_K_M", "Q4_K_S"]
    assert (resolved.model_id, resolved.spec) == (OTHER, None)
    body = fake.files[OTHER, "other-Q4_K_M.gguf"]
    first = resolved.sources[0]
    assert (first.revision, first.size_bytes, first.sha256) == (COMMIT, len(body), hashlib.sha256(body).hexdigest())


def test_quality_tries_the_larger_quants_of_an_unknown_repository(catalog):
    """Best first, down to the smallest."""
    assert quants(catalog.resolve(OTHER, prefer="quality")) == ["Q8_0", "Q4_K_M", "Q4_K_S", "Q2_K"]


def test_a_repository_outside_the_ladder_gives_what_it_has(catalog, fake, gguf_bytes):
    """Where none of the ladder is there, the rest is tried instead of failing."""
    fake.add("someone/Big-GGUF", "big-F16.gguf", gguf_bytes)
    assert quants(catalog.resolve("someone/Big-GGUF")) == ["F16"]


def test_a_named_quant_of_an_unknown_repository(catalog, fake):
    """owner/repo:quant comes to its file and fetches it."""
    path = fetch(catalog, f"{OTHER}:q2_k")
    assert path.read_bytes() == fake.files[OTHER, "other-Q2_K.gguf"]


def test_a_quant_that_a_repository_lacks(catalog):
    """The error lists what the repository holds."""
    with pytest.raises(UnknownQuantError, match=f"{OTHER} has no quant 'Q6_K'; it has Q2_K, Q4_K_M, Q4_K_S, Q8_0"):
        catalog.resolve(f"{OTHER}:Q6_K")


def test_a_repository_without_a_gguf(catalog, fake):
    """A repository of safetensors is told so."""
    fake.add("someone/Plain", "model.safetensors", b"x")
    with pytest.raises(UnknownQuantError, match=r"someone/Plain has no GGUF in one file"):
        catalog.resolve("someone/Plain")


def test_a_repository_of_shards_alone(catalog, fake, gguf_bytes):
    """Split files cannot be used, and are not offered."""
    for part in (1, 2):
        fake.add("someone/Split", f"m-Q4_K_M-0000{part}-of-00002.gguf", gguf_bytes)
    with pytest.raises(UnknownQuantError, match="no GGUF in one file"):
        catalog.resolve("someone/Split")
    with pytest.raises(UnknownQuantError, match="in parts, and split files cannot be used"):
        catalog.resolve("someone/Split:Q4_K_M")


def test_a_repository_that_is_not_there(catalog):
    """The hub does not tell a private repository from none, and the error names it."""
    with pytest.raises(AccessDeniedError, match="nobody/Nothing") as caught:
        catalog.resolve("nobody/Nothing")
    assert caught.value.repo == "nobody/Nothing"


def test_one_named_file_needs_no_listing(catalog, fake):
    """owner/repo/file.gguf is that file, of whatever quant its name says."""
    resolved = catalog.resolve(f"{OTHER}/other-Q2_K.gguf")
    (source,) = resolved.sources
    assert (source.quant, source.repo, source.file) == ("Q2_K", OTHER, "other-Q2_K.gguf")
    assert fake.requests == []
    assert catalog.fetch(resolved, source).read_bytes() == fake.files[OTHER, "other-Q2_K.gguf"]


def test_a_file_on_disk_is_used_where_it_lies(catalog, fake, tmp_path, gguf_bytes):
    """A path is never copied or fetched."""
    path = tmp_path / "own-Q5_K_M.gguf"
    path.write_bytes(gguf_bytes)
    resolved = catalog.resolve(str(path))
    (source,) = resolved.sources
    assert (source.origin, source.quant, source.path, source.name) == ("local", "Q5_K_M", path, str(path))
    assert (resolved.model_id, resolved.spec) == ("own-Q5_K_M.gguf", None)
    assert catalog.fetch(resolved, source) == path
    assert fake.requests == []


def test_a_file_on_disk_by_a_registry_name_has_the_registry_s_facts(catalog, tmp_path, gguf_bytes):
    """A pinned file's base name tells which model it is, wherever it lies."""
    path = tmp_path / "my-model-Q8_0.gguf"
    path.write_bytes(gguf_bytes)
    assert catalog.resolve(str(path)).spec.model_id == "my-model"


# Offline


def test_offline_with_nothing_on_disk_says_what_to_run(make, fake):
    """The error names the quants and the command, and nothing was asked."""
    with pytest.raises(OfflineError, match=r"none of Q8_0, Q4_K_M, Q3_K_M is on disk.*gguf-embed pull"):
        make(offline=True).resolve("my-model")
    assert fake.requests == []


def test_offline_uses_what_is_on_disk_and_says_so(make, catalog, caplog):
    """The ladder shrinks to the files that are here, with one warning."""
    fetch(catalog, "my-model:Q4_K_M")
    with caplog.at_level(logging.WARNING, logger="gguf_embed"):
        resolved = make(offline=True).resolve("my-model")
    assert quants(resolved) == ["Q4_K_M"]
    assert [record.getMessage() for record in caplog.records] == ["offline: only Q4_K_M on disk"]


def test_offline_finds_a_listed_file_again(make, catalog):
    """A file of a discoverable repository needs no listing once it is here."""
    path = fetch(catalog, "my-model:Q3_K_M")
    offline = make(offline=True)
    assert fetch(offline, "my-model:Q3_K_M") == path


def test_offline_a_named_quant_of_a_fetched_repository_is_found(make, catalog):
    """owner/repo:quant is in the cache, so nothing needs to be listed."""
    path = fetch(catalog, f"{OTHER}:Q4_K_S")
    assert fetch(make(offline=True), f"{OTHER}:Q4_K_S") == path


def test_offline_a_named_file_is_found(make, catalog):
    """owner/repo/file.gguf on disk needs no network."""
    path = fetch(catalog, f"{OTHER}/other-Q2_K.gguf")
    assert fetch(make(offline=True), f"{OTHER}/other-Q2_K.gguf") == path


def test_offline_an_unknown_repository_cannot_be_listed(make):
    """There is nothing to choose from."""
    with pytest.raises(OfflineError, match=f"the files of {OTHER} cannot be listed"):
        make(offline=True).resolve(OTHER)


def test_offline_a_fetched_repository_is_used(make, lay):
    """DESIGN section 5: offline with a cached file uses it."""
    path = lay(OTHER, "other-Q4_K_S.gguf")
    offline = make(offline=True)
    resolved = offline.resolve(OTHER)
    assert [source.path for source in resolved.sources] == [path]


def test_a_projector_in_a_repository_is_no_quantization(catalog, fake, gguf_bytes):
    """mmproj-F16.gguf is not the model in F16."""
    fake.add(OTHER, "mmproj-F16.gguf", gguf_bytes)
    assert quants(catalog.resolve(OTHER, prefer="quality")) == ["Q8_0", "Q4_K_M", "Q4_K_S", "Q2_K"]


def test_a_cached_projector_is_no_quantization(catalog, lay, fake, gguf_bytes):
    """A projector in the cache is not taken for the model in F16."""
    lay(OTHER, "mmproj-F16.gguf")
    fake.add(OTHER, "other-F16.gguf", gguf_bytes)
    assert [source.file for source in catalog.resolve(f"{OTHER}:F16").sources] == ["other-F16.gguf"]


# Facts


def test_facts_of_an_unfetched_file_come_from_its_header(catalog, fake, gguf_bytes):
    """Only the head is read, and the registry's longest text holds."""
    resolved = catalog.resolve("my-model:Q8_0")
    facts = find_facts(catalog, resolved, resolved.sources[0], donor=find_donor(catalog, resolved))
    assert (facts.architecture, facts.n_layer, facts.n_embd, facts.is_exact) == ("bert", 2, 64, True)
    assert facts.n_ctx_train == 100  # the card's; the header has 128
    assert not resolved.sources[0].is_on_disk
    assert all("my-model-Q8_0" in seen.path for seen in fake.requests)


def test_facts_of_a_discoverable_file_come_from_its_header(catalog, fake):
    """The repository is listed to find it."""
    resolved = catalog.resolve("my-model:Q3_K_M")
    assert fetch_header(catalog, resolved, resolved.sources[0]).facts.n_embd == 64
    assert any(seen.path.startswith("/api/models/") for seen in fake.requests)


def test_facts_of_a_model_with_a_shape_need_no_request(config, make, fake):
    """The registry knows enough to plan with."""
    registry = config.config_dir / "models.toml"
    registry.write_text(registry.read_text() + SHAPE)
    catalog = make()
    resolved = catalog.resolve("my-model")
    facts = [find_facts(catalog, resolved, source) for source in resolved.sources]
    assert [one.is_exact for one in facts] == [False, False, False]
    assert facts[2].weights_bytes == N_TENSOR_BYTES
    assert fake.requests == []


def test_facts_of_a_file_on_disk_are_its_own(catalog, fake):
    """Its header is exact, and read from disk."""
    fetch(catalog, "my-model:Q8_0")
    fake.requests.clear()
    resolved = catalog.resolve("my-model:Q8_0")
    assert find_facts(catalog, resolved, resolved.sources[0]).is_exact
    assert fake.requests == []


def test_a_file_that_is_no_gguf_is_refused_before_it_moves(catalog, fake):
    """Its head is enough to tell."""
    fake.add("someone/Bad", "bad-Q8_0.gguf", b"not a model" * 1000)
    resolved = catalog.resolve("someone/Bad:Q8_0")
    with pytest.raises(InvalidGGUFError):
        find_donor(catalog, resolved)


# Files on disk


def test_files_on_disk_are_listed_with_their_model(catalog):
    """By the registry's name where it knows the repository, else by the repository."""
    paths = {fetch(catalog, text) for text in ("my-model:Q8_0", "my-model:Q3_K_M", f"{OTHER}:Q2_K")}
    files = files_on_disk(catalog)
    assert {(file.model_id, file.quant) for file in files} == {
        ("my-model", "Q8_0"), ("my-model", "Q3_K_M"), (OTHER, "Q2_K"),
    }  # fmt: skip
    assert {file.path for file in files} == paths
    assert all(file.size_bytes == file.path.stat().st_size for file in files)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my-model", ["Q3_K_M", "Q8_0"]),
        ("mine", ["Q3_K_M", "Q8_0"]),
        ("my-model:q8_0", ["Q8_0"]),
        ("my-model:F16", []),
        (REPO, ["Q8_0"]),
        (REPO.lower(), ["Q8_0"]),
        (f"{MORE}:Q3_K_M", ["Q3_K_M"]),
        (f"{REPO}/my-model-Q8_0.gguf", ["Q8_0"]),
        (f"{REPO}/my-model-F16.gguf", []),
        (f"{MORE}/another-Q3_K_M.gguf", []),
        (OTHER, ["Q2_K"]),
        ("someone/Else", []),
    ],
)
def test_files_on_disk_answer_to_a_reference(catalog, lay, text, expected):
    """A model, a quant, a repository or one file of it."""
    lay(REPO, "my-model-Q8_0.gguf")
    lay(MORE, "My-Model.i1-Q3_K_M.gguf")
    lay(OTHER, "other-Q2_K.gguf")
    assert sorted(file.quant for file in files_on_disk(catalog, text)) == expected


def test_files_on_disk_of_a_model_that_is_not_there(catalog):
    """A misspelt name is an error, not an empty list."""
    with pytest.raises(UnknownModelError):
        files_on_disk(catalog, "my-modl")


def test_nothing_on_disk_is_an_empty_list(catalog):
    """A fresh machine has neither cache folder nor files."""
    assert files_on_disk(catalog) == ()


def test_a_deleted_file_is_gone(catalog):
    """Its bytes are freed, the other file of the repository stays."""
    gone, stays = fetch(catalog, "my-model:Q8_0"), fetch(catalog, "my-model:Q4_K_M")
    (file,) = files_on_disk(catalog, "my-model:Q8_0")
    assert delete(catalog, file) == file.size_bytes
    assert not gone.exists()
    assert stays.is_file()
    assert [one.quant for one in files_on_disk(catalog)] == ["Q4_K_M"]
    assert delete(catalog, file) == 0


@pytest.fixture
def starter(catalog, config, gguf_bytes):
    """The starter model as if it had been made."""
    spec = catalog.registry.get("all-minilm-l6-v2")
    path = wheel_model_path(spec.wheel, spec.model_id, config.cache_dir)
    path.parent.mkdir(parents=True)
    path.write_bytes(gguf_bytes)
    return path


def test_the_starter_model_is_taken_from_where_it_was_made(catalog, starter, fake):
    """Its F16 is on disk, needs no download, and is listed."""
    resolved = catalog.resolve("all-minilm-l6-v2")
    assert (resolved.sources[0].origin, resolved.sources[0].quant, resolved.sources[0].path) == (
        "wheel",
        "F16",
        starter,
    )
    assert catalog.fetch(resolved, resolved.sources[0]) == starter
    (file,) = files_on_disk(catalog, "minilm")
    assert (file.model_id, file.quant, file.path, file.cached) == ("all-minilm-l6-v2", "F16", starter, None)
    assert fake.requests == []


def test_the_starter_model_can_be_deleted(catalog, starter):
    """A file that this program made is unlinked."""
    (file,) = files_on_disk(catalog, "minilm")
    assert delete(catalog, file) == file.size_bytes
    assert not starter.exists()
    with pytest.raises(StorageError, match="cannot be deleted"):
        delete(catalog, file)


def test_without_the_extra_the_starter_model_comes_from_the_hub(catalog, monkeypatch):
    """Gguf and safetensors write the file; where they are missing, the pinned file goes first."""
    assert catalog.resolve("minilm").sources[0].origin == "wheel"
    monkeypatch.setattr("gguf_embed.models.catalog.find_spec", lambda _: None)
    assert catalog.resolve("minilm").sources[0].origin == "hub"


def test_offline_the_starter_model_says_what_to_run(make):
    """Pip needs the network too."""
    with pytest.raises(OfflineError, match="gguf-embed pull"):
        make(offline=True).resolve("minilm")


def test_a_catalog_without_a_hub_makes_the_configured_one(config, fake):
    """Endpoint and cache folder are the config's."""
    catalog = Catalog(config)
    path = fetch(catalog, "my-model:Q8_0")
    assert path.is_relative_to(config.hub_cache)
    assert isinstance(path, Path)
    assert fake.count("GET") >= 1
