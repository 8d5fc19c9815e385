"""Pages as tests read them: their blocks, links and commands, and how a block is run.

Plain functions that know no fixture, so that tests of other environments can run the blocks that need these.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from markdown_it import MarkdownIt

from gguf_embed.cli.app import cli
from gguf_embed.models.registry import load_registry

ROOT = Path(__file__).parents[1]
SERVER = "127.0.0.1:11435"
SHELLS = ("sh", "console")

_TOLERANCE = 0.005
_NUMBER = re.compile(r"-?\d\.\d+(?:e-?\d+)?")
# What ends a command on a line, or begins another one.
_BETWEEN_COMMANDS = re.compile(r"[|&;()<>]+")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of code.

    Attributes:
        page: path from the repository's root.
        line: of the page, where the code begins.
        language: after the fence; "" for none.
        text: the code.
        prints: the text block right below, None where there is none.
    """

    page: str
    line: int
    language: str
    text: str
    prints: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True, kw_only=True)
class Skip:
    """Code that is not run, and why.

    Attributes:
        page: path from the repository's root.
        needle: part of it: of one command of a shell block, or of a Python block; "" for all of the page.
        reason: for people.
    """

    page: str
    needle: str
    reason: str

    def takes(self, block: Block, code: str) -> bool:
        """Whether this is about a command, or a whole block."""
        return self.page == block.page and self.needle in code


def pages() -> list[str]:
    """List the README and the pages of the site, as paths from the root."""
    return ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]


def read(page: str) -> str:
    """Return a page's text."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """List a page's blocks of code, top to bottom; directives of the site are none."""
    tokens = MarkdownIt("commonmark").enable("table").parse(read(page))
    found = []
    for token, below in itertools.zip_longest(tokens, tokens[1:]):
        if token.type == "fence" and not token.info.startswith("{"):
            prints = below.content if below is not None and below.type == "fence" and below.info == "text" else None
            found.append(
                Block(page=page, line=token.map[0] + 2, language=token.info, text=token.content, prints=prints)
            )
    return found


def inline_code(page: str) -> list[str]:
    """List what stands in single backticks."""
    return [token.content for token in _inline(page) if token.type == "code_inline"]


def links(page: str) -> list[str]:
    """List where links and images lead."""
    names = {"link_open": "href", "image": "src"}
    return [str(token.attrs[names[token.type]]) for token in _inline(page) if token.type in names]


def anchors(page: str) -> set[str]:
    """Make the anchors that Git hosts give a page's headings."""
    tokens = MarkdownIt("commonmark").parse(read(page))
    words = [after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in words}


def _inline(page: str) -> Iterator[Any]:
    for token in MarkdownIt("commonmark").enable("table").parse(read(page)):
        yield from token.children or ()


# Commands


def commands(block: Block) -> list[str]:
    """List the commands of a shell block, one for each line and what goes on from it."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def calls(command: str) -> list[list[str]]:
    """List the arguments of each `gguf-embed` in a line of shell."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    words = itertools.takewhile(lambda word: not word.startswith("#"), lexer)
    parts = [list(part) for is_end, part in itertools.groupby(words, _BETWEEN_COMMANDS.fullmatch) if not is_end]
    return [part[part.index("gguf-embed") + 1 :] for part in parts if "gguf-embed" in part]


def check_call(arguments: list[str]) -> None:
    """Parse a command line with click's own parser, without running it.

    Raises:
        click.UsageError: no such verb, no such option, or a value that it cannot have.
    """
    context = click.Context(cli, info_name="gguf-embed")
    if not arguments or arguments[0].startswith("-") or arguments[0].isupper():
        return
    _, command, rest = cli.resolve_command(context, arguments)
    inner = click.Context(command, info_name=command.name, parent=context)
    given, _, _ = command.make_parser(inner).parse_args(list(rest))
    for option in command.get_params(inner):
        if isinstance(option, click.Option) and isinstance(option.type, click.Choice) and option.name in given:
            option.type_cast_value(inner, given[option.name])


def option_names() -> set[str]:
    """Return the long options of all commands."""
    context = click.Context(cli)
    found = [cli.get_command(context, name).params for name in cli.list_commands(context)]
    opts = [(*option.opts, *option.secondary_opts) for option in itertools.chain(cli.params, *found)]
    return {"--help", *(name for names in opts for name in names if name.startswith("--"))}


# Running


