"""Submitting a run: what is sent, how the log is followed, which code comes back.

The job server is a stand-in here; `tests/test_jobs_on_ray.py` has a real one.
"""

from __future__ import annotations

import argparse
import http.server
import json
import shlex
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobStatus

from jobs import cli
from jobs import submit as job
from jobs.flags import run_config
from lrd.config import PRESETS, DecodingConfig
from pipeline import ray_jobs
from pipeline.config import RunConfig

SECRET = "wJalrXUtnFEMI"


@dataclass
class Details:
    submission_id: str | None
    status: JobStatus
    driver_exit_code: int | None = None
    message: str | None = None


@dataclass
class FakeClient:
    """A job server with one log; each tail shows it from the start, up to the next cut."""

    log: str = "one\ntwo\nthree\n"
    cuts: list[Any] = field(default_factory=list)
    """What each tail ends with: a number of characters and then a lost connection, or an
    exception."""
    ended: Details = field(default_factory=lambda: Details("x-1", JobStatus.SUCCEEDED, 0))
    jobs: list[Details] = field(default_factory=list)
    submitted: list[dict[str, Any]] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    def list_jobs(self) -> list[Details]:
        return self.jobs

    def submit_job(self, **job: Any) -> None:
        if job["submission_id"] in self.taken:
            self.jobs.append(Details(job["submission_id"], JobStatus.RUNNING))
            raise RuntimeError(f"500: submission_id {job['submission_id']} already exists")
        self.submitted.append(job)

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        cut = self.cuts.pop(0) if self.cuts else len(self.log)
        if isinstance(cut, BaseException):
            raise cut
        for start in range(0, cut, 3):
            yield self.log[start : min(cut, start + 3)]
        if cut < len(self.log):
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_status(self, job_id: str) -> JobStatus:
        return self.ended.status

    def get_job_info(self, job_id: str) -> Details:
        return self.ended

    def stop_job(self, job_id: str) -> None:
        self.stopped.append(job_id)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "RETRY_SECONDS", 0.0)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)


def parse(*words: str) -> argparse.Namespace:
    return cli.parser(["submit"]).parse_args(["submit", *words])


def config(**settings: Any) -> RunConfig:
    return RunConfig(**{"input": "/in", "output": "/out", **settings})


# What is sent.


CACHES: list[dict[str, Any]] = [
    {"kv_cache": "dual", "cache_refresh": 4},
    {"kv_cache": "prefix", "suffix": 2},
    {"suffix": 0},
    *({"suffix": (*range(8), 15)}, {"suffix": (3,)}, {"suffix": ()}),
]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"decoding": DecodingConfig()},
        *({"decoding": DecodingConfig.preset(name, gen_length=32)} for name in PRESETS),
        {"decoding": DecodingConfig.preset("fast", entropy_bound=0.2, block_length=16)},
        *({"decoding": DecodingConfig.preset("fast", block_length=16, **c)} for c in CACHES),
        {"decoding": DecodingConfig.preset("paper", refinement=3, stop_at_eos=True, seed=7)},
        {"decoding": DecodingConfig.preset("baseline", steps=64, schedule="timestep")},
        {"replicas": 4, "gpus_per_replica": 0.5, "truncation": "keep_last", "model": "a/b"},
        {"system_prompt": "-- say \"no\" to 'x';\n rm -rf $HOME `id` | --output=/etc\t"},
        {"input": "s3://bucket/a b", "prompt_column": "--weird column", "revision": "v1"},
    ],
)
def test_the_command_says_the_same_settings(settings: dict[str, Any]) -> None:
    words = shlex.split(job.entrypoint_of(config(**settings)))
    assert words[:3] == ["python", "-m", "jobs.generate"]
    assert run_config(cli.parser(["generate"]).parse_args(["generate", *words[3:]])) == config(
        **settings
    )


def test_the_command_is_short() -> None:
    paper = config(decoding=DecodingConfig.preset("paper"), address="http://head:8265")
    assert job.entrypoint_of(paper, "json") == (
        "python -m jobs.generate --log-format=json --input=/in --output=/out --preset=paper"
    )


def test_a_setting_that_flags_cannot_say() -> None:
    with pytest.raises(ValueError, match="'none'"):
        job.entrypoint_of(config(system_prompt="none"))


