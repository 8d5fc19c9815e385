"""integrations/mteb.py and quality/tasks.py against mteb: its protocol, its mock tasks, and a task of our own."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from animals import DOCUMENTS, QUERY
from serving import Served

mteb = pytest.importorskip("mteb", reason="scripts/test-hosts runs this")
from datasets import Dataset
from mteb import TaskMetadata, mocks
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.mocks.mock_tasks.retrieval import general_args
from mteb.models import OpenAIAPIEncodeWrapper
from mteb.models.models_protocols import EncoderProtocol
from mteb.types import PromptType

from gguf_embed import Embedder, UnknownModelError
from gguf_embed.integrations.mteb import GGUFEncoder, model_meta
from gguf_embed.integrations.shared import close_shared_models
from gguf_embed.quality.datasets import load_sample
from gguf_embed.quality.tasks import find_tasks, run_tasks

KINDS = ("MockSTSTask", "MockRetrievalTask", "MockClassificationTask", "MockPairClassificationTask",
         "MockRerankingTask")  # fmt: skip


class SampleTask(AbsTaskRetrieval):
    """The retrieval sample of `gguf-embed eval` as a task of mteb: 222 queries over 240 documents."""

    metadata = TaskMetadata(type="Retrieval", name="Sample", main_score="ndcg_at_10", **general_args)

    def load_data(self, **_):
        sample = load_sample().retrieval
        queries = [{"id": f"q{at}", "text": text} for at, text in enumerate(sample.queries)]
        documents = [{"id": f"d{at}", "text": text, "title": ""} for at, text in enumerate(sample.documents)]
        graded = enumerate(sample.relevance)
        relevant = {f"q{at}": {f"d{to}": int(score) for to, score in one.items()} for at, one in graded}
        split = RetrievalSplitData(
            queries=Dataset.from_list(queries), corpus=Dataset.from_list(documents), relevant_docs=relevant,
            top_ranked=None,
        )  # fmt: skip
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


def score(encoder):
    """Main score of the sample, with all its digits."""
    result = mteb.evaluate(encoder, SampleTask(), cache=None, co2_tracker=False, show_progress_bar=False)
    return result.task_results[0].get_score()


def test_queries_and_documents_go_their_ways(expected, same, host_model, loads):
    """By prompt_type; without one a text goes as it is. Batches are one call; the model is loaded once."""
    encoder = GGUFEncoder(host_model)
    batches = [{"text": DOCUMENTS[:2]}, {"text": DOCUMENTS[2:]}]
    assert same(encoder.encode(batches, prompt_type=PromptType.document, batch_size=2), expected.documents)
    assert same(encoder.encode([{"text": [QUERY]}], prompt_type=PromptType.query), expected.query)
    assert not same(GGUFEncoder(host_model).encode([{"text": [QUERY]}]), expected.query)
    assert len(loads) == 1


def test_mteb_takes_it_for_an_encoder(host_model, expected):
    """By protocol, with its name, length and origin; `load_model` of its ModelMeta makes it again."""
    meta = model_meta(host_model, truncate_dim=64)
    assert (meta.name, meta.revision, meta.embed_dim) == ("gguf-embed/all-minilm-l6-v2", "F16", 64)
    assert (meta.max_tokens, meta.adapted_from) == (256, "sentence-transformers/all-MiniLM-L6-v2")
    encoder = meta.load_model()
    assert isinstance(encoder, EncoderProtocol)
    assert encoder.encode([{"text": [QUERY]}]).shape == (1, 64)
    assert encoder.mteb_model_meta.name == meta.name
    cosines = np.asarray(encoder.similarity(expected.documents, expected.query[None]))
    assert cosines.ravel() == pytest.approx(expected.documents @ expected.query, abs=1e-5)
    pairs = np.asarray(encoder.similarity_pairwise(expected.documents, expected.documents))
    assert pairs == pytest.approx([1, 1, 1], abs=1e-5)


def test_it_is_copied_and_made_again_as_it_was(host_model, loads):
    """With its options; a copy holds no model, and closing all models ends none."""
    encoder = GGUFEncoder(host_model, truncate="end", device="cpu")
    again = encoder.mteb_model_meta.load_model()
    for one in (again, copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert one.encode([{"text": ["word " * 600]}]).shape == (1, 384)
    assert encoder.mteb_model_meta.experiment_kwargs == {"truncate": "end"}
    assert len(loads) == 1
    close_shared_models()
    assert encoder.encode([{"text": [QUERY]}]).shape == (1, 384)


def test_instructions_of_tasks(qwen3_host):
    """A task's own instruction takes the place of the model's, for queries alone and where it is asked for."""
    task = SampleTask()
    task.metadata = task.metadata.model_copy(update={"prompt": {"query": "Find the recipe"}})
    batch = [{"text": ["rice"]}]
    with Embedder(qwen3_host) as embedder:
        wanted = embedder.encode_query("rice", task="Find the recipe")
        plain = embedder.encode_query("rice")
        document = embedder.encode_document("rice")
        told = GGUFEncoder(embedder, instructions=True)
        rows = told.encode(batch, task_metadata=task.metadata, prompt_type=PromptType.query)
        assert rows[0] @ wanted > 0.9999 > rows[0] @ plain
        assert told.encode(batch, task_metadata=task.metadata, prompt_type=PromptType.document)[0] @ document > 0.9999
        untold = GGUFEncoder(embedder).encode(batch, task_metadata=task.metadata, prompt_type=PromptType.query)
        assert untold[0] @ plain > 0.9999


def test_mock_tasks_run_without_a_network(host_model):
    """Five kinds of them give finite scores, the same ones twice."""
    with Embedder(host_model) as embedder:
        runs = [run_tasks(embedder, [getattr(mocks, name)() for name in KINDS]) for _ in range(2)]
    assert runs[0] == runs[1]
    assert [name for name, _ in runs[0]] == list(KINDS)
    assert all(-1 <= value <= 1 for _, value in runs[0])


def test_a_task_scores_the_same_through_the_server(starter_cache, tmp_path):
    """Our encoder, and mteb's OpenAI wrapper over our server: nDCG@10 is the same to its last digit."""
    assert starter_cache.is_file()
    with Embedder("all-minilm-l6-v2") as embedder:
        ours = score(GGUFEncoder(embedder))
    served = Served(tmp_path, starter_cache, "all-minilm-l6-v2")
    try:
        theirs = score(OpenAIAPIEncodeWrapper(served.url, "all-minilm-l6-v2", use_chat_template=False))
    finally:
        served.stop()
    assert ours == theirs
    assert ours > 0.75


def test_a_task_that_there_is_not(host_model):
    """The suggestion of mteb is passed on; a model that nobody knows is refused."""
    assert [task.metadata.name for task in find_tasks(["STSBenchmark"])] == ["STSBenchmark"]
    with pytest.raises(ValueError, match=r"mteb: 'STSBenchmrk' not found\. Did you mean: 'STSBenchmark'"):
        find_tasks(["STSBenchmrk"])
    with pytest.raises(UnknownModelError):
        GGUFEncoder("qwen3-embeding-4b")
    assert GGUFEncoder(host_model, "abc").mteb_model_meta.revision == "abc"
