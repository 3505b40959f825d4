"""Hub ids, against a small hub that runs in the test."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.checkpoints import SMALL_LLADA, random_tensors, shard, write
from helpers.loads import bytes_read

from lrd.models.checkpoint import fingerprint


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A hub on this machine: one repository, two commits, every request noted."""
    commits = {"main": "a" * 40, "old": "b" * 40}
    files: dict[str, dict[str, bytes]] = {}
    for revision, rope in (("main", 1e4), ("old", 1e5)):
        config = {**SMALL_LLADA, "rope_theta": rope}
        folder = write(tmp_path / revision, config, random_tensors(SMALL_LLADA))
        files[commits[revision]] = {f.name: f.read_bytes() for f in folder.iterdir()} | {
            "modeling_llada.py": b"raise SystemExit",
            "pytorch_model.bin": b"pickle",
            "README.md": b"card",
            "original/model.safetensors": b"another",
        }
    state: dict[str, Any] = {
        "commits": commits, "files": files, "asked": [], "sent": [], "hold": lambda path: None,
        "lfs": False, "whole": [],
    }  # fmt: skip

    class Hub(http.server.BaseHTTPRequestHandler):
        def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                state["hold"](self.path)
                state["sent"].append(self.path)
                self.wfile.write(body)

        def do_GET(self) -> None:
            state["asked"].append(self.path)
            info = re.fullmatch(
                r"/api/models/some/model(?:/revision/([^/?]+))?(?:\?.*)?", self.path
            )
            tree = re.fullmatch(r"/api/models/some/model/tree/([^/?]+).*", self.path)
            resolve = re.fullmatch(r"/some/model/resolve/([^/]+)/(.+)", self.path)
            found = info or tree or resolve
            revision = (found.group(1) or "main") if found else ""
            commit = commits.get(revision, revision)
            if commit not in files:
                self.answer(b"{}", 404, X_Error_Code="RevisionNotFound")
            elif resolve:
                body, name = files[commit].get(resolve.group(2)), resolve.group(2)
                if body is None:
                    self.answer(b"", 404, X_Error_Code="EntryNotFound")
                    return
                etag = str(hash(body))
                if state["lfs"] and name.endswith(".safetensors"):
                    etag = hashlib.sha256(body).hexdigest()
                part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                whole = body
                if part and state["lfs"]:
                    body = body[int(part[1]) : int(part[2]) + 1]
                elif self.command == "GET":
                    state["whole"].append(name)
                self.answer(
                    body, 206 if len(body) < len(whole) else 200, ETag=f'"{etag}"',
                    X_Repo_Commit=commit,
                )  # fmt: skip
            else:
                names = sorted(files[commit])
                siblings: list[dict[str, Any]] = [{"rfilename": name} for name in names]
                for sibling in siblings if state["lfs"] and "blobs" in self.path else []:
                    content = files[commit][sibling["rfilename"]]
                    if sibling["rfilename"].endswith(".safetensors"):
                        digest = hashlib.sha256(content).hexdigest()
                        sibling["lfs"] = {"sha256": digest, "size": 9, "pointerSize": 9}
                entries = [
                    {"type": "file", "path": n, "size": len(files[commit][n]), "oid": "0" * 40}
                    for n in names
                ]
                about = {"id": "some/model", "sha": commit, "siblings": siblings}
                body = json.dumps(entries if tree else about).encode()
                self.answer(body, Content_Type="application/json")

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state["environment"] = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    state["cache"] = tmp_path / "cache"
    yield state
    server.shutdown()


LOAD = """
import sys
from lrd.models.checkpoint import fingerprint, load_model
for revision in sys.argv[1:]:
    revision = None if revision == "none" else revision
    try:
        model = load_model("some/model", revision=revision)
        print(model.transformer.config.rope_theta, fingerprint("some/model", revision))
    except ValueError as error:
        print("ValueError:", str(error).replace(chr(10), " "))
"""


