"""quality/tasks.py: an Embedder as mteb asks for it; skipped where mteb is not installed, which needs torch."""

from __future__ import annotations

import builtins
from enum import Enum
from types import SimpleNamespace

import numpy as np
import pytest

from gguf_embed.encoding import EmbedReport, EncodeOptions
from gguf_embed.errors import DownloadError, MissingExtraError
from gguf_embed.quality.tasks import MtebEncoder, find_tasks, load_tasks, run_tasks
from gguf_embed.vectors import l2_normalize


class FakeEmbedder:
    """Counts letters; the diary has what it was asked."""

    model_id, n_embd, plan = "owner/fake", 26, SimpleNamespace(quant="Q8_0")

    def __init__(self):
        self.asked = []

    def report(self, texts, options):
        self.asked.append((options, list(texts)))
        rows = [[text.lower().count(chr(97 + at)) for at in range(26)] for text in texts]
        rows = l2_normalize(np.array(rows, dtype=np.float32).reshape(-1, 26))
        return EmbedReport(embeddings=rows, n_tokens=(1,) * len(texts), truncated=())


@pytest.mark.parametrize("ask", [lambda: find_tasks(["a"]), lambda: MtebEncoder(FakeEmbedder()),
                                 lambda: run_tasks(FakeEmbedder(), [])])  # fmt: skip
def test_without_mteb_it_is_said_at_the_door(ask, monkeypatch):
    """With the line that installs it."""
    real = builtins.__import__

    def missing(name, *arguments, **options):
        if name.split(".")[0] == "mteb":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtraError, match=r'pip install "gguf-embed\[mteb\]"'):
        ask()


def test_data_that_cannot_be_had():
    """Whatever its loader raises is an error of the network, in its own words' first line."""

    def refuse():
        raise ConnectionError("Couldn't reach the hub\nin three tries")

    metadata = SimpleNamespace(name="T", dataset={"path": "owner/data"})
    with pytest.raises(DownloadError, match="the data of T cannot be had: Couldn't reach the hub; go online") as caught:
        load_tasks([SimpleNamespace(load_data=refuse, metadata=metadata)])
    assert caught.value.url == "owner/data"


# What needs mteb itself


@pytest.fixture
def mteb():
    """Its import warns of its own dependencies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        return pytest.importorskip("mteb")


@pytest.mark.filterwarnings("ignore")
def test_prompts_go_by_prompt_type(mteb):
    """Queries with the query prompt, documents with theirs, everything else as it is; batches are one call."""
    from mteb.types import PromptType  # noqa: PLC0415 - where it is installed

    embedder = FakeEmbedder()
    encoder = MtebEncoder(embedder, truncate="end")
    for prompt_type in (None, PromptType.query, PromptType.document):
        rows = encoder.encode([{"text": ["a", "b"]}, {"text": ["c"]}], prompt_type=prompt_type, batch_size=2)
        assert rows.shape == (3, 26)
    assert [options for options, _ in embedder.asked] == [
        EncodeOptions(prompt_name=name, truncate="end") for name in (None, "query", "document")
    ]
    assert {tuple(texts) for _, texts in embedder.asked} == {("a", "b", "c")}
    assert issubclass(PromptType, Enum)


@pytest.mark.filterwarnings("ignore")
def test_mteb_takes_it_for_an_encoder(mteb):
    """By protocol, with its name, dimension and similarity."""
    from mteb.models.models_protocols import EncoderProtocol  # noqa: PLC0415 - where it is installed

    encoder = MtebEncoder(FakeEmbedder())
    assert isinstance(encoder, EncoderProtocol)
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.revision, meta.embed_dim) == ("gguf-embed/owner--fake", "Q8_0", 26)
    a, b = np.eye(26, dtype=np.float32)[:2], np.eye(26, dtype=np.float32)[1:3]
    assert np.asarray(encoder.similarity(a, b)).tolist() == [[0, 0], [1, 0]]
    assert np.asarray(encoder.similarity_pairwise(a, b)).tolist() == [0, 0]


@pytest.mark.filterwarnings("ignore")
def test_tasks_run_without_a_network(mteb):
    """Mock tasks of mteb, of five kinds, give finite scores, the same ones twice."""
    from mteb import mocks  # noqa: PLC0415 - where it is installed

    names = ("MockSTSTask", "MockRetrievalTask", "MockClassificationTask", "MockPairClassificationTask",
             "MockRerankingTask")  # fmt: skip
    embedder = FakeEmbedder()
    runs = [run_tasks(embedder, [getattr(mocks, name)() for name in names]) for _ in range(2)]
    assert runs[0] == runs[1]
    assert [name for name, _ in runs[0]] == list(names)
    assert all(-1 <= score <= 1 for _, score in runs[0])
    assert {options.prompt_name for options, _ in embedder.asked} == {None, "query", "document"}


@pytest.mark.filterwarnings("ignore")
def test_a_task_that_there_is_not(mteb):
    """The suggestion of mteb is passed on."""
    assert [task.metadata.name for task in find_tasks(["STSBenchmark"])] == ["STSBenchmark"]
    with pytest.raises(ValueError, match=r"mteb: 'STSBenchmrk' not found\. Did you mean: 'STSBenchmark'"):
        find_tasks(["STSBenchmrk"])
