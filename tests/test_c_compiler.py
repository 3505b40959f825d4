"""A machine without a C compiler is refused in one line, before a model is loaded."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from lrd import DecodingConfig, belief_ops
from lrd.models import c_compiler
from lrd.models.c_compiler import refuse_without_compiler
from pipeline.replicas import replica
from pipeline.replicas.replica import Replica, ReplicaSettings


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH, with gcc, and one with Python.h."""
    headers = tmp_path / "include"
    headers.mkdir()
    (headers / "Python.h").touch()
    monkeypatch.setattr(c_compiler, "python_headers", lambda: headers)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    gcc = tmp_path / "gcc"
    gcc.touch()
    gcc.chmod(gcc.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def test_a_machine_that_can_compile_is_not_refused(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_without_compiler()
    (machine / "gcc").rename(machine / "clang")
    refuse_without_compiler()
    (machine / "clang").rename(machine / "icx")
    monkeypatch.setenv("CC", str(machine / "icx"))
    refuse_without_compiler()


LACKING: dict[str, tuple[Any, str]] = {
    "compiler": (lambda m: (m / "gcc").unlink(), "there is no C compiler"),
    "not executable": (lambda m: (m / "gcc").chmod(0o644), "there is no C compiler"),
    "headers": (lambda m: (m / "include" / "Python.h").unlink(), "there is not Python.h in "),
    "CC": (lambda m: os.environ.update(CC="/no/cc"), "CC names '/no/cc', which is not there"),
}


@pytest.mark.parametrize("what", LACKING)
@pytest.mark.parametrize("compile", ["compile", "graphs"])
def test_what_is_lacking_is_named_with_the_fix(
    what: str, compile: Any, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "")
    monkeypatch.delenv("CC")
    take_away, words = LACKING[what]
    take_away(machine)
    loaded: list[Any] = []
    monkeypatch.setattr(replica, "load_model", lambda *given: loaded.append(given))
    settings = ReplicaSettings(
        "m", None, "cuda", "bfloat16", DecodingConfig(), slots=1, threads=1, compile=compile
    )
    with pytest.raises(ValueError) as caught:
        Replica("it", settings).load()
    assert words in str(caught.value)
    assert "apt-get install gcc libc6-dev python3-dev" in str(caught.value)
    assert "--compile none" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not loaded


@pytest.mark.parametrize("what", LACKING)
def test_beliefs_go_without_kernels_where_they_cannot_be_built(
    what: str, machine: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "")
    monkeypatch.delenv("CC")
    belief_ops._can_build.cache_clear()
    take_away, words = LACKING[what]
    take_away(machine)
    try:
        assert not belief_ops._can_build()
        assert not belief_ops._can_build()
    finally:
        belief_ops._can_build.cache_clear()
    (record,) = caplog.records
    assert words in record.message
    assert "beliefs are computed without kernels" in record.message