def load_from(hub: dict[str, Any], *revisions: str, **environment: str) -> list[str]:
    """A line a revision. huggingface_hub reads its environment at import: hence a process."""
    ran = subprocess.run(
        [sys.executable, "-c", LOAD, *revisions],
        env={**hub["environment"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_hub_ids(hub: dict[str, Any], tmp_path: Path) -> None:
    """Pinned revisions, only the files that loading reads, the cache without a connection."""
    newest, old, refused = load_from(hub, "none", "old", "no-such-revision")
    assert newest == f"10000.0 {fingerprint(tmp_path / 'main')}"
    assert old == f"100000.0 {fingerprint(tmp_path / 'old')}"
    assert "some/model at no-such-revision" in refused
    assert "Check the id and revision" in refused
    stored = {f.name for f in hub["cache"].glob("models--some--model/snapshots/*/**/*")}
    assert stored == {"config.json", "model.safetensors"}
    assert not [path for path in hub["asked"] if re.search(r"\.py|\.bin|original", path)]

    hub["asked"].clear()
    commit = hub["commits"]["old"]
    again, unknown = load_from(hub, commit, "c" * 40, HF_HUB_OFFLINE="1")
    assert again == old
    assert "HF_HUB_OFFLINE" in unknown
    assert hub["asked"] == []


@pytest.mark.slow
def test_replicas_of_a_node_download_once(hub: dict[str, Any]) -> None:
    """huggingface_hub locks each file of its cache."""

    def hold(path: str) -> None:
        # Until all have asked for the weights, so that nobody just comes too late.
        until = time.monotonic() + 60
        while path.endswith("model.safetensors") and hub["asked"].count(path) < 3:
            assert time.monotonic() < until
            time.sleep(0.05)

    hub["hold"] = hold
    bytes_read("some/model", 3, environment=hub["environment"])
    files = [path.rpartition("/")[2] for path in hub["sent"] if "/resolve/" in path]
    assert sorted(files) == ["config.json", "model.safetensors"]


LOOK = """
import sys
from lrd.models.checkpoint import fingerprint, load_model
try:
    model = load_model("some/model", "meta")
    print(model.transformer.config.rope_theta, fingerprint("some/model"))
except ValueError as error:
    print("ValueError:", str(error).replace(chr(10), " "))
"""


def look_at(hub: dict[str, Any], **environment: str) -> str:
    """What a driver does with a hub id, on a machine without replicas."""
    environment = {**hub["environment"], "LRD_CACHE": str(hub["cache"] / "lrd"), **environment}
    ran = subprocess.run(
        [sys.executable, "-c", LOOK], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def weights_of(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".safetensors")]


@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_driver_downloads_no_weights(hub: dict[str, Any], tmp_path: Path, shards: int) -> None:
    """Shapes and digests are asked of the hub, and the fingerprint is that of the files."""
    hub["lfs"] = True
    if shards > 1:
        tensors = random_tensors(SMALL_LLADA)
        folder = write(tmp_path / "main", {**SMALL_LLADA, "rope_theta": 1e4}, tensors)
        shard(folder, tensors, shards)
        content = {file.name: file.read_bytes() for file in folder.iterdir()}
        hub["files"][hub["commits"]["main"]] = content
    expected = f"10000.0 {fingerprint(tmp_path / 'main')}"
    assert look_at(hub) == expected
    assert not weights_of(hub["whole"])
    assert not list(hub["cache"].glob("**/*.safetensors"))
    # Where replicas have loaded them, they are looked at here, and need not be read for a digest.
    (loaded,) = load_from(hub, "none")
    assert loaded == expected
    assert len(weights_of(hub["whole"])) == shards
    assert look_at(hub, HF_HUB_OFFLINE="1") == expected


def test_a_hub_that_does_not_say_is_downloaded_from(hub: dict[str, Any], tmp_path: Path) -> None:
    """A mirror without ranges and digests, as every hub before."""
    assert look_at(hub) == f"10000.0 {fingerprint(tmp_path / 'main')}"
    assert "model.safetensors" in hub["whole"]


def test_what_does_not_fit_is_found_without_a_download(hub: dict[str, Any], tmp_path: Path) -> None:
    hub["lfs"] = True
    tensors = random_tensors(SMALL_LLADA)
    missing, misshapen = sorted(tensors)[:2]
    del tensors[missing]
    tensors[misshapen] = tensors[misshapen][:1].clone()
    tensors["surplus"] = tensors[misshapen].clone()
    folder = write(tmp_path / "broken", {**SMALL_LLADA, "rope_theta": 1e4}, tensors)
    hub["files"][hub["commits"]["main"]] = {f.name: f.read_bytes() for f in folder.iterdir()}
    said = look_at(hub)
    assert said.startswith("ValueError: ")
    for words in (f"1 missing: {missing}", "1 extra: surplus", f"1 misshapen: {misshapen} is "):
        assert words in said
    assert not weights_of(hub["whole"])


def test_a_repository_without_safetensors_is_refused(hub: dict[str, Any]) -> None:
    hub["lfs"] = True
    del hub["files"][hub["commits"]["main"]]["model.safetensors"]
    assert "no model.safetensors and no model.safetensors.index.json" in look_at(hub)
