"""The arrows of DESIGN section 2 and the sizes of STYLE.md, held over the syntax tree."""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gguf_embed"
N_LINES_MODULE, N_LINES_FUNCTION = 400, 50
KNOWS_NOT = re.compile(r"\b(must not know|must not be|knows? no|knows? nothing|decides? nothing)\b", re.IGNORECASE)


def name_of(path):
    """The dotted name of a module file."""
    parts = ("gguf_embed", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), filename=str(path)) for name, path in FILES.items()}
MODULES = list(FILES)


@dataclass(frozen=True)
class Import:
    """One import: of what, at which line, and whether a type checker alone sees it."""

    target: str
    line: int
    for_types: bool


def imports_of(name):
    """Every import of a module, at the top and inside functions, with relative ones made absolute."""
    return [Import(target, node.lineno, node in hidden) for hidden, node in _import_nodes(TREES[name])
            for target in _targets(name, node)]  # fmt: skip


def _import_nodes(tree):
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    hidden = {inner for guard in guards for branch in guard.body for inner in ast.walk(branch)}
    return [(hidden, node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def _targets(name, node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
        home = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*home, *([base] if base else [])])
    return [f"{base}.{alias.name}" if f"{base}.{alias.name}" in FILES else base for alias in node.names]


def ours_of(name):
    return [one for one in imports_of(name) if one.target.split(".")[0] == "gguf_embed"]


def modules_in(*patterns):
    return [name for name in MODULES if any(fnmatch(name, f"gguf_embed.{pattern}") for pattern in patterns)]


def offenders(names, is_wrong):
    """file:line and target of each import that is wrong, so that a failure can be clicked."""
    return [
        f"{FILES[name].relative_to(PACKAGE.parent)}:{one.line} imports {one.target}"
        for name in names
        for one in imports_of(name)
        if is_wrong(one.target)
    ]


# Who may import what of ours; the first pattern that a module matches counts. A line is an arrow of DESIGN section 2.
ARROWS = {
    "errors": (),
    "sizes": (),
    "prompts": ("errors",),
    "vectors": (),
    "config": ("errors", "sizes"),
    "progress": ("sizes",),
    "native*": ("errors", "native", "native.*"),
    "models*": ("errors", "sizes", "config", "prompts", "vectors", "native", "native.*", "models", "models.*"),
    "fit*": ("errors", "config", "sizes", "models.header", "models.specs", "native", "native.*", "fit", "fit.*"),
    "engine*": ("errors", "vectors", "native", "native.*", "engine", "engine.*"),
    "encoding": ("errors", "prompts", "vectors", "models.specs"),
    "fingerprints": ("prompts", "models.header", "models.specs"),
    "selection": ("errors", "fingerprints", "engine.*", "fit", "fit.*", "models.*"),
    "selfcheck": ("errors", "engine.*", "fit.*", "native.backend"),
    "loading": (
        "", "errors", "sizes", "selection", "selfcheck", "engine.*", "fit", "fit.*", "models.*", "native.buffers",
        "native.reserve",
    ),
    "opening": (
        "errors", "sizes", "config", "selection", "loading", "engine.*", "fit", "fit.*", "models.*", "native.buffers",
        "native.layout",
    ),
    "model": (
        "errors", "config", "prompts", "encoding", "fingerprints", "selection", "opening", "engine.*", "fit.planner",
        "models.*",
    ),
    "stream*": ("errors", "config", "sizes", "vectors", "encoding", "models.specs", "engine.*", "stream", "stream.*"),
    "embedder": (
        "errors", "vectors", "prompts", "progress", "encoding", "model", "selection", "fit.planner", "stream",
        "stream.*",
    ),
    "jobs*": (
        "", "errors", "sizes", "vectors", "prompts", "embedder", "encoding", "stream", "stream.*", "jobs", "jobs.*",
    ),
    "bench*": (
        "errors", "vectors", "embedder", "loading", "selection", "engine.session", "engine.settings", "fit", "fit.*",
        "models.catalog",
        "native.child", "native.reference", "bench", "bench.*",
    ),
    "integrations.placement": ("errors", "sizes", "fit", "fit.*"),
    "integrations*": (
        "errors", "config", "sizes", "vectors", "progress", "embedder", "encoding", "fit.hardware", "fit.plan",
        "fit.planner", "models.catalog", "models.ladders", "models.refs", "stream.results",
        "integrations", "integrations.*",
    ),
    "quality*": (
        "", "errors", "config", "sizes", "vectors", "prompts", "progress", "embedder", "encoding", "fingerprints",
        "model", "selection", "loading", "opening", "engine.*", "fit", "fit.*", "models.*", "native.*", "jobs.*",
        "integrations.mteb", "quality", "quality.*",
    ),
    "server*": (
        "", "errors", "config", "vectors", "encoding", "fingerprints", "selection", "opening", "engine.worker",
        "engine.program",
        "models.catalog", "models.refs", "models.shelf", "models.specs", "fit.planner", "fit.host", "server",
        "server.*",
    ),
    "cli*": ("*",),
    "__main__": ("cli",),
}  # fmt: skip


def allowed_for(name):
    inside = name.removeprefix("gguf_embed.")
    return next((targets for pattern, targets in ARROWS.items() if fnmatch(inside, pattern)), None)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "gguf_embed"])
