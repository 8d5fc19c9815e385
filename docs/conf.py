"""How the pages of this folder become a site: `scripts/docs` builds it.

Pages are Markdown that reads well on a plain Git host. What only the site has is made here: the command line's
reference from click's own help, links from types to their pages, and the columns of the coming-from pages.
"""

# ruff: noqa: INP001 - Sphinx reads this file by its path
from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from docutils import nodes
from numpy.typing import ArrayLike, NDArray
from sphinx.domains.python import PyObject
from sphinx.pycode import ModuleAnalyzer
from sphinx.transforms import SphinxTransform
from sphinx.util.typing import stringify_annotation

import gguf_embed
from gguf_embed import errors
from gguf_embed.cli.app import cli

if TYPE_CHECKING:
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "gguf-embed"
author = "the gguf-embed contributors"
project_copyright = author
version = release = gguf_embed.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"gguf-embed {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
smartquotes_action = "D"  # dashes between words; quotes stay as they are typed
html_show_sphinx = False
pygments_dark_style = "a11y-dark"  # the default underlines names, and hides what is below the line
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-api-name": "#0b5f8a", "color-api-pre-name": "#5f6b76"},
    "dark_css_variables": {"color-api-name": "#7cc4f0", "color-api-pre-name": "#9aa7b3"},
}

myst_heading_anchors = 4
default_role = "literal"  # single backticks in docstrings are code

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has the types
napoleon_use_rtype = False
napoleon_preprocess_types = False
napoleon_custom_sections = [("Source", "notes_style")]
nitpicky = True
nitpick_ignore_regex = [
    # Types of other projects, and of our own that no page is about; links to them would need the network.
    (r"py:.*", r"(numpy|np|collections|pathlib|os|typing|click)\..*"),
    (r"py:.*", r"(NDArray|ArrayLike|float32|Path|Any|Self|Callable|Iterable|Iterator|Sequence)"),
]

linkcheck_anchors = False  # pages of Git hosts make theirs in the browser
linkcheck_ignore = [r"http://(127\.0\.0\.1|localhost).*"]
linkcheck_timeout = 20

# Overloads would stand in place of the signatures, whose keywords are what a reader looks for.
for _name in ("gguf_embed.embedder",):
    _analyzer = ModuleAnalyzer.for_module(_name)
    _analyzer.analyze()
    _analyzer.overloads.clear()

for _field in PyObject.doc_field_types:
    if _field.name == "variable":
        _field.label = "Attributes"

ARRAY_TYPES = {
    stringify_annotation(ArrayLike, "smart"): "ArrayLike",
    stringify_annotation(NDArray[Any], "smart"): "NDArray[Any]",
    stringify_annotation(NDArray[np.float32], "smart"): "NDArray[float32]",
}
N_SHARED = 5  # an option that so many commands have is described once, below them


def setup(app: Sphinx) -> dict[str, bool]:
    """Add what Sphinx does not do by itself."""
    app.connect("source-read", _made)
    app.connect("autodoc-process-signature", _short_types)
    app.connect("missing-reference", _public_name)
    app.add_transform(SideBySide)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Find what `gguf_embed` exports where a signature has the module that it comes from."""
    name = node.get("reftarget", "").rpartition(".")[2]
    if node.get("refdomain") != "py" or app.builder is None or name not in gguf_embed.__all__:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", f"gguf_embed.{name}", node, content)


def _short_types(*event: Any) -> tuple[str, str | None] | None:
    """Write numpy's types as the source does, and not as what they stand for."""
    arguments, returns = event[-2:]
    if arguments is None:  # a property
        return None
    for long, short in ARRAY_TYPES.items():
        arguments, returns = arguments.replace(long, short), returns and returns.replace(long, short)
    return arguments, returns


