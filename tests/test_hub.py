"""hub.py and transfer.py against a hub on loopback, through the real huggingface_hub client."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_hub import COMMIT, FakeHub
from hub_worker import FILE, REPO, measure_kill, measure_pair, random_body
from huggingface_hub import HFCacheInfo
from huggingface_hub.errors import FileMetadataError, LocalEntryNotFoundError
from huggingface_hub.utils import close_session

from gguf_embed.errors import (
    AccessDeniedError,
    ChecksumError,
    DownloadError,
    InvalidGGUFError,
    OfflineError,
    StorageError,
    UnknownModelError,
)
from gguf_embed.models import hub as hub_module
from gguf_embed.models import transfer
from gguf_embed.models.hub import Hub, RemoteFile

MIB = 1 << 20
BODY = random_body(3 * MIB)
BIG = random_body(16 * MIB)
NEXT_COMMIT = "decade" + "0" * 34
Usage = type(shutil.disk_usage("."))


@pytest.fixture
def fake(monkeypatch):
    for name in list(os.environ):
        if "proxy" in name.lower() or name.startswith("HF_"):
            monkeypatch.delenv(name)
    close_session()  # the shared client remembers the proxies it was made with
    with FakeHub() as server:
        server.sha256 = server.add(REPO, FILE, BODY)
        yield server
        close_session()


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "hub"


@pytest.fixture
def sleeps():
    return []


@pytest.fixture
def make(fake, cache_dir, sleeps):
    def make_hub(**settings):
        return Hub(
            **{"endpoint": fake.url, "cache_dir": cache_dir, "stall_timeout_s": 5.0, "sleep": sleeps.append} | settings
        )

    return make_hub


def remote(**changes):
    return RemoteFile(**{"repo": REPO, "revision": COMMIT, "file": FILE, "size_bytes": None, "sha256": None} | changes)


def folder(cache_dir):
    return cache_dir / "models--org--model-GGUF"


def put_partial(fake, cache_dir, content):
    blobs = folder(cache_dir) / "blobs"
    blobs.mkdir(parents=True)
    path = blobs / f"{fake.sha256}.incomplete"
    path.write_bytes(content)
    return path


def ranges(fake):
    return [seen.headers.get("range") for seen in fake.requests if seen.method == "GET"]


class TestListing:
    def test_lists_gguf_files_only(self, fake, make):
        """A listing has the GGUF files, sorted, with the commit, the size and the sha256 of each, in one request."""
        fake.add(REPO, "README.md", b"read me")
        sha256 = fake.add(REPO, "deep/Small.GGUF", b"small")
        first, second = make().fetch_listing(REPO)
        assert first == remote(file="deep/Small.GGUF", size_bytes=5, sha256=sha256)
        assert second == remote(size_bytes=len(BODY), sha256=fake.sha256)
        assert len(fake.requests) == 1

    def test_missing_repo(self, make):
        """The hub answers 401 for a repo that is not there; the message says that this can be the reason."""
        with pytest.raises(AccessDeniedError, match="does not exist") as caught:
            make().fetch_listing("org/nothing")
        assert caught.value.repo == "org/nothing"

    def test_missing_revision(self, make):
        """A revision that the repo does not have is an unknown model."""
        with pytest.raises(UnknownModelError, match="RevisionNotFound"):
            make().fetch_listing(REPO, "v9")

    def test_impossible_name(self, make):
        """A name that no repo can have is refused without a request, as an unknown model."""
        with pytest.raises(UnknownModelError) as caught:
            make().fetch_listing("a b/c//d")
        assert caught.value.model_id == "a b/c//d"


class TestCache:
    @pytest.mark.parametrize("offline", [False, True])
    def test_cached_commit_needs_no_request(self, fake, make, offline):
        """A cached commit is returned without a request, online and offline."""
        path = make().fetch_file(remote())
        fake.requests.clear()
        assert make(offline=offline).fetch_file(remote(size_bytes=len(BODY))) == path
        assert fake.requests == []

    def test_offline_branch(self, fake, make):
        """Offline, a branch that was fetched before is found in the cache without a request."""
        path = make().fetch_file(remote(revision="main"))
        fake.requests.clear()
        hub = make(offline=True)
        assert hub.fetch_file(remote(revision="main")) == path == hub.cached_path(REPO, FILE, None)
        assert fake.requests == []

    def test_offline_without_the_file(self, fake, make):
        """Offline without the file: an error that says what to type, and no request, for all that needs the network."""
        hub = make(offline=True)
        for fetch in (
            lambda: hub.fetch_file(remote()),
            lambda: hub.fetch_listing(REPO),
            lambda: hub.fetch_header(remote(), bytes),
        ):
            with pytest.raises(OfflineError, match="HF_HUB_OFFLINE"):
                fetch()
        assert fake.requests == []

    def test_wrong_size_is_no_hit(self, make):
        """A cached file of the wrong size is no hit, and the next fetch replaces it with the whole file."""
        path = make().fetch_file(remote())
        os.truncate(path, 100)
        assert make().cached_path(REPO, FILE, COMMIT, size_bytes=len(BODY)) is None
        assert make().cached_path(REPO, FILE, COMMIT) == path
        assert make().fetch_file(remote(size_bytes=len(BODY))).read_bytes() == BODY

    def test_other_tools_find_it(self, fake, make, cache_dir):
        """The file lies where huggingface_hub puts it: blob by etag, link in the snapshot, branch in refs."""
        path = make().fetch_file(remote(revision="main"))
        assert path == folder(cache_dir) / "snapshots" / COMMIT / FILE
        assert path.resolve() == (folder(cache_dir) / "blobs" / fake.sha256).resolve()
        assert (folder(cache_dir) / "refs" / "main").read_text() == COMMIT
        assert list((folder(cache_dir) / "blobs").iterdir()) == [path.resolve()]

    def test_cached_files(self, fake, make, cache_dir):
        """Cached GGUF files are listed without a request, all or of one repo, deep ones too; other files are not."""
        fake.add(REPO, "deep/other.gguf", b"deep")
        fake.add("solo/b", "b.gguf", b"b")
        hub = make()
        assert hub.cached_files() == ()
        for wanted in (remote(), remote(file="deep/other.gguf"), remote(repo="solo/b", file="b.gguf")):
            hub.fetch_file(wanted)
        (folder(cache_dir) / "snapshots" / COMMIT / "notes.txt").write_text("no model")
        fake.requests.clear()
        found = [(f.repo, f.revision, f.file, f.size_bytes) for f in hub.cached_files(REPO)]
        assert found == [(REPO, COMMIT, "deep/other.gguf", 4), (REPO, COMMIT, FILE, len(BODY))]
        assert [f.repo for f in hub.cached_files()] == [REPO, REPO, "solo/b"]
        assert fake.requests == []

    @pytest.mark.parametrize("by_hand", [False, True], ids=["huggingface_hub", "by-hand"])
    def test_delete_keeps_shared_blob(self, fake, make, monkeypatch, by_hand):
        """Deleting frees the blob only with its last pointer, also where huggingface_hub has no delete_files."""
        if by_hand:
            monkeypatch.delattr(HFCacheInfo, "delete_files", raising=False)
        hub = make()
        hub.fetch_file(remote())
        fake.commit = NEXT_COMMIT
        hub.fetch_file(remote(revision=NEXT_COMMIT))
        assert fake.served_bytes == len(BODY)
        first, second = hub.cached_files()
        assert hub.delete(first) == 0
        assert second.path.read_bytes() == BODY
        assert hub.delete(second) == len(BODY)
        assert hub.delete(second) == 0
        assert hub.cached_files() == ()
        assert hub.cached_path(REPO, FILE, COMMIT) is None

    def test_no_symlinks(self, fake, make, cache_dir, monkeypatch):
        """Where links are impossible there is still one copy, found again without a request and freed by delete."""
        monkeypatch.setattr(hub_module, "are_symlinks_supported", lambda _: False)
        hub = make()
        path = hub.fetch_file(remote())
        fake.requests.clear()
        assert hub.fetch_file(remote()) == path
        assert fake.requests == []
        assert not path.is_symlink()
        big = [p for p in cache_dir.rglob("*") if p.is_file() and p.stat().st_size == len(BODY)]
        assert big == [path]
        assert hub.delete(hub.cached_files()[0]) == len(BODY)

    @pytest.mark.parametrize("file", ["../x.gguf", "/x.gguf", "", "a\\..\\x.gguf"])
    def test_path_outside_the_repo(self, file):
        """A file name that could leave the cache folder is refused."""
        with pytest.raises(ValueError, match="file"):
            remote(file=file)


class TestBranch:
    @pytest.mark.parametrize("trouble", ["429", "503", "dead"])
    def test_cached_branch_survives_trouble(self, fake, make, sleeps, caplog, trouble):
        """Rate limited, hub down or unreachable: the cached branch is used at once, with one warning."""
        path = make().fetch_file(remote(revision="main"))
        fake.faults.status = int(trouble) if trouble.isdigit() else 0
        hub = make(endpoint="http://127.0.0.1:9") if trouble == "dead" else make()
        assert hub.fetch_file(remote(revision="main")) == path
        assert [record.levelname for record in caplog.records if "gguf_embed" in record.name] == ["WARNING"]
        assert sleeps == []

    def test_moved_branch(self, fake, make):
        """A branch that moved brings the new file, and is remembered for offline use."""
        make().fetch_file(remote(revision="main"))
        fake.commit = NEXT_COMMIT
        fake.add(REPO, FILE, b"new")
        path = make().fetch_file(remote(revision="main"))
        assert path.read_bytes() == b"new"
        assert make(offline=True).fetch_file(remote(revision="main")) == path

    def test_refusal_is_not_trouble(self, fake, make):
        """A refusal is no network trouble: it is raised although the branch is cached."""
        make().fetch_file(remote(revision="main"))
        fake.faults.status = 401
        with pytest.raises(AccessDeniedError):
            make().fetch_file(remote(revision="main"))

    def test_unreachable_and_not_cached(self, make, sleeps):
        """No way to the hub and nothing cached: an offline error after all attempts."""
        with pytest.raises(OfflineError, match="cannot be reached"):
            make(endpoint="http://127.0.0.1:9").fetch_file(remote(revision="main"))
        assert sleeps == [1, 2, 4, 8]


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "code", "error", "words"),
        [
            (401, "", AccessDeniedError, "does not exist"),
            (401, "RepoNotFound", AccessDeniedError, "hf auth login"),
            (403, "", AccessDeniedError, "HF_TOKEN"),
            (403, "GatedRepo", AccessDeniedError, "conditions"),
            (404, "RepoNotFound", UnknownModelError, "no repository org/model-GGUF"),
            (404, "EntryNotFound", UnknownModelError, "org/model-GGUF/model-Q4_K_M.gguf"),
            (404, "RevisionNotFound", UnknownModelError, "RevisionNotFound"),
            (418, "", DownloadError, "418"),
        ],
    )
    @pytest.mark.parametrize("method", ["HEAD", "GET"])
    def test_refused(self, fake, make, sleeps, status, code, error, words, method):
        """A refusal is our error at once, before the bytes and in the middle of them, and names what to do."""
        fake.faults.status, fake.faults.error_code, fake.faults.status_method = status, code, method
        with pytest.raises(error) as caught:
            make().fetch_file(remote())
        assert getattr(caught.value, "repo", getattr(caught.value, "model_id", REPO)) == REPO
        assert sleeps == []
        # A HEAD answer has no body and 401 means "repository" to huggingface_hub: both still lead to the same error.
        assert words in str(caught.value)

    @pytest.mark.parametrize("fault", [{"commit": ""}, {"etag": ""}, {"etag": "../../../evil"}])
    def test_not_a_hub(self, fake, make, fault):
        """An answer without a commit or with an impossible ETag comes from no hub; nothing is downloaded."""
        for name, value in fault.items():
            setattr(fake.faults, name, value)
        with pytest.raises(DownloadError, match="HF_ENDPOINT"):
            make().fetch_file(remote())
        assert fake.count("GET") == 0

    def test_token_stays_at_home(self, fake, make, monkeypatch):
        """The token goes to the hub and not to the host it redirects to, for the whole file and for the header."""
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        with FakeHub(files=fake.files) as cdn:
            fake.faults.redirect_to = cdn.url.replace("127.0.0.1", "localhost")  # another host, not only another port
            assert make().fetch_file(remote()).read_bytes() == BODY
            assert make().fetch_header(remote(), bytes) == BODY[:MIB]
            assert all(seen.headers["authorization"] == "Bearer hf_secret" for seen in fake.requests)
            assert [seen.method for seen in cdn.requests] == ["GET", "GET"]
            assert not any("authorization" in seen.headers for seen in cdn.requests)
            assert cdn.served_bytes >= len(BODY)

    def test_no_telemetry(self, tmp_path):
        """huggingface_hub's telemetry is off in a process that did not turn it off."""
        environ = {k: v for k, v in os.environ.items() if "TELEMETRY" not in k and k != "DO_NOT_TRACK"}
        code = "import gguf_embed.models.hub, huggingface_hub.constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)"
        printed = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
        assert printed.stdout.strip() == "True"


