"""Places as people name them: what is meant is found, what can never be is refused in one line
before Ray starts and before anything is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.few import spread
from helpers.runs import MadeRun

from jobs import cli
from lrd.models.registry import EMBEDDED
from pipeline import ray_jobs
from pipeline.config import RunConfig
from pipeline.input import input_files
from pipeline.storage import uris
from pipeline.storage.model_files import local_model, model_for_workers, node_folder
from pipeline.storage.storage import Storage

LONG = "x" * 300
"""Longer than a file's name may be."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, which is not the working directory."""
    folder = tmp_path / "home"
    folder.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path / "work")
    return folder


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("out", "out"),
        ("./~out", "./~out"),
        ("a b", "a b"),
        ("a%20b", "a%20b"),
        ("/data/[x]*?", "/data/[x]*?"),
        ("/data/a:b", "/data/a:b"),
        ("~", "{home}"),
        ("~/", "{home}/"),
        ("~/out", "{home}/out"),
        ("~root/out", os.path.expanduser("~root") + "/out"),
        ("file:/data/x", "/data/x"),
        ("file:///data/x", "/data/x"),
        ("FILE:///data/x", "/data/x"),
        ("file://localhost/data/x", "/data/x"),
        ("file:///data/a%20b", "/data/a b"),
        ("file:/data/%5Bx%5D", "/data/[x]"),
        ("file:///data/x?y#z", "/data/x?y#z"),
        ("file:///data/100%", "/data/100%"),
        ("s3://bucket/a%20b?region=x", "s3://bucket/a%20b?region=x"),
        ("S3://Bucket/x", "s3://Bucket/x"),
        ("hf://datasets/owner/name", "hf://datasets/owner/name"),
        ("owner/name", "owner/name"),
        ("package.module:factory", "package.module:factory"),
    ],
)
def test_a_place_is_what_is_meant(home: Path, place: str, expected: str) -> None:
    assert uris.canonical(place) == expected.format(home=home)
    assert uris.canonical(uris.canonical(place).replace("%", "_")), "what is canonical stays"


NO_PLACES = {
    "": "is empty",
    "  ": "is empty",
    "file:": "absolute path",
    "file:x": "absolute path",
    "file://": "absolute path",
    "file://host/x": "of the machine host",
    "s3:/bucket/x": "write s3://bucket/x, or ./s3:/bucket/x",
    "gs:/bucket": "write gs://bucket",
    "hf:/datasets/x": "write hf://datasets/x",
    "~no-such-user/x": "no home folder of ~no-such-user",
    "a\0b": "zero byte",
    "file:///a%00b": "zero byte",
    LONG: "too long",
    f"/tmp/{'y/' * 2500}": "too long",
}


