"""jobs/folders.py: which files of a folder are read, and in which order."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_embed.errors import InputError, MissingExtraError
from gguf_embed.jobs.records import BadRecord, Record
from gguf_embed.jobs.sources import SourceOptions, open_source

needs_links = pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows")


@pytest.fixture
def folder(tmp_path):
    """An empty folder, outside of any git repository of the developer's."""
    path = tmp_path / "notes"
    path.mkdir()
    return path


def write(root, **files):
    """Make files; "__" in a name stands for a slash and "_" for a dot."""
    for name, content in files.items():
        put(root, name.replace("__", "/").replace("_", "."), content)


def put(root, name, content="x"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(root, **options):
    return list(open_source([root], SourceOptions(**options)))


def ids(root, **options):
    """Ids of records, "!" and the place in the folder for bad ones."""
    return [
        f"!{one.place.removeprefix(f'{root.as_posix()}/')}" if isinstance(one, BadRecord) else one.id
        for one in read(root, **options)
    ]


def test_every_file_is_one_text(folder):
    """Text, id with slashes, place, and kind by the name; line ends stay."""
    write(folder, a_md="# A\r\n\nb\n", sub__deep__b_py="x = 1\n", c="plain")
    assert read(folder) == [
        Record(text="# A\r\n\nb\n", id="a.md", place=f"{folder.as_posix()}/a.md", kind="markdown"),
        Record(text="plain", id="c", place=f"{folder.as_posix()}/c"),
        Record(text="x = 1\n", id="sub/deep/b.py", place=f"{folder.as_posix()}/sub/deep/b.py", kind="python"),
    ]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.MD", "markdown"), ("a.js", "javascript"), ("a.ts", "typescript"), ("a.tsx", "tsx"), ("a.go", "go"),
     ("a.rs", "rust"), ("a.java", "java"), ("a.c", "c"), ("a.h", "c"), ("a.hpp", "cpp"), ("a.cs", "c_sharp"),
     ("a.rb", "ruby"), ("a.php", "php"), ("a.sh", "bash"), ("a.txt", "text"), ("md", "text")],
)  # fmt: skip
def test_a_file_s_kind_is_known_by_its_name(folder, name, kind):
    """By the suffix in any case, for chunking."""
    put(folder, name)
    assert [one.kind for one in read(folder)] == [kind]