def test_a_module_imports_along_the_arrows(name):
    """Every import of ours, at the top or inside a function, goes down the arrows of DESIGN section 2."""
    allowed = allowed_for(name)
    assert allowed is not None, f"{name} is in no line of ARROWS; say what it may import"
    targets = [one for one in ours_of(name) if one.target != "gguf_embed"]
    wrong = [one for one in targets if not any(fnmatch(one.target, f"gguf_embed.{pattern}") for pattern in allowed)]
    assert not wrong


def test_the_package_itself_imports_for_types_alone():
    """gguf_embed/__init__.py loads nothing of ours when it is imported."""
    assert [one for one in ours_of("gguf_embed") if not one.for_types] == []
    assert {one.target for one in imports_of("gguf_embed") if not one.for_types} == {
        "__future__",
        "importlib",
        "typing",
    }


def test_nothing_inside_takes_public_names_but_the_version():
    """`from gguf_embed import Embedder` inside the package would hide an arrow."""
    taken = {
        alias.name
        for name in MODULES
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.ImportFrom) and "gguf_embed" in _targets(name, node)
        for alias in node.names
        if f"gguf_embed.{alias.name}" not in FILES
    }
    assert taken <= {"__version__"}


def test_models_and_engine_do_not_know_each_other():
    """Neither side of the house imports the other."""
    assert (
        offenders(modules_in("models*"), lambda target: target.startswith(("gguf_embed.engine", "gguf_embed.fit")))
        == []
    )
    assert (
        offenders(modules_in("engine*"), lambda target: target.startswith(("gguf_embed.models", "gguf_embed.fit")))
        == []
    )


def test_nothing_but_the_command_line_imports_the_command_line():
    """The library does not depend on its shell."""
    others = [name for name in MODULES if name not in modules_in("cli*", "__main__")]
    assert offenders(others, lambda target: target.startswith("gguf_embed.cli")) == []


GRAMMARS = ("bash", "c", "c_sharp", "cpp", "go", "java", "javascript", "php", "python", "ruby", "rust", "typescript")
HOSTS = [("langchain_core", "langchain"), ("llama_index", "llama_index"), ("chromadb", "chroma"),
         ("haystack", "haystack"), ("lancedb", "lancedb"), ("llm", "llm_plugin"), ("pydantic_ai", "pydantic_ai"),
         ("ray", "ray_survey")]  # fmt: skip
SOLE_HOMES = [
    pytest.param(("llama_cpp", "ctypes"), ("native.*",), id="llama_cpp and ctypes: native"),
    pytest.param(("huggingface_hub", "httpx", "requests", "urllib.request"),
                 ("models.hub", "models.transfer", "quality.remote"),
                 id="huggingface_hub: models/hub, models/transfer; its httpx: quality/remote"),
    pytest.param(("click", "rich.table"), ("cli*", "integrations.llm_plugin"),
                 id="click: cli, integrations/llm_plugin"),
    pytest.param(("starlette", "uvicorn", "msgspec", "prometheus_client"), ("server.*",), id="web: server"),
    pytest.param(("orjson",), ("server.*", "jobs.sinks"), id="orjson: server and jobs/sinks"),
    pytest.param(("sqlite3",), ("stream.cache",), id="sqlite3: stream/cache"),
    pytest.param(("semantic_text_splitter", *(f"tree_sitter_{name}" for name in GRAMMARS)), ("stream.chunking",),
                 id="splitters: stream/chunking"),
    pytest.param(("pathspec",), ("jobs.folders",), id="pathspec: jobs/folders"),
    pytest.param(("kreuzberg",), ("jobs.documents",), id="kreuzberg: jobs/documents"),
    pytest.param(("psutil",), ("fit.cores", "fit.host", "bench.program"),
                 id="psutil: fit/cores, fit/host, bench/program"),
    pytest.param(("platformdirs",), ("config",), id="platformdirs: config"),
    pytest.param(("pyarrow",), ("jobs.*", "integrations.ray_data"), id="pyarrow: jobs, integrations/ray_data"),
    pytest.param(("matplotlib",), ("bench.plot", "quality.plots"), id="matplotlib: bench/plot, quality/plots"),
    pytest.param(("mteb",), ("quality.tasks", "integrations.mteb"), id="mteb: quality/tasks, integrations/mteb"),
    pytest.param(("sentence_transformers",), ("bench.peers",), id="sentence_transformers: bench/peers"),
    pytest.param(("torch",), ("bench.peers", "integrations.sentence_transformers"),
                 id="torch: bench/peers, integrations/sentence_transformers"),
    *(pytest.param((host,), (f"integrations.{home}",), id=f"{host}: integrations/{home}") for host, home in HOSTS),
    pytest.param(("gguf", "safetensors"), ("models.wheel",), id="gguf and safetensors: models/wheel"),
]  # fmt: skip


