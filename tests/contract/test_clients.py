"""The clients that people have, unchanged, against the server: their vectors are the library's."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

huggingface_hub = pytest.importorskip("huggingface_hub")
ollama = pytest.importorskip("ollama")
openai = pytest.importorskip("openai")

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore::ResourceWarning")]  # the clients' own

TEXTS = ["A cat sleeps.", "The kitten is napping.", "Interest rates rose.", "Wie ist das Wetter morgen?", "一只猫"]
NAME = "all-minilm-l6-v2"


@pytest.fixture(scope="module")
def expected(library):
    """The library's vectors."""
    return library.encode(TEXTS)


def check(rows, expected):
    """Equal to 1e-6, and unit length."""
    rows = np.asarray(rows, dtype=np.float32)
    assert rows.shape == expected.shape
    assert np.abs(rows - expected).max() <= 1e-6


# OpenAI


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}], ids=str)
def test_openai_embeds_a_list(client, expected, options):
    """Without a format the client asks for base64 and decodes it itself."""
    reply = client.embeddings.create(model=NAME, input=TEXTS, **options)
    rows = [item.embedding for item in reply.data]
    if options.get("encoding_format") == "base64":
        rows = [np.frombuffer(base64.b64decode(one), dtype="<f4") if isinstance(one, str) else one for one in rows]
    check(rows, expected)
    assert [item.index for item in reply.data] == list(range(len(TEXTS)))
    assert reply.usage.prompt_tokens == reply.usage.total_tokens > 0
    assert (reply.object, reply.model) == ("list", NAME)


def test_openai_embeds_one_text(client, expected):
    """A string is a list of one."""
    check([client.embeddings.create(model=NAME, input=TEXTS[0]).data[0].embedding], expected[:1])


def test_openai_streams_a_large_answer(client, library):
    """An answer that is written in parts is whole, as base64 and as numbers."""
    texts = [f"text {number}" for number in range(300)]
    rows = library.encode(texts)
    for form in ("float", "base64"):
        reply = client.embeddings.with_raw_response.create(model=NAME, input=texts, encoding_format=form)
        assert len(json.loads(reply.content)["data"]) == 300
    check([item.embedding for item in client.embeddings.create(model=NAME, input=texts).data], rows)


def test_openai_gets_its_own_errors(client):
    """By class, with message, param and code."""
    with pytest.raises(openai.NotFoundError) as missing:
        client.embeddings.create(model="text-embedding-3-small", input="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.embeddings.create(model=NAME, input="word " * 1000)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")
    with pytest.raises(openai.BadRequestError, match="all-minilm-l6-v2 was not trained to be cut"):
        client.embeddings.create(model=NAME, input="x", dimensions=64)
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model=NAME, input=[1, 2, 3])
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model=NAME, input=[[1, 2], [3]])


def test_openai_takes_our_own_fields(client, library):
    """`truncate` cuts, as the library does."""
    text = "word " * 1000
    reply = client.embeddings.create(model=NAME, input=text, extra_body={"truncate": "end", "input_type": "query"})
    check([reply.data[0].embedding], library.encode_query([text], truncate="end"))


def test_openai_lists_models(client):
    """With the longest text that each takes."""
    models = {model.id: model for model in client.models.list()}
    assert models[NAME].max_model_len == 256
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope/nope")


def test_openai_async(served, expected):
    """Many at once on one client; packed with others' texts, rows differ in their last bits."""

    async def many():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
            wanted = [client.embeddings.create(model=NAME, input=TEXTS) for _ in range(20)]
            return await asyncio.gather(*wanted)

    for reply in asyncio.run(many()):
        rows = np.array([item.embedding for item in reply.data], dtype=np.float32)
        assert (rows * expected).sum(axis=1).min() >= 0.99999


