from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_embed.errors import UnknownModelError, UnknownQuantError
from gguf_embed.models.refs import is_shard, parse_reference, quant_of_file_name, select_file
from gguf_embed.models.registry import QuantFile, load_registry

REGISTRY = load_registry()
REPO = "Qwen/Qwen3-Embedding-4B-GGUF"
FILE = "Qwen3-Embedding-4B-Q4_K_M.gguf"
COMMIT = "f4602530db1d980e16da9d7d3a70294cf5c190be"
QUANTS = [
    "Q4_K_M",
    "Q4_K_S",
    "Q3_K_M",
    "Q8_0",
    "Q6_K",
    "Q5_0",
    "IQ4_XS",
    "IQ2_XXS",
    "Q2_K",
    "F16",
    "BF16",
    "F32",
    "TQ1_0",
]


def parse(text):
    return parse_reference(text, REGISTRY)


def brief(text):
    """The parts of a reference that name a model on the hub or in the registry."""
    found = parse(text)
    assert found.text == text
    assert found.path is None
    return found.spec and found.spec.model_id, found.repo, found.revision, found.file, found.quant


def a_file(name, size_bytes=None):
    return QuantFile(quant="F16", repo="some/repo", file=name, size_bytes=size_bytes)


@pytest.mark.parametrize(
    ("text", "model_id", "quant"),
    [
        ("qwen3-embedding-4b", "qwen3-embedding-4b", None),
        ("  Qwen3-Embedding-4B\n", "qwen3-embedding-4b", None),
        ("qwen3-embedding", "qwen3-embedding-4b", None),
        ("qwen3-embedding:4b", "qwen3-embedding-4b", None),
        ("qwen3-embedding:0.6b", "qwen3-embedding-0.6b", None),
        ("qwen3-embedding:8b", "qwen3-embedding-8b", None),
        ("qwen3-embedding-4b:Q4_K_S", "qwen3-embedding-4b", "Q4_K_S"),
        ("qwen3-embedding:4b:q4_k_s", "qwen3-embedding-4b", "Q4_K_S"),
        ("qwen3-embedding:Q4_K_M", "qwen3-embedding-4b", "Q4_K_M"),
        ("qwen3-embedding-4b:f16", "qwen3-embedding-4b", "F16"),
        ("qwen3-embedding:4b-fp16", "qwen3-embedding-4b", "F16"),
        ("qwen3-embedding:0.6b-q8_0", "qwen3-embedding-0.6b", "Q8_0"),
        ("minilm", "all-minilm-l6-v2", None),
        ("all-minilm:f16", "all-minilm-l6-v2", "F16"),
        ("nomic-embed-text", "nomic-embed-text-v1.5", None),
    ],
)
def test_registry_names(text, model_id, quant):
    """Ids and aliases are found in any case, and a quant after them is spelt as on the file."""
    assert brief(text) == (model_id, None, None, None, quant)


@pytest.mark.parametrize(
    "prefix", ["", "hf.co/", "huggingface.co/", "hf://", "https://huggingface.co/", "HTTPS://HF.co/"]
)
@pytest.mark.parametrize(
    ("rest", "revision", "file", "quant"),
    [
        (REPO, None, None, None),
        (f"{REPO}:Q4_K_M", None, None, "Q4_K_M"),
        (f"{REPO}:q4_k_m", None, None, "Q4_K_M"),
        (f"{REPO}@main", "main", None, None),
        (f"{REPO}@{COMMIT}:Q8_0", COMMIT, None, "Q8_0"),
        (f"{REPO}:Q8_0@{COMMIT}", COMMIT, None, "Q8_0"),
        (f"{REPO}@refs/pr/3", "refs/pr/3", None, None),
        (f"{REPO}/{FILE}", None, FILE, "Q4_K_M"),
        (f"{REPO}@{COMMIT}/sub/{FILE}", COMMIT, f"sub/{FILE}", "Q4_K_M"),
        (f"{REPO}/{FILE}@{COMMIT}", COMMIT, FILE, "Q4_K_M"),
    ],
)
def test_hub_references_read_alike_in_every_dialect(prefix, rest, revision, file, quant):
    """A repo, its quant, revision or file mean the same bare, behind hf.co, as hf:// and as an address."""
    assert brief(prefix + rest) == ("qwen3-embedding-4b", REPO, revision, file, quant)