class TestChecksum:
    def test_flipped_byte(self, fake, make, cache_dir):
        """One wrong byte is a checksum error that leaves nothing behind, and the next fetch is whole."""
        fake.faults.flip_at = 2 * MIB + 17
        with pytest.raises(ChecksumError) as caught:
            make().fetch_file(remote())
        assert (caught.value.expected, len(caught.value.actual)) == (fake.sha256, 64)
        assert list((folder(cache_dir) / "blobs").iterdir()) == []
        assert make().cached_files() == ()
        fake.faults.flip_at = None
        assert make().fetch_file(remote()).read_bytes() == BODY

    def test_damaged_partial(self, fake, make, cache_dir):
        """A partial file that was damaged on disk is found out by the checksum of the whole."""
        put_partial(fake, cache_dir, b"?" + BODY[1:MIB])
        with pytest.raises(ChecksumError):
            make().fetch_file(remote())
        assert make().fetch_file(remote()).read_bytes() == BODY

    @pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"size_bytes": 5}])
    def test_published_another_file(self, fake, make, wrong):
        """When the hub has another file than the pinned one, no byte of it moves."""
        with pytest.raises(ChecksumError, match=r"models\.toml"):
            make().fetch_file(remote(**wrong))
        assert fake.count("GET") == 0

    def test_given_sha256_holds_without_etag(self, fake, make):
        """Where the ETag is no sha256, the one that was given is compared."""
        fake.faults.etag, fake.faults.flip_at = "abc123", 5
        with pytest.raises(ChecksumError):
            make().fetch_file(remote(sha256=fake.sha256))
        fake.faults.flip_at = None
        assert make().fetch_file(remote(sha256=fake.sha256)).read_bytes() == BODY

    def test_no_sha256_at_all(self, fake, make, caplog):
        """Where nobody knows a sha256, the size is checked and a warning says so."""
        fake.faults.etag = "abc123"
        assert make().fetch_file(remote()).read_bytes() == BODY
        assert "only its size is checked" in caplog.text