NAMES = st.lists(st.sampled_from(["a", "b", "a-", "a.b", "\u00e9", "z", "A", "a b"]), min_size=1, max_size=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(paths=st.lists(NAMES.map("/".join), max_size=10, unique=True), seed=st.integers())
def test_the_order_is_that_of_the_paths_bytes(tmp_path, paths, seed):
    """Files come in one order, whatever order they were made in, and each time."""
    roots = [tmp_path / "one", tmp_path / "two"]
    found = []
    for root in roots:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for path in sorted(paths) if root == roots[0] else random.Random(seed).sample(sorted(paths), len(paths)):
            if not any(other.startswith(f"{path}/") for other in paths):
                put(root, path)
        source = open_source([root])
        assert [one.id for one in source] == [one.id for one in source]
        found.append([one.id for one in source])
    assert found[0] == found[1] == sorted(found[0], key=str.encode)


def test_several_inputs_put_their_names_before_ids(folder, monkeypatch):
    """As they were given, so that two folders with a readme each can be told apart."""
    write(folder, a__x_md="1", b__x_md="2", c_txt="3")
    monkeypatch.chdir(folder)
    cwd = type(folder)()
    several = open_source([cwd / "a", cwd / "b"])
    assert [one.id for one in several] == ["a/x.md", "b/x.md"]
    assert (several.unit, several.n_done, several.n_total) == ("files", 2, 2)
    assert [one.id for one in open_source([cwd / "a"])] == ["x.md"]
    assert next((one.id, one.place) for one in open_source([cwd])) == ("a/x.md", "a/x.md")


def test_files_are_counted(folder):
    """Those that give no record too, so that the count comes to its end."""
    write(folder, a_txt="1", b_bin=b"\0", c_txt="", d_csv="text\na\n", e_txt="2")
    source = open_source([folder])
    assert (source.unit, source.n_total, source.n_done) == ("files", 5, 0)
    assert [(one.id, source.n_done) for one in source] == [("a.txt", 0), ("e.txt", 4)]
    assert source.n_done == 5


def test_hidden_files_and_git_are_left_out(folder):
    """At every level, with globs and without .gitignore files too; the folder itself may be hidden."""
    write(folder, _git__config="", _hidden="", sub___env__a_txt="", sub__a_txt="1")
    hidden = folder / ".notes"
    write(hidden, a_txt="2")
    assert ids(folder) == ids(folder, honours_ignore=False) == ids(folder, globs=("*",)) == ["sub/a.txt"]
    assert ids(hidden) == ["a.txt"]


# .gitignore


TREES = {
    "a name at any depth": {".gitignore": "a.log\n", "a.log": "", "sub/a.log": "", "sub/b.log": ""},
    "a pattern": {".gitignore": "*.log\n# c\n\n", "a.log": "", "sub/b.log": "", "log": ""},
    "anchored": {".gitignore": "/a.txt\nsub/c.txt\n", "a.txt": "", "b/a.txt": "", "sub/c.txt": "", "x/sub/c.txt": ""},
    "folders alone": {".gitignore": "build/\n", "build/a": "", "x/build/b": "", "y/build": ""},
    "a folder above cannot be undone": {".gitignore": "out\n!out/keep.txt\n", "out/keep.txt": "", "a": ""},
    "undone inside": {".gitignore": "out/*\n!out/keep.txt\n", "out/keep.txt": "", "out/a": "", "b/out/c": ""},
    "all but": {".gitignore": "*\n!*/\n!*.py\n", "a.py": "", "b.txt": "", "s/c.py": "", "s/d.txt": "", "s/t/e.py": ""},
    "all but one folder": {".gitignore": "/*\n!/src\n", "a": "", "src/b": "", "src/c/d": "", "other/e": ""},
    "the last one decides": {".gitignore": "!a.txt\na.txt\n*.md\n!b.md\n", "a.txt": "", "b.md": "", "c.md": ""},
    "not of the folder's own": {".gitignore": "*\n!foo/\n", "foo/bar": "", "foo/baz/x": ""},
    "nested": {".gitignore": "*.txt\n", "s/.gitignore": "!keep.txt\n/x\n", "keep.txt": "", "s/keep.txt": "",
               "s/x": "", "s/t/x": "", "s/t/keep.txt": ""},
    "stars": {".gitignore": "a/**/z\n**/q\nd/**\n", "a/z": "", "a/b/c/z": "", "b/a/z": "", "x/q/f": "", "d/e/f": "",
              "q": ""},
    "odd characters": {".gitignore": "\\#a\n\\!b\nc\\ \nd \n[x-z].txt\n?.md\n[bad\n", "#a": "", "!b": "", "c ": "",
                       "d": "", "y.txt": "", "w.txt": "", "e.md": "", "ee.md": "", "[bad": ""},
    "mark and CRLF": {".gitignore": b"\xef\xbb\xbfa.txt\r\n*.log\r\n", "a.txt": "", "b.log": "", "c": ""},
}  # fmt: skip


@pytest.mark.skipif(shutil.which("git") is None or os.name == "nt", reason="needs git, and names with any character")
@pytest.mark.parametrize("files", TREES.values(), ids=TREES)
def test_what_git_ignores_is_left_out(folder, files):
    """The files are those that git itself would list, whichever folder of the repository is read."""
    for name, content in files.items():
        put(folder, name, content or "x")
    asked = ["git", "-C", str(folder)]
    subprocess.run([*asked, "init", "-q"], check=True)
    command = [*asked, "ls-files", "-zo", "--exclude-per-directory=.gitignore"]
    listed = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    expected = sorted(name for name in listed if name and not name.rpartition("/")[2].startswith("."))
    assert ids(folder) == expected
    for sub in {name.split("/")[0] for name in expected if "/" in name}:
        assert ids(folder / sub) == [one.removeprefix(f"{sub}/") for one in expected if one.startswith(f"{sub}/")]
    assert set(ids(folder, honours_ignore=False)) == {name for name in files if ".gitignore" not in name}


def test_a_gitignore_above_counts_in_one_repository(folder):
    """Without .git above, what lies above is another matter; a nested .gitignore needs no repository."""
    write(
        folder, _gitignore="*.log", sub__a_log="1", sub__b_txt="2", sub__deep___gitignore="c.txt", sub__deep__c_txt=""
    )
    assert ids(folder / "sub") == ["a.log", "b.txt"]
    (folder / ".git").mkdir()
    assert ids(folder / "sub") == ["b.txt"]


def test_pathspec_that_is_missing_names_the_pip_line(folder, monkeypatch):
    """Folders without ignoring and globs are read all the same."""
    write(folder, a_txt="1")
    monkeypatch.setitem(sys.modules, "pathspec", None)
    with pytest.raises(MissingExtraError, match=r'pip install "gguf-embed\[corpus\]"') as caught:
        open_source([folder])
    assert caught.value.extra == "corpus"
    assert ids(folder, honours_ignore=False) == ["a.txt"]


# Globs


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        (("*.md",), ["a.md", "docs/b.md", "docs/old/d.md"]),
        (("/*.md",), ["a.md"]),
        (("docs/**",), ["docs/b.md", "docs/c.txt", "docs/old/d.md"]),
        (("docs/",), ["docs/b.md", "docs/c.txt", "docs/old/d.md"]),
        (("*.py", "*.txt"), ["docs/c.txt", "e.py"]),
        (("!*.md",), ["docs/c.txt", "e.py"]),
        (("*.md", "!docs/old/"), ["a.md", "docs/b.md"]),
        (("!docs/old/", "*.md"), ["a.md", "docs/b.md"]),
    ],
)
def test_globs_choose_files(folder, globs, expected):
    """Any of them takes a file, those with "!" leave out, whatever their order."""
    write(folder, a_md="1", docs__b_md="2", docs__c_txt="3", docs__old__d_md="4", e_py="5")
    assert ids(folder, globs=globs) == expected