def same(shown: str, promised: str) -> bool:
    """Compare line by line: numbers to 0.005, since processors round F16 differently; ... stands for anything."""
    shown_lines, promised_lines = ([line.rstrip() for line in text.strip("\n").split("\n")]
                                   for text in (shown, promised))  # fmt: skip
    return len(shown_lines) == len(promised_lines) and all(map(_same_line, shown_lines, promised_lines))


def _same_line(shown: str, promised: str) -> bool:
    promised = re.sub(r"-?(?:\d[\d.]*)?\.\.\.", "...", promised)  # a number that is cut short may round in another way
    words = [re.escape(text).replace(r"\.\.\.", ".*") for text in _NUMBER.split(promised)]
    found = re.fullmatch(f"({_NUMBER.pattern})".join(words), shown)
    pairs = zip(found.groups(), _NUMBER.findall(promised), strict=True) if found else ()
    return found is not None and all(abs(float(one) - float(other)) <= _TOLERANCE for one, other in pairs)


def run_python(block: Block, *, replacing: Mapping[str, str] | None = None, names: dict[str, Any] | None = None) -> str:
    """Run a Python block in this process and return what it printed.

    Args:
        block: the block.
        replacing: put in place of texts that stand in it, such as an address.
        names: what is there already; it takes what the block makes.

    Raises:
        AssertionError: it printed something else than the text block below it.
    """
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = compile(_replaced(block.text, replacing), str(block), "exec", dont_inherit=True)  # ours are text
        exec(code, {} if names is None else names)  # noqa: S102 - our own text
    _compare(block, output.getvalue(), block.prints)
    return output.getvalue()


def run_shell(
    block: Block, *, without: Iterable[str] = (), replacing: Mapping[str, str] | None = None, timeout_s: float = 120
) -> None:
    """Run a shell block in the current folder: `sh` as one script, `console` command by command with what each prints.

    Args:
        block: the block.
        without: commands of it to leave out, as `commands` gives them.
        replacing: put in place of texts that stand in it.
        timeout_s: for each script or command.

    Raises:
        AssertionError: an exit code other than 0, or another output than the page has.
    """
    left_out = set(without)
    if block.language == "console":
        for command, prints in _dialogue(block.text):
            if command not in left_out:
                _compare(block, _bash(block, _replaced(command, replacing), timeout_s), prints)
        return
    script = "\n".join(command for command in commands(block) if command not in left_out)
    if script:
        _compare(block, _bash(block, _replaced(script, replacing), timeout_s), block.prints)


def _dialogue(text: str) -> Iterator[tuple[str, str | None]]:
    for part in re.split(r"(?m)^\$ ", text.replace("\\\n", " "))[1:]:
        command, _, prints = part.partition("\n")
        yield command, prints or None


def _bash(block: Block, script: str, timeout_s: float) -> str:
    done = subprocess.run(  # `head` may have enough before a command is done: no pipefail
        ["bash", "-euc", script], capture_output=True, text=True, timeout=timeout_s, check=False, env=os.environ.copy()  # noqa: S607
    )  # fmt: skip
    assert done.returncode == 0, f"{block}: exit code {done.returncode}\n{script}\n{done.stderr}"
    return done.stdout


def _replaced(text: str, replacing: Mapping[str, str] | None) -> str:
    for old, new in (replacing or {}).items():
        text = text.replace(old, new)
    return text


def _compare(block: Block, shown: str, promised: str | None) -> None:
    assert promised is None or same(shown, promised), f"{block} printed\n{shown}\nand the page has\n{promised}"


# What pages say of the registry


def models_table() -> str:
    """Write the table of docs/models.md from models.toml."""
    lines = [
        "| name | dim | shorter | tokens | prompts | tried in this order | licence |",
        "|---|--:|---|--:|---|---|---|",
    ]
    for spec in load_registry().models:
        shorter = spec.matryoshka.describe(spec.n_embd).removeprefix(f"{spec.n_embd}, ") if spec.matryoshka else ""
        prompts = ", ".join(name for name in ("query", "document") if getattr(spec.prompts, name))
        prompts += ", a task" if spec.prompts.query_template else ""
        licence = spec.license if spec.commercial else f"{spec.license}, **non-commercial**"
        cells = (f"`{spec.model_id}`", f"{spec.n_embd:,}", shorter, f"{spec.max_tokens:,}", prompts,
                 " ".join(spec.ladder), licence)  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"
