from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_embed.models.registry import load_registry
from gguf_embed.prompts import PromptSet, resolve_prompt

QWEN = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
BGE = "Represent this sentence for searching relevant passages: "

# Byte-exact from the model cards (research/models.md), written out so that models.toml cannot vouch for itself.
PUBLISHED = {
    "qwen3-embedding-4b": (QWEN, ""),
    "qwen3-embedding-0.6b": (QWEN, ""),
    "qwen3-embedding-8b": (QWEN, ""),
    "embeddinggemma-300m": ("task: search result | query: ", "title: none | text: "),
    "nomic-embed-text-v1.5": ("search_query: ", "search_document: "),
    "nomic-embed-text-v2-moe": ("search_query: ", "search_document: "),
    "bge-m3": ("", ""),
    "bge-small-en-v1.5": (BGE, ""),
    "bge-base-en-v1.5": (BGE, ""),
    "bge-large-en-v1.5": (BGE, ""),
    "mxbai-embed-large-v1": (BGE, ""),
    "snowflake-arctic-embed-l-v2.0": ("query: ", ""),
    "snowflake-arctic-embed-m-v1.5": (BGE, ""),
    "snowflake-arctic-embed-xs": (BGE, ""),
    "all-minilm-l6-v2": ("", ""),
    "jina-embeddings-v2-base-en": ("", ""),
    "jina-embeddings-v4-text-retrieval": ("Query: ", "Passage: "),
    "jina-embeddings-v5-text-small-retrieval": ("Query: ", "Document: "),
    "jina-embeddings-v5-text-nano-retrieval": ("Query: ", "Document: "),
    "granite-embedding-small-english-r2": ("", ""),
}
INSTRUCTED = PromptSet(query=QWEN, query_template="Instruct: {task}\nQuery:{text}", others=(("sts", "same: "),))


def resolve(prompts=INSTRUCTED, *, prompt_name=None, prompt=None, task=None):
    return resolve_prompt(prompts, prompt_name=prompt_name, prompt=prompt, task=task)


@pytest.mark.parametrize("model_id", PUBLISHED)
def test_registry_prompts_are_the_published_bytes(model_id):
    """Every model's query and document prompt is byte for byte what its card publishes."""
    prompts = load_registry().get(model_id).prompts
    assert (prompts.query, prompts.document) == PUBLISHED[model_id]


def test_every_registry_model_has_a_published_prompt():
    """A model cannot enter the registry without its prompts being written out in this test."""
    assert {spec.model_id for spec in load_registry().models} == set(PUBLISHED)


@pytest.mark.parametrize("model_id", ["qwen3-embedding-4b", "qwen3-embedding-0.6b", "qwen3-embedding-8b"])
def test_default_task_in_template_gives_the_query_prompt(model_id):
    """The template with the card's own task is the query prompt, so --task of the default changes no byte."""
    task = "Given a web search query, retrieve relevant passages that answer the query"
    assert resolve(load_registry().get(model_id).prompts, prompt_name="query", task=task) == QWEN


def test_names_lead_to_their_prompts():
    """Each name gives its own prefix, and no name gives none."""
    prompts = PromptSet(query="q: ", document="d: ", others=(("sts", "same: "),))
    assert prompts.names() == ("query", "document", "sts")
    assert [resolve(prompts, prompt_name=name) for name in (*prompts.names(), None)] == ["q: ", "d: ", "same: ", ""]


def test_prompt_wins_over_prompt_name():
    """An explicit prompt beats a name, an empty one and an unknown name included, as in sentence-transformers."""
    assert resolve(prompt="mine: ", prompt_name="query") == "mine: "
    assert resolve(prompt="", prompt_name="query") == ""
    assert resolve(prompt="mine: ", prompt_name="no such") == "mine: "


@pytest.mark.parametrize("task", [None, "find"])
def test_unknown_prompt_name_lists_the_known(task):
    """An unknown name is refused with every name there is, with a task and without."""
    with pytest.raises(ValueError, match=r"'passage'.*query, document, sts"):
        resolve(prompt_name="passage", task=task)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"prompts": PromptSet(query="q: "), "prompt_name": "query", "task": "find"}, "takes no task"),
        ({"prompt_name": "document", "task": "find"}, "not 'document'"),
        ({"prompt_name": None, "task": "find"}, "not None"),
        ({"prompt_name": "sts", "task": "find"}, "not 'sts'"),
        ({"prompt": "mine: ", "task": "find"}, "exclude each other"),
        ({"prompt_name": "query", "task": ""}, "empty"),
    ],
)
def test_task_without_a_place_is_refused(arguments, reason):
    """A task that could not be used is an error, never dropped."""
    with pytest.raises(ValueError, match=reason):
        resolve(**arguments)


@pytest.mark.parametrize(
    "template",
    [
        "Query:{text}",
        "Instruct: {task}\nQuery:",
        "{task} {text} {text}",
        "{task} {task} {text}",
        "{text} for {task}",
        "{task}{text}\n",
        "",
    ],
)
def test_template_needs_one_task_and_a_closing_text(template):
    """A template that could not become a prefix is refused when it is made."""
    with pytest.raises(ValueError, match="query_template"):
        PromptSet(query_template=template)


@pytest.mark.parametrize("others", [(("query", "x"),), (("sts", "x"), ("sts", "y")), (("", "x"),)])
def test_prompt_names_are_unique(others):
    """A further prompt can neither hide query or document nor another one."""
    with pytest.raises(ValueError, match="others"):
        PromptSet(others=others)


@given(st.text(min_size=1), st.text())
def test_task_and_text_are_kept_literally(task, text):
    """Whatever the task and text hold, they appear as they are, between and after the template's own words."""
    prefix = resolve(prompt_name="query", task=task)
    assert prefix + text == "Instruct: " + task + "\nQuery:" + text


@pytest.mark.parametrize("task", ["{text}", "{task}", "{", "}{0}", "a {text} b {task} c", "%s", "\\1"])
def test_braces_in_a_task_mean_nothing(task):
    """Format marks in a task are the user's letters, not ours."""
    assert resolve(prompt_name="query", task=task) == f"Instruct: {task}\nQuery:"


def test_white_space_of_a_template_is_kept():
    """Blanks at either end of a template are part of the prompt: Query: with a space is another prompt."""
    prompts = PromptSet(query_template=" Instruct: {task}\nQuery: {text}")
    assert resolve(prompts, prompt_name="query", task=" find ") == " Instruct:  find \nQuery: "
