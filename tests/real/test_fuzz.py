"""Whatever the OpenAPI document allows, and much that it does not, is never answered with a 5xx."""

from __future__ import annotations

import subprocess
import sys

import pytest
from serving import Served

pytest.importorskip("schemathesis")

pytestmark = pytest.mark.real


def test_no_request_makes_it_fail(starter, tmp_path):
    """Schemathesis over every route."""
    with Served(tmp_path, starter, "all-minilm-l6-v2") as server:
        code = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
        command = [
            sys.executable, "-c", code, "run",
            f"{server.url}/openapi.json", "--checks", "not_a_server_error", "--max-examples", "25", "--seed", "1",
            "--phases", "examples,coverage,fuzzing", "--no-color", "--request-timeout", "60",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        assert server.ask("POST", "/v1/embeddings", {"input": "still here"})[0] == 200