def test_what_goes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    sent = ray_jobs.runtime_env(
        str(tmp_path), ["NCCL_DEBUG", "TOKENIZERS_PARALLELISM=false", "A=b=c"]
    )
    assert sent["working_dir"] == str(tmp_path)
    assert {"/.git", ".venv", "/runs", "/tests", ".env*"} <= set(sent["excludes"])
    variables = sent["env_vars"]
    assert int(variables.pop("RAY_JOB_STOP_WAIT_TIME_S")) >= 30
    assert variables == {"NCCL_DEBUG": "INFO", "TOKENIZERS_PARALLELISM": "false", "A": "b=c"}


@pytest.mark.parametrize(
    "word", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "api_key", "MY_PASSWORD", "PROXY"]
)
def test_secrets_stay_out_of_the_environment(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = f"http://user:{SECRET}@proxy" if word == "PROXY" else SECRET
    monkeypatch.setenv(word, value)
    for given in (word, f"{word}={value}"):
        with pytest.raises(ValueError, match="not a place for secrets") as refused:
            ray_jobs.runtime_env(str(tmp_path), [given])
        assert SECRET not in str(refused.value)


# Ids.


def test_a_name_is_readable_and_the_outputs_own() -> None:
    name = ray_jobs.job_name("s3://bucket/My Runs/GSM8K_fast/")
    assert name.startswith("lrd-gsm8k-fast-")
    assert name == ray_jobs.job_name("s3://bucket/My Runs/GSM8K_fast")
    assert name != ray_jobs.job_name("s3://other/GSM8K_fast")
    assert ray_jobs.job_name("/").startswith("lrd-run-")


def test_attempts_count_up_and_a_job_at_work_is_found() -> None:
    client = FakeClient()
    submitted = [ray_jobs.submit(client, "lrd-a-1", "x", {})]
    done = [Details("lrd-a-1-1", JobStatus.FAILED), Details("lrd-a-1-9", JobStatus.STOPPED)]
    client.jobs = [*done, Details(None, JobStatus.RUNNING), Details("lrd-a-12", JobStatus.RUNNING)]
    submitted.append(ray_jobs.submit(client, "lrd-a-1", "x", {}))
    client.jobs.append(Details("lrd-a-1-10", JobStatus.PENDING))
    submitted.append(ray_jobs.submit(client, "lrd-a-1", "x", {}))
    assert submitted == [("lrd-a-1-1", True), ("lrd-a-1-10", True), ("lrd-a-1-10", False)]
    assert [sent["submission_id"] for sent in client.submitted] == ["lrd-a-1-1", "lrd-a-1-10"]


def test_of_two_at_once_one_follows_the_other() -> None:
    client = FakeClient(taken=["lrd-a-1-1"])
    assert ray_jobs.submit(client, "lrd-a-1", "x", {}) == ("lrd-a-1-1", False)
    assert client.submitted == []


# Following.


def test_a_log_is_shown_once_over_lost_connections() -> None:
    client = FakeClient(cuts=[0, 4, 2, ConnectionError("no route"), 9])
    shown: list[str] = []
    ray_jobs.follow(client, "x-1", shown.append)
    assert "".join(shown) == client.log


def test_a_server_that_is_gone_is_given_up() -> None:
    client = FakeClient(cuts=[RuntimeError("gone")] * 10_000)
    with pytest.raises(RuntimeError, match="gone"):
        ray_jobs.follow(client, "x-1", print, patience=0.05)


@pytest.mark.parametrize("code", [0, 2, 3, 75, 1])
def test_the_drivers_own_code_comes_back(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    client = FakeClient(ended=Details("x-1", JobStatus.FAILED, code, "…"))
    assert job.watch(client, "x-1", "http://head:8265") == code
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (client.log, "")


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (Details("x-1", JobStatus.STOPPED), "the job was stopped"),
        (Details("x-1", JobStatus.FAILED, None, "no node\nstack"), "was failed: no node;"),
        (Details("x-1", JobStatus.FAILED, 137), "the driver was killed (signal 9)"),
        (Details("x-1", JobStatus.FAILED, -9), "the driver was killed (signal 9)"),
    ],
)
def test_a_job_without_a_code_of_its_own(
    ended: Details, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.watch(FakeClient(ended=ended), "x-1", "http://head:8265") == 75
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_an_interrupt_leaves_the_job_alone(capsys: pytest.CaptureFixture[str]) -> None:
    client = FakeClient(cuts=[KeyboardInterrupt()])
    assert job.watch(client, "x-1", "http://head:8265") == 75
    line = capsys.readouterr().err
    assert "the job goes on" in line
    assert "ray job stop x-1 --address http://head:8265" in line
    assert client.stopped == []


def test_an_interrupt_stops_the_job_where_that_is_wanted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    client = FakeClient(cuts=[KeyboardInterrupt()], ended=Details("x-1", JobStatus.STOPPED))
    assert job.watch(client, "x-1", "http://head:8265", stop_on_interrupt=True) == 75
    assert client.stopped == ["x-1"]
    assert capsys.readouterr().out == client.log
    client = FakeClient(cuts=[KeyboardInterrupt(), KeyboardInterrupt()])
    assert job.watch(client, "x-1", "http://head:8265", stop_on_interrupt=True) == 75
    assert "the job goes on" in capsys.readouterr().err


# What is refused, each in one line with exit code 2.


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert job.run(parse(*words)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


@pytest.fixture
def toml(tmp_path: Path) -> str:
    path = tmp_path / "run.toml"
    path.write_text('input = "s3://bucket/in"\noutput = "/shared/out"\n')
    return str(path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--output", "out"], "output out: a job runs in a folder of its own"),
        (["--input", "./in"], "input ./in: a job"),
        (["--model", "./llada"], "model ./llada: give an absolute path"),
        (["--replicas", "0"], "replicas"),
        (["--working-dir", "/no/such"], "no such folder"),
        (["--env", "NOT_SET_ANYWHERE"], "is not set here"),
        (["--output", f"s3://AKIA:{SECRET}@bucket/out"], "output: s3://***@bucket/out carries"),
        ([], "no job server is named"),
        (["--address", "ray://head:10001"], "not the address of a job server"),
        (["--address", "auto"], "not the address of a job server"),
        (["--address", f"http://me:{SECRET}@head:8265"], "the address carries a password"),
        (["--address", "http://no-such-host.invalid:8265"], "no job server answers"),
    ],
)
def test_bad_settings_and_addresses(
    flags: list[str], said: str, toml: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, toml, *flags)
    assert said in line
    assert SECRET not in line


def test_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.toml" in refused(capsys, str(tmp_path / "nowhere.toml"))
    (tmp_path / "bad.toml").write_text("input = [")
    assert "bad.toml" in refused(capsys, str(tmp_path / "bad.toml"))
    (tmp_path / "odd.toml").write_text('inptu = "x"')
    assert "inptu: no such setting" in refused(capsys, str(tmp_path / "odd.toml"))


def test_a_port_without_a_server(toml: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "check --address" in refused(capsys, toml, "--address", f"127.0.0.1:{port}")


@pytest.fixture
def server() -> Iterator[dict[str, Any]]:
    """Answers every request with one status and body."""
    answer: dict[str, Any] = {"status": 200, "body": b"{}"}

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer["status"])
            self.send_header("Content-Length", str(len(answer["body"])))
            self.end_headers()
            self.wfile.write(answer["body"])

        def log_message(self, *_: Any) -> None: ...

    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    answer["address"] = f"http://127.0.0.1:{http_server.server_port}"
    yield answer
    http_server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, b"Unauthorized: Missing authentication token", "asks for a token: set RAY_AUTH_MODE"),
        (403, b"Forbidden: Invalid authentication token", "refuses this token"),
        (404, b"", "refuses: Version check returned 404"),
        (200, b"<html>another server</html>", "refuses: "),
        (502, b"bad gateway\nnginx", "refuses: 502"),
        (200, json.dumps({"version": "4", "ray_version": "1.2.0"}).encode(), "Ray version 1.2.0"),
    ],
)
def test_servers_that_are_not_ray_job_servers(
    status: int,
    body: bytes,
    said: str,
    server: dict[str, Any],
    toml: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://no-such-host.invalid:8265")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server.update(status=status, body=body)
    assert said in refused(capsys, toml, "--address", server["address"])