@pytest.mark.parametrize(
    ("tail", "revision", "file"),
    [
        ("", None, None),
        ("/", None, None),
        ("/tree/main", "main", None),
        (f"/blob/main/{FILE}", "main", FILE),
        (f"/resolve/{COMMIT}/{FILE}?download=true", COMMIT, FILE),
        (f"/resolve/refs%2Fpr%2F3/{FILE}", "refs/pr/3", FILE),
    ],
)
def test_addresses_copied_from_the_site(tail, revision, file):
    """What a browser's address bar or download button gives can be pasted."""
    quant = "Q4_K_M" if file else None
    assert brief(f"https://huggingface.co/{REPO}{tail}") == ("qwen3-embedding-4b", REPO, revision, file, quant)


def test_unknown_repo_has_no_spec():
    """A repo that the registry does not know is a reference all the same."""
    assert brief("someone/Some-Model-GGUF:iq4_xs") == (None, "someone/Some-Model-GGUF", None, None, "IQ4_XS")


def test_known_repo_takes_the_registry_spelling():
    """The hub caches under the spelling that it is asked for, so a known repo is spelt one way."""
    assert brief("qwen/qwen3-embedding-4b-gguf") == ("qwen3-embedding-4b", REPO, None, None, None)


def test_original_repo_means_its_model():
    """The unquantised repo holds no GGUF, so its name means the registry's model."""
    assert brief("Qwen/Qwen3-Embedding-4B:q6_k") == ("qwen3-embedding-4b", None, None, None, "Q6_K")


def test_original_repo_at_a_revision_stays_a_repo():
    """A revision belongs to the repo that was named, so the name is taken by its word."""
    assert brief("Qwen/Qwen3-Embedding-4B@main")[1:3] == ("Qwen/Qwen3-Embedding-4B", "main")


def test_other_sites_are_refused():
    """An address elsewhere is told apart from a misspelt repo."""
    with pytest.raises(UnknownModelError, match=r"no address on huggingface\.co"):
        parse("https://example.com/owner/m.gguf")


def test_original_repo_that_holds_ggufs_stays_a_repo():
    """Where the original repo carries the GGUF itself, naming it means that repo."""
    assert brief("mixedbread-ai/mxbai-embed-large-v1") == (
        "mxbai-embed-large-v1",
        "mixedbread-ai/mxbai-embed-large-v1",
        None,
        None,
        None,
    )


def test_pinned_file_in_another_repo_keeps_its_spec():
    """A mirror of a known file is still that model: its prompts apply."""
    assert brief(f"mirror/of-it/{FILE}") == ("qwen3-embedding-4b", "mirror/of-it", None, FILE, "Q4_K_M")


@pytest.mark.parametrize("text", ["{name}", "./{name}", "{folder}/{name}", "~/{name}", "../{folder_name}/{name}"])
def test_files_on_disk(text, tmp_path, monkeypatch):
    """A path is found relative, absolute and under the home folder, with the spec of a known file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / FILE.lower()).touch()
    found = parse(text.format(name=FILE.lower(), folder=tmp_path, folder_name=tmp_path.name))
    assert found.path is not None
    assert found.path.resolve() == (tmp_path / FILE.lower()).resolve()
    assert (found.spec.model_id, found.repo, found.quant) == ("qwen3-embedding-4b", None, "Q4_K_M")


def test_windows_path(tmp_path, monkeypatch):
    """A drive letter begins a path, never a model with a quant."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownModelError, match="there is no file"):
        parse("C:\\models\\some-q8_0.gguf")


def test_file_without_gguf_ending(tmp_path):
    """Another program's blob, named by its sum, is a file like any other."""
    blob = tmp_path / "sha256-2b0c"
    blob.touch()
    assert (parse(str(blob)).path, parse(str(blob)).spec) == (blob, None)


def test_local_file_beats_hub_path(tmp_path, monkeypatch):
    """A path that tab completion made means the file, not a repo of the same spelling."""
    monkeypatch.chdir(tmp_path)
    text = f"models/qwen/{FILE}"
    assert parse(text).repo == "models/qwen"
    Path(text).parent.mkdir(parents=True)
    Path(text).touch()
    assert (parse(text).repo, parse(text).path) == (None, Path(text))


@pytest.mark.parametrize(
    "text", ["./nothing.gguf", "nothing.gguf", "no\\where", "/no/where", "~nobody-at-all/x.gguf", "a" * 5000 + ".gguf"]
)
def test_missing_file_is_said(text, tmp_path, monkeypatch):
    """A path without a file is an error about the file, whatever keeps it from being there."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownModelError, match=r"no file|home folder|looked up") as caught:
        parse(text)
    assert caught.value.model_id == text


def test_missing_known_file_names_its_model(tmp_path, monkeypatch):
    """A known file that is not on disk leads to the command that fetches it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownModelError, match="gguf-embed pull qwen3-embedding-4b") as caught:
        parse(f"./{FILE}")
    assert caught.value.suggestions == ("qwen3-embedding-4b",)