class TestResume:
    @pytest.mark.parametrize("percent", [10, 50, 90])
    def test_kill(self, fake, cache_dir, percent):
        """After kill -9 the next run downloads what was missing, and at most 1 MiB more."""
        fake.add(REPO, FILE, BIG)
        kill = measure_kill(fake, cache_dir, percent=percent)
        assert kill.is_whole
        assert kill.before_kill_bytes >= len(BIG) * percent // 100
        assert kill.resumed_bytes <= kill.missing_bytes + MIB

    def test_two_processes(self, fake, cache_dir):
        """Two processes that want the same file share one download."""
        fake.add(REPO, FILE, BIG)
        paths, served_bytes = measure_pair(fake, cache_dir)
        assert [Path(path).read_bytes() == BIG for path in paths] == [True, True]
        assert served_bytes == len(BIG)
        assert fake.count("GET") == 1

    def test_interrupt(self, fake, make):
        """Ctrl-C leaves what has arrived; the next fetch asks for the rest and reports the old bytes as present."""
        reports = []

        def interrupt(present_bytes, total_bytes):
            if present_bytes > 2 * MIB:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make().fetch_file(remote(), on_progress=interrupt)
        before = fake.served_bytes = 0
        path = make().fetch_file(remote(), on_progress=lambda *report: reports.append(report))
        assert path.read_bytes() == BODY
        assert fake.served_bytes - before < MIB
        assert reports[0][0] > 2 * MIB
        assert reports == sorted(reports)
        assert reports[-1] == (len(BODY), len(BODY))

    @pytest.mark.parametrize("failure", [LocalEntryNotFoundError, FileMetadataError])
    def test_no_pointer(self, fake, make, monkeypatch, failure):
        """When only the last step failed, laying the pointer, the next run downloads nothing."""

        def fail(*_, **__):
            raise failure("the hub went away")

        with monkeypatch.context() as patch:
            patch.setattr(hub_module, "hf_hub_download", fail)
            with pytest.raises(DownloadError, match="the hub went away"):
                make().fetch_file(remote())
        assert make().fetch_file(remote()).read_bytes() == BODY
        assert fake.served_bytes == len(BODY)

    def test_two_writers_without_a_lock(self, tmp_path):
        """Where locks do nothing, two writers of the same bytes still leave the right file."""
        path = tmp_path / "file.incomplete"
        with transfer._Partial(path) as first, transfer._Partial(path) as second:
            for piece in (b"abc", b"def"):
                first.write(piece)
                second.write(piece)
            assert first.sha256 == second.sha256
        assert path.read_bytes() == b"abcdef"

    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs an interval timer")
    def test_interrupt_while_stalled(self, fake, make, cache_dir):
        """Ctrl-C ends a stalled transfer at once and keeps what has arrived."""
        fake.faults.stall_after = MIB
        previous = signal.signal(signal.SIGALRM, signal.default_int_handler)

        def press_soon(present_bytes, total_bytes):
            if present_bytes == MIB:
                signal.setitimer(signal.ITIMER_REAL, 0.1)

        try:
            with pytest.raises(KeyboardInterrupt):
                make().fetch_file(remote(), on_progress=press_soon)
        finally:
            signal.signal(signal.SIGALRM, previous)
        assert (folder(cache_dir) / "blobs" / f"{fake.sha256}.incomplete").read_bytes() == BODY[:MIB]

    @pytest.mark.parametrize(
        ("content", "expected_ranges"),
        [
            (BODY[:MIB], [f"bytes={MIB}-"]),
            (BODY, []),
            (b"?" + BODY[1:], [None]),
            (BODY + b"more", [None]),
            (b"", [None]),
        ],
        ids=["part", "whole", "whole-damaged", "too-long", "empty"],
    )
    def test_partial_of_another_run(self, fake, make, cache_dir, content, expected_ranges):
        """A partial file is resumed, taken as it is when whole, and begun anew when damaged or too long."""
        put_partial(fake, cache_dir, content)
        assert make().fetch_file(remote()).read_bytes() == BODY
        assert ranges(fake) == expected_ranges

    @pytest.mark.parametrize(
        ("fault", "expected_ranges"),
        [
            ({"ignore_range": True}, [f"bytes={MIB}-"]),
            ({"shift_range": 100}, [f"bytes={MIB}-", None]),
            ({"status": 416, "status_times": 1, "status_method": "GET"}, [f"bytes={MIB}-", None]),
        ],
        ids=["200", "other-range", "416"],
    )
    def test_server_that_cannot_resume(self, fake, make, cache_dir, fault, expected_ranges):
        """A server that answers a range with the whole, with another range or with 416 makes a clean restart."""
        put_partial(fake, cache_dir, BODY[:MIB])
        for name, value in fault.items():
            setattr(fake.faults, name, value)
        assert make().fetch_file(remote()).read_bytes() == BODY
        assert ranges(fake) == expected_ranges


