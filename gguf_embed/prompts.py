"""Query and document prompts, byte-exact: which prefix goes before a text.

It knows no model names, no tokens and no files; prompts come from whoever calls.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PromptSet", "resolve_prompt"]

_TASK = "{task}"
_TEXT = "{text}"
_QUERY = "query"
_DOCUMENT = "document"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """The prompts a model was trained with.

    Attributes:
        query: prefix of a search query, with the model's default task where it takes one.
        document: prefix of a document.
        query_template: the query with its task left open; holds {task} once and ends with {text}, or None.
        others: further prompts as (name, prefix).
    """

    query: str = ""
    document: str = ""
    query_template: str | None = None
    others: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        template = self.query_template
        if template is not None and not (
            template.count(_TASK) == 1 and template.count(_TEXT) == 1 and template.endswith(_TEXT)
        ):
            raise ValueError(f"query_template is {template!r}; it holds {_TASK} once and ends with its only {_TEXT}")
        names = self.names()
        if "" in names or len(set(names)) < len(names):
            raise ValueError(f"others makes the names {names}; they are not empty and each is given once")

    def names(self) -> tuple[str, ...]:
        """Every prompt_name, query and document first."""
        return (_QUERY, _DOCUMENT, *(name for name, _ in self.others))

    def foreign(self, prompt: str | None) -> str | None:
        """Return a prefix of the caller's own that is none of the model's; None for the model's own, and for none."""
        own = ("", self.query, self.document, *(prefix for _, prefix in self.others))
        return None if prompt is None or prompt in own else prompt


def resolve_prompt(prompts: PromptSet, *, prompt_name: str | None, prompt: str | None, task: str | None) -> str:
    """Decide the prefix to put before each text.

    Args:
        prompts: what the model was trained with.
        prompt_name: one of `prompts.names()`; None for no prompt.
        prompt: a prefix of the caller's own; wins over prompt_name.
        task: takes the place of the default task; only for prompt_name "query".

    Returns:
        The prefix, "" for none; never stripped, never formatted.

    Raises:
        ValueError: prompt_name is unknown, or a task is given where none can go.

    Source: sentence-transformers 5, SentenceTransformer.encode (a prompt wins over a prompt_name).
    """
    if task is not None:
        return _with_task(prompts, prompt_name=prompt_name, prompt=prompt, task=task)
    if prompt is not None:
        return prompt
    if prompt_name is None:
        return ""
    _check_name(prompts, prompt_name)
    return {_QUERY: prompts.query, _DOCUMENT: prompts.document, **dict(prompts.others)}[prompt_name]


def _with_task(prompts: PromptSet, *, prompt_name: str | None, prompt: str | None, task: str) -> str:
    if prompt is not None:
        raise ValueError("prompt and task exclude each other: a prompt already says everything before the text")
    if prompts.query_template is None:
        raise ValueError(f"this model takes no task, so {task!r} has no place; leave task out")
    if prompt_name is not None:
        _check_name(prompts, prompt_name)
    if prompt_name != _QUERY:
        raise ValueError(f"a task belongs to prompt_name 'query', not {prompt_name!r}")
    if not task:
        raise ValueError("task is empty; leave it out for the model's default task")
    # No str.format: the task is the user's and may hold braces, even {text}.
    before, after = prompts.query_template.removesuffix(_TEXT).split(_TASK)
    return before + task + after


def _check_name(prompts: PromptSet, prompt_name: str) -> None:
    names = prompts.names()
    if prompt_name not in names:
        raise ValueError(f"unknown prompt_name {prompt_name!r}; this model's prompts are {', '.join(names)}")