def test_openai_for_node(served, expected, tmp_path):
    """The JavaScript client, from the package index."""
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("there is no Node here")
    script = Path(__file__).with_name("openai-client.mjs")
    shutil.copy(script, tmp_path)
    (tmp_path / "package.json").write_text('{"private": true, "type": "module"}')
    command = [shutil.which("npm"), "install", "--silent", "--no-audit", "--no-fund", "openai@6"]
    installed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    if installed.returncode:
        pytest.skip(f"openai for Node cannot be installed: {installed.stderr[-200:]}")
    command = [shutil.which("node"), script.name, served.url, NAME]
    done = subprocess.run(
        command, input=json.dumps(TEXTS), cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for rows in (told["usual"], told["float"]):
        check(rows, expected)
    assert told["missing"] == [404, "model_not_found"]


# Ollama


@pytest.fixture
def ollama_client(served):
    return ollama.Client(host=served.url)


def test_ollama_embeds(ollama_client, expected):
    """One text and a list, with counts."""
    reply = ollama_client.embed(model="all-minilm", input=TEXTS)
    check(reply.embeddings, expected)
    assert reply.prompt_eval_count > 0
    assert reply.total_duration >= reply.load_duration >= 0
    check(ollama_client.embed(model="all-minilm:latest", input=TEXTS[0], keep_alive="5m").embeddings, expected[:1])


def test_ollama_cuts_unless_told_otherwise(ollama_client, library):
    """Its own words where it may not."""
    long = "word " * 1000
    check(ollama_client.embed(model=NAME, input=long).embeddings, library.encode([long], truncate="end"))
    with pytest.raises(ollama.ResponseError, match="the input length exceeds the context length") as error:
        ollama_client.embed(model=NAME, input=long, truncate=False)
    assert error.value.status_code == 400


def test_ollama_legacy_route_is_not_normalised(ollama_client, library):
    """As Ollama has it."""
    row = ollama_client.embeddings(model=NAME, prompt=TEXTS[0]).embedding
    check([row], library.encode(TEXTS[:1], normalize_embeddings=False))
    assert not ollama_client.embeddings(model=NAME, prompt="").embedding


def test_ollama_knows_its_models(ollama_client):
    """list, ps and show; what cannot be done is refused."""
    assert f"{NAME}:F16" in [model.model for model in ollama_client.list().models]
    ollama_client.embed(model=NAME, input=[])
    running = ollama_client.ps().models[0]
    assert (running.name, running.details.quantization_level) == (NAME, "F16")
    shown = ollama_client.show(NAME)
    assert shown.capabilities == ["embedding"]
    assert shown.modelinfo["bert.embedding_length"] == 384
    with pytest.raises(ollama.ResponseError, match="does not support generate"):
        ollama_client.generate(model=NAME, prompt="x")
    with pytest.raises(ollama.ResponseError, match="not found") as error:
        ollama_client.embed(model="nope", input="x")
    assert error.value.status_code == 404


def test_ollama_pulls(ollama_client):
    """What is here already is told as a pull that is done; what cannot be had is its error."""
    assert [one.status for one in ollama_client.pull(NAME, stream=True)][-1] == "success"
    assert ollama_client.pull(NAME).status == "success"
    with pytest.raises(ollama.ResponseError):
        list(ollama_client.pull("qwen3-embedding:0.6b", stream=True))


# Text Embeddings Inference


def test_huggingface_client_embeds(served, expected):
    """It posts to /; one text and a list, normalised or not."""
    client = huggingface_hub.InferenceClient(model=served.url)
    check(client.feature_extraction(TEXTS), expected)
    check(client.feature_extraction(TEXTS[0]), expected[:1])


def test_huggingface_client_compares(served, expected):
    """Cosines of the first with the others."""
    client = huggingface_hub.InferenceClient(model=served.url)
    found = client.sentence_similarity(TEXTS[0], other_sentences=TEXTS[1:])
    assert np.abs(np.array(found) - expected[1:] @ expected[0]).max() <= 1e-6


def test_tei_routes(served, expected, library):
    """/embed, /similarity, /tokenize and /info, as its OpenAPI has them."""
    check(served.ask("POST", "/embed", {"inputs": TEXTS})[1], expected)
    raw = served.ask("POST", "/embed", {"inputs": TEXTS, "normalize": False})[1]
    check(raw, library.encode(TEXTS, normalize_embeddings=False))
    pair = {"source_sentence": TEXTS[0], "sentences": TEXTS[1:3]}
    found = served.ask("POST", "/similarity", {"inputs": pair})[1]
    assert np.abs(np.array(found) - expected[1:3] @ expected[0]).max() <= 1e-6
    tokens = served.ask("POST", "/tokenize", {"inputs": ["a cat", "a dog"]})[1]
    assert [[token["id"] for token in text] for text in tokens] == library.tokenize(["a cat", "a dog"])
    assert [token["special"] for token in tokens[0]] == [True, False, False, True]
    plain = served.ask("POST", "/tokenize", {"inputs": "a cat", "add_special_tokens": False})[1]
    assert [token["text"].strip() for token in plain[0]] == ["a", "cat"]
    info = served.ask("GET", "/info")[1]
    assert (info["model_id"], info["max_input_length"]) == (NAME, 256)
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}


def test_tei_gets_its_own_errors(served):
    """Status and error_type."""
    cases = [
        ({"inputs": []}, 400, "Empty"),
        ({"inputs": "word " * 1000}, 422, "Validation"),
        ({"inputs": [[1, 2]]}, 422, "Validation"),
        ({"inputs": "x", "prompt_name": "nope"}, 422, "Validation"),
        ({"inputs": "x", "dimensions": 64}, 422, "Validation"),
        ({"inputs": "x", "truncation_direction": "Left"}, 422, "Validation"),
        (b"{", 422, "Validation"),
    ]
    for body, status, kind in cases:
        found, told = served.ask("POST", "/embed", body)
        assert (found, told["error_type"]) == (status, kind), body
        assert told["error"]


# LangChain


def test_langchain_openai(served, expected):
    """Text instead of token ids, as the error tells those who leave it out."""
    langchain_openai = pytest.importorskip("langchain_openai")
    known = {"base_url": f"{served.url}/v1", "api_key": "none", "model": NAME, "max_retries": 0}
    model = langchain_openai.OpenAIEmbeddings(check_embedding_ctx_length=False, **known)
    check(model.embed_documents(TEXTS), expected)
    check([model.embed_query(TEXTS[0])], expected[:1])


def test_langchain_ollama(served, expected):
    """Documents and a query."""
    langchain_ollama = pytest.importorskip("langchain_ollama")
    model = langchain_ollama.OllamaEmbeddings(model=NAME, base_url=served.url)
    check(model.embed_documents(TEXTS), expected)
    check([model.embed_query(TEXTS[0])], expected[:1])