class TestRetry:
    def test_stall(self, fake, make, sleeps):
        """No byte for stall_timeout_s counts as a broken connection; the retry asks for the rest."""
        fake.faults.stall_after, fake.faults.stall_times = MIB, 1
        began = time.monotonic()
        assert make(stall_timeout_s=0.5).fetch_file(remote()).read_bytes() == BODY
        assert time.monotonic() - began < 5
        assert ranges(fake) == [None, f"bytes={MIB}-"]
        assert sleeps == [1]

    def test_progress_starts_the_count_anew(self, fake, make, sleeps):
        """A connection that breaks after every 512 KiB is resumed as often as it takes."""
        fake.faults.cut_after = MIB // 2
        assert make(max_attempts=2).fetch_file(remote()).read_bytes() == BODY
        assert sleeps == [1] * 5
        assert fake.served_bytes == len(BODY)

    def test_body_of_unknown_length(self, fake, make, sleeps):
        """A body that ends early without having said its length is resumed too, not taken for the whole."""
        fake.faults.no_length, fake.faults.cut_after = True, 2 * MIB
        assert make().fetch_file(remote()).read_bytes() == BODY
        assert ranges(fake) == [None, f"bytes={2 * MIB}-"]
        assert sleeps == [1]

    def test_no_progress_gives_up(self, fake, make, sleeps, cache_dir):
        """Without progress it gives up; the message says that the partial file stays and how to resume."""
        partial_path = put_partial(fake, cache_dir, BODY[:MIB])
        fake.faults.cut_after = 0
        with pytest.raises(DownloadError, match=r"1 MiB.*same command resumes") as caught:
            make(max_attempts=3).fetch_file(remote())
        assert (caught.value.attempts, sleeps) == (3, [1, 2])
        assert FILE in caught.value.url
        assert partial_path.read_bytes() == BODY[:MIB]

    def test_starting_over_is_no_progress(self, fake, make):
        """A server without ranges that always cuts at one place is given up, not asked for ever."""
        fake.faults.cut_after, fake.faults.ignore_range = MIB, True
        with pytest.raises(DownloadError):
            make(max_attempts=3).fetch_file(remote())
        assert fake.count("GET") == 3

    @pytest.mark.parametrize("method", ["HEAD", "GET"])
    def test_server_errors(self, fake, make, sleeps, method):
        """Three answers of 500 are waited out with 1, 2 and 4 seconds."""
        fake.faults.status, fake.faults.status_times, fake.faults.status_method = 500, 3, method
        assert make().fetch_file(remote()).read_bytes() == BODY
        assert sleeps == [1, 2, 4]

    def test_server_errors_for_good(self, fake, make, sleeps):
        """A hub that answers 500 for good is given up after five attempts."""
        fake.faults.status = 500
        with pytest.raises(DownloadError) as caught:
            make().fetch_file(remote())
        assert (caught.value.attempts, sleeps) == (5, [1, 2, 4, 8])

    @pytest.mark.parametrize(("asked", "waited"), [("7", 7), ("3600", 60), ("soon", 1)])
    def test_retry_after(self, fake, make, sleeps, asked, waited):
        """A rate limit is waited out for as long as it asks, at most a minute."""
        fake.faults.status, fake.faults.status_times, fake.faults.retry_after = 429, 1, asked
        make().fetch_listing(REPO)
        assert sleeps == [waited]