@pytest.mark.parametrize(("place", "reason"), NO_PLACES.items())
def test_what_is_no_place_is_refused(home: Path, place: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        Storage(place)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500


def test_a_link_to_itself_is_refused(home: Path) -> None:
    (home / "loop").symlink_to(home / "loop")
    with pytest.raises(ValueError, match="symbolic links"):
        Storage(f"{home}/loop/x")


def test_an_input_that_holds_a_link_to_itself_is_read(home: Path) -> None:
    pq.write_table(pa.table({"prompt": ["How many?"]}), home / "0.parquet")
    (home / "loop").symlink_to(home / "loop")
    found = input_files.find(str(home))
    assert (found.names, found.left_out) == (["0.parquet"], ["loop"])


def below_a_file(folder: Path) -> str:
    (folder / "file").write_text("text")
    return f"{folder}/file/out"


def a_file(folder: Path) -> str:
    (folder / "file").write_text("text")
    return f"{folder}/file"


def a_link_to_nothing(folder: Path) -> str:
    (folder / "link").symlink_to(folder / "nothing")
    return f"{folder}/link"


def below_a_link_to_nothing(folder: Path) -> str:
    return a_link_to_nothing(folder) + "/out"


def too_deep(folder: Path) -> str:
    return (
        f"{folder}/" + "/".join(["d" * 200] * 19) + "/" + "e" * (4000 - 19 * 201 - len(str(folder)))
    )


UNWRITABLE: dict[str, Callable[[Path], str]] = {
    "below a file": below_a_file,
    "a file": a_file,
    "a link to nothing": a_link_to_nothing,
    "below a link to nothing": below_a_link_to_nothing,
    "names below it are too long": too_deep,
    "in /proc": lambda folder: "/proc/out",
    "/proc itself": lambda folder: "/proc",
    "below a process": lambda folder: "/proc/self/out",
    "/dev/null": lambda folder: "/dev/null",
    "below /dev/null": lambda folder: "/dev/null/out",
    "in /sys": lambda folder: "/sys/out",
    "as a URI": lambda folder: f"file://{below_a_file(folder)}",
    "a name that is too long": lambda folder: f"{folder}/{LONG}",
    "empty": lambda folder: "",
    "one slash": lambda folder: "s3:/bucket/out",
    "another machine": lambda folder: "file://host/out",
}


def run_cli(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and stderr of a command."""
    code = cli.run(words)
    return code, capfd.readouterr().err


def snapshot(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("kind", "command"),
    spread(UNWRITABLE, ["generate", "plan", "prepare", "publish", "report", "evaluate"], every=3),
)
def test_what_can_never_be_written_is_refused_at_once(
    home: Path, capfd: pytest.CaptureFixture[str], command: str, kind: str, no_start: None
) -> None:
    run = MadeRun(home / "run").begin().whole().end()
    place = UNWRITABLE[kind](home)
    words = {
        "generate": ["--input", str(home / "run" / "in"), "--output", place],
        "plan": ["--input", str(home / "run" / "in"), "--output", place],
        "prepare": [str(home / "run" / "in"), "--output", place],
        "publish": [str(run.output), "--to", place],
        "report": [str(run.output), "--output", f"{place}/page.html" if place else ""],
        "evaluate": [
            *(str(run.output), "--task", "word-problems", "--reference-column", "prompt"),
            *("--output", f"{place}/scores.parquet" if place else ""),
        ],
    }
    before = snapshot(home), snapshot(Path())
    code, said = run_cli(capfd, command, *words[command])
    assert code == 2, said
    assert len(said.splitlines()) == 1
    assert "Traceback" not in said
    assert (snapshot(home), snapshot(Path())) == before


@pytest.fixture
def no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray must not be started."""
    monkeypatch.setattr("ray.init", lambda **options: pytest.fail("Ray was started"))


NOWHERE = ["", "s3:/bucket/x", "file://host/x", "file:x", LONG, "~no-such-user/x"]


@pytest.mark.parametrize("place", NOWHERE)
@pytest.mark.parametrize(
    "words",
    [
        ["status", "{}"],
        ["verify", "{}"],
        ["retry-failed", "{}"],
        ["report", "{}"],
        ["publish", "{}", "--to", "x"],
        ["evaluate", "{}", "--task", "gsm8k"],
        ["plan", "--input", "{}", "--output", "x"],
        ["generate", "--input", "{}", "--output", "x"],
        ["generate", "--input", "{prompts}", "--output", "x", "--model", "{}"],
        ["prepare", "{}", "--output", "x"],
        ["reproduce", "table1", "--output", "{}"],
        ["tune", "--task", "gsm8k", "--input", "{}", "--output", "x"],
        ["submit", "{config}", "--address", "http://localhost:1", "--output={}"],
    ],
    ids=" ".join,
)
def test_every_command_refuses_what_is_no_place(
    home: Path, capfd: pytest.CaptureFixture[str], place: str, words: list[str], no_start: None
) -> None:
    (home / "run.toml").write_text('input = "/in"\noutput = "/out"\n')
    (home / "in").mkdir()
    pq.write_table(pa.table({"prompt": ["How many?"]}), home / "in" / "0.parquet")
    places = {"config": home / "run.toml", "prompts": home / "in"}
    filled = [word.format(place, **places) for word in words]
    code, said = run_cli(capfd, *filled)
    assert code == 2, said
    assert len(said.splitlines()) == 1, said
    assert not list(Path().iterdir())


@pytest.mark.parametrize("place", ["~/out", "file:{home}/out", "file://localhost{home}/o%75t"])
def test_commands_find_a_run_however_it_is_named(
    home: Path, capfd: pytest.CaptureFixture[str], place: str
) -> None:
    MadeRun(home).begin().whole().end()
    named = place.format(home=home)
    source = named.replace("out", "in").replace("o%75t", "i%6E")
    assert run_cli(capfd, "verify", named, "--no-input")[0] == 0
    assert run_cli(capfd, "status", named)[0] == 0
    assert run_cli(capfd, "report", named)[0] == 0
    assert run_cli(capfd, "publish", named, "--to", f"{named}-published")[0] == 0
    assert run_cli(capfd, "prepare", source, "--output", f"{named}-prepared")[0] == 0
    there = {path.name for path in home.iterdir()}
    assert there == {"in", "out", "out-published", "out-prepared"}
    assert (home / "out" / "report.html").is_file()
    assert not list(Path().iterdir()), "nothing in the working directory"


def test_the_probe_leaves_nothing(home: Path) -> None:
    before = snapshot(home)
    Storage(f"{home}/a/b").check_writable()
    Storage(str(home)).check_writable()
    assert snapshot(home) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(home: Path) -> None:
    home.chmod(0o500)
    with pytest.raises(ValueError, match="Permission denied"):
        Storage(f"{home}/out").check_writable()


def test_a_relative_checkpoint_is_absolute_for_workers(home: Path) -> None:
    Path("checkpoint").mkdir()
    assert model_for_workers("checkpoint") == model_for_workers("./checkpoint")
    assert model_for_workers("checkpoint") == str(Path("checkpoint").resolve())
    assert model_for_workers("~") == str(home)
    for name in ("tiny", "owner/name", "package.module:factory", "s3://bucket/model"):
        assert model_for_workers(name) == name
    for name in EMBEDDED:
        Path(name).mkdir()
        assert model_for_workers(name) == local_model(name) == node_folder(name) == name
    assert local_model("~/model") == f"{home}/model"


@pytest.mark.parametrize("name", ["input", "output", "model"])
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_place_is_no_setting(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="is empty"):
        RunConfig(**{"input": "in", "output": "out", name: value})


def test_a_job_takes_file_uris(home: Path) -> None:
    config = RunConfig(input="file:/data/in", output="file://localhost/data/out")
    ray_jobs.check_places(config)
    assert ray_jobs.job_name(config.output) == ray_jobs.job_name("/data/out")
    for place in ("~/out", "out", "file:out", "s3:/out"):
        with pytest.raises(ValueError):
            ray_jobs.check_places(config.model_copy(update={"output": place}))
