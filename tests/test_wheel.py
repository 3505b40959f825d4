"""The wheel: all data files are in it, and installed alone it decodes and reports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("lrd", "pipeline", "jobs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the working tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip(*("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source)))
    (found,) = out.glob("*.whl")
    return found


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_every_module_and_data_file_is_in_it(wheel: Path) -> None:
    """Data are all files but the pages that are read on the source host."""
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file()
        and path.suffix not in (".md", ".pyc")
        and not path.is_relative_to(ROOT / "jobs" / "benchmarks")
    }
    assert {name for name in wanted if name.endswith((".js", ".csv", ".parquet", ".safetensors"))}
    assert not wanted - inside
    assert not {name for name in inside if name.startswith("tests/")}


@pytest.mark.slow
def test_installed_alone_it_decodes_and_reports(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    pip("install", "--no-deps", "--target", str(target), str(wheel))
    (elsewhere / "in").mkdir(parents=True)
    prompts = [f"Tom has {n} apples and buys 2. How many?" for n in range(3)]
    pq.write_table(pa.table({"prompt": prompts}), elsewhere / "in" / "a.parquet")
    environment = {**os.environ, "PYTHONPATH": str(target)}

    def run(*words: str) -> str:
        done = subprocess.run(
            words, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(sys.executable, "-c", "import lrd, pipeline, jobs; print(jobs.__file__)")
    assert where.startswith(str(target))
    lrd = str(target / "bin" / "lrd")
    run(lrd, "generate", "--input", "in", "--output", "out", "--gen-length", "32", "--slots", "2")
    run(lrd, "report", "out")
    run(lrd, "models")
    results = pq.read_table(elsewhere / "out" / "data")
    assert results["status"].to_pylist() == ["ok"] * 3
    assert "<html" in (elsewhere / "out" / "report.html").read_text()[:200]
