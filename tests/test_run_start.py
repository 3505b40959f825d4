"""How a run starts over a real Ray session: weights are digested beside it, machines compared."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.few import few
from helpers.shards import distinct_questions, events, write_shards

import pipeline.run
from lrd import DecodingConfig
from pipeline.config import RunConfig
from pipeline.output.ledger import Ledger, Plan
from pipeline.preflight import check, fingerprint_of
from pipeline.replicas.deaths import RunStoppedError
from pipeline.replicas.fleet import Actors
from pipeline.replicas.replica import Replica
from pipeline.rows import Bucket
from pipeline.run import generate

pytestmark = pytest.mark.usefixtures("kept_replicas")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    source = write_shards(tmp_path / "in", distinct_questions(12, seed=4), num_shards=3)
    return RunConfig(
        input=str(source),
        output=str(tmp_path / "out"),
        replicas=1,
        slots=4,
        cpus_per_replica=1.0,
        decoding=DecodingConfig.preset("fast", gen_length=32),
    )


def noting(folder: Path) -> Actors:
    """Replicas that leave a file when they begin to load."""

    class Noting(Replica):
        def load(self) -> dict[str, Any] | None:
            (folder / "loading").touch()
            return super().load()

    return Actors(Noting)


def await_loading(folder: Path) -> None:
    until = time.monotonic() + 120
    while not (folder / "loading").exists():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_replicas_load_while_the_weights_are_digested(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = pipeline.run.model_fingerprint

    def slow(config: RunConfig) -> str:
        await_loading(tmp_path)
        assert not Path(config.output).exists(), "nothing is written before it is known"
        return digest(config)

    monkeypatch.setattr(pipeline.run, "model_fingerprint", slow)
    summary = generate(config, actors=noting(tmp_path))
    assert (summary.num_rows, summary.num_failed) == (12, 0)
    assert summary.canvases_per_forward == 1.0
    assert [e["event"] for e in events(tmp_path / "out")][:2] == ["driver started", "replica up"]
    # With the digest at once: nothing is started for a run that has nothing to decode.
    monkeypatch.setattr(pipeline.run, "model_fingerprint", digest)
    (tmp_path / "loading").unlink()
    generate(config, actors=noting(tmp_path))
    assert not (tmp_path / "loading").exists()


@pytest.mark.parametrize("reason", few(["another model", "no such file"]))
def test_a_run_that_is_refused_late_ends_what_it_started(
    reason: str, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[Any] = []
    actors = noting(tmp_path)
    kill = actors.kill
    monkeypatch.setattr(actors, "kill", lambda actor: (killed.append(actor), kill(actor)))
    checked = check(config)  # All but the weights is as in the run that the output holds.
    fingerprint = fingerprint_of(config, checked.files, "float32", "1" * 64)
    earlier = Ledger(checked.output, Plan(checked.files, fingerprint, config.model_dump()))
    earlier.begin()
    earlier.end()
    before = (tmp_path / "out/.run/manifest.json").read_bytes()

    def slow(config: RunConfig) -> str:
        await_loading(tmp_path)
        if reason == "no such file":
            raise ValueError("model.safetensors: is gone")
        return "0" * 64

    monkeypatch.setattr(pipeline.run, "model_fingerprint", slow)
    with pytest.raises(ValueError, match=r"is gone|model was \"1+\", is \"0+\""):
        generate(config, actors=actors)
    assert len(killed) == 1
    assert (tmp_path / "out/.run/manifest.json").read_bytes() == before
    assert not list((tmp_path / "out").glob("data/*"))


def test_a_run_continued_on_another_machine_is_warned_of(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    generate(config)
    out = tmp_path / "out"
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    lines = events(out)
    for line in lines:
        if line["event"] == "replica up":
            assert line["environment"]["threads"] == 1
            line["environment"] |= {"device": "NVIDIA H100", "torch": "2.9.0"}
    (out / ".run" / "events.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (out / "data" / "train-00001-of-00003.parquet").unlink()
    summary = generate(config)
    assert (summary.num_rows, summary.num_failed) == (12, 0), "warned of, not refused"
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert line.startswith("replica-0 does not compute as replicas of this run did before (device")
    assert "torch was 2.9.0, is " in line
    assert len(summary.environments) == 2


def test_no_memory_for_one_slot_ends_a_run_at_once(config: RunConfig, tmp_path: Path) -> None:
    class Full(Replica):
        def _fitting_slots(self, bucket: Bucket) -> int:
            raise RuntimeError("CUDA error: out of memory")

    with pytest.raises(
        RunStoppedError, match=r"replica-0: no memory for one slot of \d+"
    ) as caught:
        generate(config, actors=Actors(Full))
    assert "\n" not in str(caught.value)
    seen = [event["event"] for event in events(tmp_path / "out")]
    assert seen.count("replica up") == 1, "16 GB are not loaded twenty times"
    assert seen[-1] == "driver stopped"