def test_folder_is_no_model(tmp_path):
    """A folder is named as one."""
    with pytest.raises(UnknownModelError, match="is a folder"):
        parse(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("qwen3-embeding-4b", "qwen3-embedding-4b"),
        ("qwen3-embeding-4b:Q4_K_M", "qwen3-embedding-4b"),
        ("qwen3-embedding:12b", "qwen3-embedding-8b"),
        ("all-miniLM-l6", "all-minilm-l6-v2"),
        ("minlm:Q4_K_M", "all-minilm-l6-v2"),
        ("bge-small", "bge-small-en-v1.5"),
    ],
)
def test_typos_get_suggestions(text, suggestion):
    """A near miss names the model that was meant, at most three."""
    with pytest.raises(UnknownModelError) as caught:
        parse(text)
    assert suggestion in caught.value.suggestions
    assert suggestion in str(caught.value)
    assert len(caught.value.suggestions) <= 3


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_empty_text(text):
    """Nothing named is an error that shows what to write."""
    with pytest.raises(UnknownModelError, match="no model was named"):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://example.com/x/y.gguf",
        "file:///tmp/x.gguf",
        "hf://lonely",
        "owner/repo/README.md",
        "owner/repo@a:Q8_0@b",
        "owner/repo:Q8_0:Q4_K_M",
        "https://huggingface.co/datasets/owner/texts",
        "owner/",
        "owner/repo@",
        "zzz",
    ],
)
def test_what_is_no_reference(text):
    """Anything else is refused as an unknown model that repeats what was typed."""
    with pytest.raises(UnknownModelError) as caught:
        parse(text)
    assert text in str(caught.value)
    assert caught.value.suggestions == ()


@pytest.mark.parametrize(
    ("text", "model_id", "quant"),
    [
        ("qwen3-embedding-4b:Q9_K", "qwen3-embedding-4b", "Q9_K"),
        ("qwen3-embedding-4b:Q1_0", "qwen3-embedding-4b", "Q1_0"),
        ("qwen3-embedding-4b:best", "qwen3-embedding-4b", "best"),
        ("qwen3-embedding:4b:best", "qwen3-embedding-4b", "best"),
        ("qwen3-embedding:Q9_K", "qwen3-embedding-4b", "Q9_K"),
        ("qwen3-embedding:4b-q1_0", "qwen3-embedding-4b", "q1_0"),
        (f"{REPO}:best", REPO, "best"),
    ],
)
def test_unknown_quants_list_the_known(text, model_id, quant):
    """A quant that the model does not come in is refused with those that it does."""
    with pytest.raises(UnknownQuantError) as caught:
        parse(text)
    assert (caught.value.model_id, caught.value.quant) == (model_id, quant)
    assert caught.value.available == REGISTRY.get("qwen3-embedding-4b").quants


@given(st.text(max_size=60))
def test_any_text_gives_a_reference_or_our_error(text):
    """No text makes the parser fail in a way of its own."""
    try:
        found = parse(text)
    except (UnknownModelError, UnknownQuantError):
        return
    assert found.spec or found.repo or found.path


@given(st.sampled_from(REGISTRY.models), st.data())
def test_every_name_and_quant_of_the_registry_parses(spec, data):
    """Every id and alias, with each quant of its model in any case, leads back to that model and quant."""
    name = data.draw(st.sampled_from((spec.model_id, *spec.aliases)))
    quant = data.draw(st.sampled_from(spec.quants))
    case = data.draw(st.sampled_from((str.upper, str.lower, str.title)))
    found = parse(f"{case(name)}:{case(quant)}")
    assert (found.spec, found.quant) == (spec, quant)


@pytest.mark.parametrize(
    ("file", "quant"),
    [
        ("Qwen3-Embedding-4B.i1-Q4_K_S.gguf", "Q4_K_S"),
        ("Qwen3-Embedding-4B-f16.gguf", "F16"),
        ("Qwen3-Embedding-4B-bf16.gguf", "BF16"),
        ("bge-m3-FP16.gguf", "F16"),
        ("bge-m3-Q3_K.gguf", "Q3_K"),
        ("all-MiniLM-L6-v2-ggml-model-f16.gguf", "F16"),
        ("ggml-model-f16", "F16"),
        ("model_q8_0.gguf", "Q8_0"),
        ("q8_0.GGUF", "Q8_0"),
        ("gguf/snowflake-arctic-embed-m-v1.5-q8_0.gguf", "Q8_0"),
        ("folder\\Model.IQ3_XXS.gguf", "IQ3_XXS"),
        ("gte-modernbert-base-Q4_k_m.gguf", "Q4_K_M"),
        ("Model-UD-Q4_K_XL.gguf", "Q4_K_XL"),
        ("Model-F16-Q4_0.gguf", "Q4_0"),
        ("model-q4_k_m-imat.gguf", "Q4_K_M"),
        ("Model-Q8_0-00001-of-00003.gguf", "Q8_0"),
        ("Qwen3-Embedding-4B-bf16_q8_0.gguf", None),
        ("Qwen3-Embedding-4B.gguf", None),
        ("Q8_0/model.gguf", None),
        ("SQ8_0.gguf", None),
        ("model-Q4_K_P.gguf", None),
        ("", None),
    ],
)
def test_quant_of_file_name(file, quant):
    """The quant is read from every way that uploaders write it, and from nothing else."""
    assert quant_of_file_name(file) == quant