class TestStorage:
    def test_full_disk(self, fake, make, monkeypatch, cache_dir):
        """Too little room is said before the first byte, with what is free and what is needed."""
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 0, 66 * MIB))
        with pytest.raises(StorageError, match=r"66 MiB free.*67 MiB") as caught:
            make().fetch_file(remote())
        assert caught.value.path.is_relative_to(cache_dir)
        assert fake.count("GET") == 0

    def test_room_for_the_rest_is_enough(self, fake, make, monkeypatch, cache_dir):
        """Only the missing bytes need room."""
        put_partial(fake, cache_dir, BODY[:MIB])
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 0, 66 * MIB))
        assert make().fetch_file(remote()).read_bytes() == BODY

    def test_disk_fills_up(self, make, monkeypatch):
        """A disk that fills up half-way is a storage error, and is not tried again."""

        def refuse(part, piece):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(transfer._Partial, "write", refuse)
        with pytest.raises(StorageError, match="No space left"):
            make().fetch_file(remote())

    def test_read_only_cache(self, fake, make, monkeypatch):
        """A cache that cannot be written is a storage error that names HF_HUB_CACHE; what it has is still served."""
        path = make().fetch_file(remote(revision="main"))
        fake.add(REPO, "other.gguf", b"other")

        def refuse(*_, **__):
            raise PermissionError(errno.EACCES, "Permission denied")

        for name in ("mkdir", "touch", "write_text"):
            monkeypatch.setattr(Path, name, refuse)
        with pytest.raises(StorageError, match="HF_HUB_CACHE"):
            make().fetch_file(remote(file="other.gguf"))
        assert make().fetch_file(remote(revision="main")) == path