def test_globs_that_match_nothing_are_an_error(folder):
    """Naming the folder and the globs."""
    write(folder, a_md="1", _b_rst="2")
    with pytest.raises(InputError, match=r"notes has no file that matches \*\.rst"):
        open_source([folder], SourceOptions(globs=("*.rst",)))


@pytest.mark.parametrize("glob", ["", "!", "a[z-", "  "])
def test_a_glob_that_is_no_pattern_is_refused(folder, glob):
    """Instead of matching nothing."""
    write(folder, a_md="1")
    with pytest.raises(ValueError, match="glob") as caught:
        open_source([folder], SourceOptions(globs=("*.md", glob)))
    assert not isinstance(caught.value, InputError)


def test_tables_are_read_where_a_glob_chooses_them(folder):
    """Left out otherwise; a table without the column is one bad record."""
    write(folder, a_jsonl='{"text": "1", "id": 7}\n"2"\n', b_csv="text\n3\n", c_csv="body\n4\n", d_txt="5")
    assert ids(folder) == ["d.txt"]
    assert [getattr(one, "text", None) for one in read(folder, globs=("*.jsonl", "*.csv"))] == ["1", "2", "3", None]
    assert read(folder, globs=("*.jsonl",))[0] == Record(text="1", id=7, place=f"{folder.as_posix()}/a.jsonl, line 1")
    assert str(read(folder, globs=("c.csv",))[0].error).startswith(f"{folder.as_posix()}/c.csv has no column")