def _made(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Put what the program says of itself where a page has a comment for it."""
    for page, comment, make in (
        ("reference/cli", "<!-- commands -->", _commands),
        ("reference/errors", "<!-- errors -->", _errors),
    ):
        if docname == page:
            source[0] = source[0].replace(comment, "\n".join(make()))


def _errors() -> Iterator[str]:
    """Each class of error with its exit code and its HTTP status."""
    classes = [one for one in vars(errors).values() if isinstance(one, type) and one.__module__ == errors.__name__]
    for one in classes:
        yield f"```{{eval-rst}}\n.. autoexception:: gguf_embed.{one.__name__}\n   :no-members:\n```\n"


def _commands() -> Iterator[str]:
    """A section for each command, and one for the options that most of them have."""
    group = click.Context(cli, info_name="gguf-embed")
    contexts = []
    for name in cli.list_commands(group):
        command = cli.get_command(group, name)
        if command is not None:
            contexts.append(click.Context(command, info_name=name, parent=group))
    records = [record for context in contexts for record in _records(context)]
    shared = [record for record in dict.fromkeys(records) if records.count(record) >= N_SHARED]
    for context in contexts:
        yield f"\n## {context.info_name}\n"
        yield f"```text\n{context.command_path} {' '.join(context.command.collect_usage_pieces(context))}\n```\n"
        yield from _help(context.command.help or "")
        own = _records(context)
        yield from (_option(context.command_path, *record) for record in own if record not in shared)
        if also := [f"`{record[0].split()[-2 if ' ' in record[0] else -1]}`" for record in own if record in shared]:
            yield f"And, as [below](#options-of-many-commands): {', '.join(also)}.\n"
    yield "\n## Options of many commands\n"
    yield from (_option("gguf-embed", *record) for record in shared)


def _records(context: click.Context) -> list[tuple[str, str]]:
    """Names and help of a command's options."""
    options = (one for one in context.command.get_params(context) if isinstance(one, click.Option))
    return [record for one in options if (record := one.get_help_record(context))]


def _help(text: str) -> Iterator[str]:
    """A command's words; what click leaves as it is, its examples, as code."""
    for block in re.split(r"\n\s*\n", re.sub(r"(?m)^ {4}", "", text).strip()):
        lines = block.removeprefix("\b\n")
        yield (f"```sh\n{re.sub('(?m)^  ', '', lines).rstrip()}\n```" if lines != block else _words(block)) + "\n"


def _option(program: str, names: str, words: str) -> str:
    """One option, which can be linked to; its choices break between lines."""
    names = names.replace("|", " | ")
    return f"```{{program}} {program}\n```\n\n```{{option}} {names}\n{_words(words)}\n```\n"


def _words(text: str) -> str:
    """Help as Markdown: nothing in it is markup, and options are code."""
    text = re.sub(r"([\\`*_<>\[\]])", r"\\\1", text)
    return re.sub(r"(?<![\w-])(--?[a-z][a-z-]*)", r"`\1`", text)


class SideBySide(SphinxTransform):
    """Put what follows two bold lines next to each other: the same task with another program and with this one.

    A bold line alone, **Ollama**, begins a column. It holds the code after it, or words and no code.
    """

    default_priority = 750

    def apply(self) -> None:
        """Find the rows of a coming-from page."""
        if not self.env.docname.startswith("coming-from/"):
            return
        for section in list(self.document.findall(nodes.section)):
            row: nodes.container | None = None
            for child in list(section.children):
                if _is_label(child):
                    if row is None:
                        row = nodes.container(classes=["row"])
                        section.replace(child, row)
                    else:
                        section.remove(child)
                    row += nodes.container("", child, classes=["column"])
                elif row is not None and (isinstance(child, nodes.literal_block) or len(row[-1]) == 1):
                    section.remove(child)
                    row[-1].append(child)
                else:
                    row = None


def _is_label(node: nodes.Node) -> bool:
    words = [child for child in node.children if child.astext()]
    return isinstance(node, nodes.paragraph) and len(words) == 1 and isinstance(words[0], nodes.strong)