@given(st.from_regex(r"[A-Za-z0-9.]{1,12}", fullmatch=True), st.sampled_from("-._"), st.sampled_from(QUANTS))
def test_quant_is_read_back_from_any_name(stem, joint, quant):
    """A quant after a model's name is found in either case, unless the name ends in a quant of its own."""
    file = f"{stem}z{joint}{quant}.gguf"
    assert quant_of_file_name(file) == quant_of_file_name(file.lower()) == quant


def test_quants_of_pinned_files_are_their_names():
    """Every file of the registry carries the quant that its table says."""
    for spec in REGISTRY.models:
        for file in spec.files:
            assert quant_of_file_name(file.file) == file.quant


@pytest.mark.parametrize(
    ("file", "shard"),
    [
        ("m-Q8_0-00001-of-00003.gguf", True),
        ("M-00002-OF-00002.GGUF", True),
        ("m-Q8_0.gguf", False),
        ("a-1-of-2.gguf", False),
    ],
)
def test_is_shard(file, shard):
    """Only llama.cpp's own numbering makes a file a part."""
    assert is_shard(file) is shard


def test_select_file_takes_the_one():
    """Among everything a repo holds, the one whole model of the quant is taken, in any order of the list."""
    names = [
        "m-Q4_K_M.gguf",
        "m-Q8_0.gguf",
        "mmproj-m-Q8_0.gguf",
        "m.imatrix.gguf",
        "imatrix-Q8_0.gguf",
        "b/m-Q8_0-00001-of-00002.gguf",
    ]
    files = [a_file(name) for name in names]
    assert select_file(files, "Q8_0", model_id="m").file == "m-Q8_0.gguf"
    assert select_file(files[::-1], "Q8_0", model_id="m").file == "m-Q8_0.gguf"


def test_select_file_lists_what_there_is():
    """A quant that is not there is refused with the quants that are, projectors and matrices apart."""
    files = [
        a_file(name) for name in ("m-Q8_0.gguf", "m-Q4_K_M.gguf", "mmproj-m-F16.gguf", "m-imatrix-F32.gguf", "m.gguf")
    ]
    with pytest.raises(UnknownQuantError, match=r"m has no F16; it has Q4_K_M, Q8_0") as caught:
        select_file(files, "F16", model_id="m")
    assert (caught.value.model_id, caught.value.quant, caught.value.available) == ("m", "F16", ("Q4_K_M", "Q8_0"))


def test_select_file_refuses_a_choice_between_two():
    """Two files with the quant are both listed with their sizes; neither is taken silently."""
    files = [a_file("b/m-Q8_0.gguf", 3 << 30), a_file("a/m-q8_0.gguf")]
    with pytest.raises(
        UnknownQuantError, match=r"a/m-q8_0.gguf \(size not known\), b/m-Q8_0.gguf \(3.00 GiB\)"
    ) as caught:
        select_file(files, "Q8_0", model_id="m")
    assert caught.value.available == ("a/m-q8_0.gguf", "b/m-Q8_0.gguf")


def test_select_file_says_that_only_parts_are_there():
    """A quant that exists only as a split model says so."""
    with pytest.raises(UnknownQuantError, match=r"no Q8_0 but in parts.*no GGUF at all"):
        select_file([a_file("m-Q8_0-00001-of-00002.gguf")], "Q8_0", model_id="m")


@pytest.mark.parametrize("name", ["m-Q8_0.safetensors", "m-Q8_0.gguf.part"])
def test_select_file_takes_only_ggufs(name):
    """Another format with a quant in its name is no candidate."""
    file = type("Listed", (), {"file": name, "size_bytes": 1})()
    with pytest.raises(UnknownQuantError, match="no GGUF at all"):
        select_file([file], "Q8_0", model_id="m")