@pytest.mark.parametrize(("targets", "homes"), SOLE_HOMES)
def test_an_edge_has_one_home(targets, homes):
    """Each thing of the world outside is imported in one place."""
    others = [name for name in MODULES if name not in modules_in(*homes)]
    assert offenders(others, lambda target: any(f"{target}.".startswith(f"{one}.") for one in targets)) == []


def test_vectors_need_numpy_alone():
    """vectors.py imports numpy and typing."""
    assert offenders(["gguf_embed.vectors"], lambda t: t.split(".")[0] not in ("__future__", "numpy", "typing")) == []


def test_fit_knows_no_network():
    """Planning takes facts; nothing under fit/ reaches a hub or a socket."""
    network = ("huggingface_hub", "httpx", "requests", "urllib", "socket", "http", "ssl", "gguf_embed.models.hub",
               "gguf_embed.models.transfer", "gguf_embed.models.catalog")  # fmt: skip
    assert offenders(modules_in("fit*"), lambda t: any(f"{t}.".startswith(f"{one}.") for one in network)) == []


def attributes(name, *wanted):
    """Lines that ask a module for an attribute, as `os.environ` or `from os import environ`."""
    found = []
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            asked = f"{node.value.id}.{node.attr}"
            found += [(node.lineno, asked)] if asked in wanted else []
        elif isinstance(node, ast.ImportFrom):
            asked = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(node.lineno, one) for one in asked if one in wanted]
    return found


ENVIRONMENT = ("os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv", "os.unsetenv")


def test_only_config_reads_the_environment():
    """Everything else gets a Config; models/hub.py and native/backend.py set defaults for the libraries they load."""
    reading = {name for name in MODULES if attributes(name, *ENVIRONMENT)}
    assert reading == {"gguf_embed.config", "gguf_embed.models.hub", "gguf_embed.native.backend"}


@pytest.mark.parametrize(
    ("name", "prefix"), [("gguf_embed.models.hub", "HF_HUB_"), ("gguf_embed.native.backend", "GOMP_")]
)
def test_a_module_only_sets_defaults_for_its_library(name, prefix):
    """It calls os.environ.setdefault with the library's names and nothing else of the environment."""
    calls = [
        node for node in ast.walk(TREES[name])
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "os.environ.setdefault"
    ]  # fmt: skip
    assert len(calls) == len(attributes(name, *ENVIRONMENT))
    assert all(ast.literal_eval(call.args[0]).startswith(prefix) for call in calls)


# Run as child processes; their stdout is a pipe to the module that started them.
PROGRAMS = ("gguf_embed.native.simulate", "gguf_embed.native.quantize")


def test_only_the_command_line_writes_to_stdout():
    """No print() and no sys.stdout outside cli/ and programs of their own: stdout is data, and the data is theirs."""
    writing = [
        f"{FILES[name].relative_to(PACKAGE.parent)}:{node.lineno}"
        for name in MODULES
        if name not in (*modules_in("cli*"), *PROGRAMS)
        for node in ast.walk(TREES[name])
        if (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print")
        or (isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.__stdout__"))
    ]
    assert writing == []


def test_only_lazy_doors_import_by_name():
    """importlib.import_module hides arrows, so it is used for the public names and for commands alone."""
    using = {name for name in MODULES if attributes(name, "importlib.import_module")}
    assert using == {"gguf_embed", "gguf_embed.cli.app"}
    builtin = {
        n for n in MODULES for node in ast.walk(TREES[n]) if isinstance(node, ast.Name) and node.id == "__import__"
    }
    assert builtin == set()


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_must_not_know(name):
    """The docstring's first line says what the module owns, a sentence what it must not know."""
    text = " ".join((ast.get_docstring(TREES[name]) or "").split())
    assert text, f"{FILES[name]} has no docstring"
    assert KNOWS_NOT.search(text), text


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_short_enough_to_read_whole(name):
    """At most 400 lines."""
    n_lines = len(FILES[name].read_text(encoding="utf-8").splitlines())
    assert n_lines <= N_LINES_MODULE, f"{FILES[name]} has {n_lines} lines"


@pytest.mark.parametrize("name", MODULES)
def test_a_function_is_short_enough_to_read_whole(name):
    """At most 50 lines from def to the end, docstring included."""
    functions = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {node.name: n for node in functions if (n := (node.end_lineno or 0) - node.lineno + 1) > N_LINES_FUNCTION}
    assert not long, f"{FILES[name]}: {long}"


def test_the_scanner_sees_what_it_must(tmp_path, monkeypatch):
    """An import inside a function, a relative one, and a submodule taken from its package are all found."""
    source = "from .specs import A\ndef f():\n    from gguf_embed import vectors\n    import llama_cpp.llama_cpp as x\n"
    monkeypatch.setitem(TREES, "gguf_embed.models.seen", ast.parse(source))
    monkeypatch.setitem(FILES, "gguf_embed.models.seen", PACKAGE / "models" / "seen.py")
    assert [one.target for one in imports_of("gguf_embed.models.seen")] == [
        "gguf_embed.models.specs", "gguf_embed.vectors", "llama_cpp.llama_cpp",
    ]  # fmt: skip
    assert "gguf_embed.models.seen" not in sys.modules