class TestHeader:
    def test_first_mebibyte(self, fake, make):
        """A header that fits takes one request and 1 MiB."""
        assert make().fetch_header(remote(), bytes) == BODY[:MIB]
        assert ranges(fake) == [f"bytes=0-{MIB - 1}"]
        assert fake.served_bytes == MIB

    def test_doubling_reads_each_byte_once(self, fake, make):
        """A larger header doubles what is read; each request asks only for the missing part."""
        fake.add(REPO, FILE, BIG)
        seen = []
        make().fetch_header(remote(), lambda head: seen.append(len(head)) or (head if len(head) >= 3 * MIB else None))
        assert seen == [MIB, 2 * MIB, 4 * MIB]
        assert ranges(fake) == [f"bytes={a}-{b - 1}" for a, b in ((0, MIB), (MIB, 2 * MIB), (2 * MIB, 4 * MIB))]
        assert fake.served_bytes == 4 * MIB

    def test_server_without_ranges(self, fake, make):
        """A server that ignores ranges is read only as far as needed."""
        fake.add(REPO, FILE, BIG)
        fake.faults.ignore_range, fake.faults.bytes_per_s = True, 64 * MIB
        head = make().fetch_header(remote(), lambda head: head if len(head) >= 2 * MIB else None)
        assert head[: 2 * MIB] == BIG[: 2 * MIB]
        assert fake.served_bytes < 6 * MIB

    @pytest.mark.parametrize("size_bytes", [10, MIB, 2 * MIB + 1])
    def test_file_ends(self, fake, make, size_bytes):
        """A file that ends before its header does is no GGUF."""
        fake.add(REPO, FILE, BIG[:size_bytes])
        seen = []
        with pytest.raises(InvalidGGUFError, match=REPO):
            make().fetch_header(remote(), lambda head: seen.append(len(head)))
        assert seen[-1] == size_bytes

    def test_cap(self, fake, make):
        """No more than 64 MiB are read for a header."""
        fake.add(REPO, FILE, bytes(66 * MIB))
        with pytest.raises(InvalidGGUFError, match="64 MiB"):
            make().fetch_header(remote(), lambda _: None)
        assert fake.served_bytes == 64 * MIB

    def test_broken_connection(self, fake, make, sleeps):
        """A connection that breaks within the header is resumed where it broke."""
        fake.faults.cut_after = MIB // 4
        assert make(max_attempts=2).fetch_header(remote(), bytes) == BODY[:MIB]
        assert (fake.served_bytes, sleeps) == (MIB, [1, 1, 1])