def test_a_format_that_is_named_holds_for_every_file(folder):
    """input_format="lines" reads folders by lines."""
    write(folder, a_txt="1\n2\n", b_md="3\n")
    assert [(one.text, one.place.rpartition("/")[2]) for one in read(folder, input_format="lines")] == [
        ("1", "a.txt, line 1"), ("2", "a.txt, line 2"), ("3", "b.md, line 1"),
    ]  # fmt: skip


# Files that are no text


def test_binary_files_are_left_out_unless_a_glob_chose_them(folder):
    """A NUL in the first 8 KiB makes a file binary, except in UTF-16, where half of the text is NUL."""
    write(folder, a_bin=b"a\0b", b_txt="\ufeffhi".encode("utf-16-le"), c_txt=b"x" * 9000 + b"\0", d_empty="")
    assert ids(folder) == ["b.txt", "c.txt"]
    assert ids(folder, globs=("*",)) == ["!a.bin", "b.txt", "c.txt"]
    assert "a.bin: is no text" in str(read(folder, globs=("*.bin",))[0].error)
    assert read(folder)[0].text == "hi"


def test_a_file_that_is_not_utf_8_is_named_and_passed_by(folder):
    """With the byte; the right encoding reads it."""
    write(folder, a_txt=b"caf\xe9", b_txt="b")
    assert ids(folder) == ["!a.txt", "b.txt"]
    assert "notes/a.txt: not UTF-8 at byte 3; convert it first" in str(read(folder)[0].error)
    assert read(folder, encoding="latin-1")[0].text == "caf\u00e9"


def test_a_file_beyond_the_limit_is_named(folder, monkeypatch):
    """One text of gigabytes is nobody's."""
    monkeypatch.setattr("gguf_embed.jobs.documents.N_BYTES_TEXT", 10)
    write(folder, a_txt="x" * 10, b_txt="x" * 11)
    assert ids(folder) == ["a.txt", "!b.txt"]


@needs_links
def test_links_to_files_elsewhere_are_read_once(folder, tmp_path):
    """Links to files of the folder, to folders in loops and to nowhere add nothing."""
    outside = put(tmp_path, "outside.txt", "out")
    write(folder, b_txt="b", sub__c_txt="c")
    for name, target in {"a": outside, "a2": outside, "b2": "b.txt", "s": "sub", "up": "..", "gone": "nowhere",
                         "loop": "loop"}.items():  # fmt: skip
        (folder / name).symlink_to(target)
    assert ids(folder) == ["a", "b.txt", "sub/c.txt"]


@needs_links
def test_pipes_are_left_out(folder):
    """A pipe in a folder would never end."""
    os.mkfifo(folder / "pipe")
    assert ids(folder) == []


def test_what_cannot_be_opened_is_named_and_passed_by(folder, monkeypatch):
    """A file and a folder without the right to read them; the others are read."""
    write(folder, a_txt="1", b__c_txt="2", d_txt="3")
    refused, scan = {"a.txt", "b"}, os.scandir

    def checked(path, use):
        if os.path.basename(os.fspath(path)) in refused:  # noqa: PTH119 - a str or a path
            raise PermissionError(13, "Permission denied")
        return use()

    monkeypatch.setattr("os.scandir", lambda path: checked(path, lambda: scan(path)))
    opened = type(folder).open
    monkeypatch.setattr(type(folder), "open", lambda path, *a, **k: checked(path, lambda: opened(path, *a, **k)))
    assert ids(folder) == ["!a.txt", "!b", "d.txt"]
    assert "notes/a.txt cannot be read: Permission denied" in str(read(folder)[0].error)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_not_utf_8_is_named_and_passed_by(folder):
    """Its id could not be written."""
    with open(os.fsencode(folder) + b"/caf\xe9.txt", "wb") as stream:  # noqa: PTH123 - a name of bytes
        stream.write(b"x")
    write(folder, d_txt="1")
    bad, fine = read(folder)
    assert "caf\\xe9.txt: its name is not UTF-8" in str(bad.error)
    assert fine.id == "d.txt"
