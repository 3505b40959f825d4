"""What is secret stays out of settings, and pickled weights stay unread."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
from pathlib import Path

import pytest

from lrd import load_model
from lrd.models.registry import TINY
from pipeline.config import RunConfig
from pipeline.preflight import refuse_secrets
from pipeline.storage.uri_secrets import hidden, refuse_secret

ROOT = Path(__file__).parents[1]
SECRET = "wJalrXUtnFEMI/K7MDENG?bPx"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (f"s3://AKIA1234:{SECRET}@bucket/in", "s3://***@bucket/in"),
        ("s3://AKIA1234:half%2Fencoded@bucket/in", "s3://***@bucket/in"),
        ("s3://AKIA1234:123456@bucket", "s3://***@bucket"),
        ("s3://AKIA1234@bucket/in", "s3://***@bucket/in"),
        ("S3://AKIA1234:abc@bucket", "S3://***@bucket"),
        ("https://user:pw@host:8443/a.parquet", "https://***@host:8443/a.parquet"),
        ("s3://AKIA1234:no-at-sign/bucket", "s3://***"),
        ("s3://bucket/in?secret_key=abc&region=eu", "s3://bucket/in?secret_key=***&region=eu"),
        ("s3://bucket/in?Access-Key=abc", "s3://bucket/in?Access-Key=***"),
        ("https://h/f?X-Amz-Signature=0a&x=1", "https://h/f?X-Amz-Signature=***&x=1"),
        ("abfs://c@acct.dfs.core.windows.net/d?sig=xyz", None),
        ("https://h/f?x=1#access_token=abc", "https://h/f?x=1#access_token=***"),
    ],
)
def test_a_uri_with_a_secret_is_refused_and_the_secret_not_shown(
    uri: str, shown: str | None
) -> None:
    assert hidden(uri) == (shown or uri.replace("xyz", "***"))
    with pytest.raises(ValueError, match="carries a secret") as refused:
        refuse_secret("input", uri)
    message = str(refused.value)
    assert message.startswith("input: ")
    assert "AWS_SECRET_ACCESS_KEY" in message
    for secret in (SECRET, "AKIA1234", "half%2F", "=abc", "pw@", "xyz", "0a&"):
        assert secret not in message


@pytest.mark.parametrize(
    "value",
    [
        "prompts",
        "/data/user@host:8/prompts",
        "s3://bucket/prompts",
        "s3://bucket/user@host/a:b@c",
        "s3://bucket/in?endpoint_override=127.0.0.1:9000&scheme=http&region=eu-west-1",
        "gs://anonymous@bucket/prompts",
        "hdfs://user@namenode:8020/prompts",
        "abfs://container@account.dfs.core.windows.net/prompts",
        "ray://10.0.0.1:10001",
        "http://[::1]:8265",
        "10.0.0.1:6379",
        "owner/name",
        "plugs:counter",
        "Answer as JSON, e.g. {key: value} at https://example.org",
        "say token=abc",
        None,
        7,
    ],
)
def test_what_has_no_secret_is_let_through(value: object) -> None:
    refuse_secret("setting", value)


@pytest.mark.parametrize("name", ["input", "output", "model", "address"])
def test_every_setting_is_checked(name: str) -> None:
    settings = {"input": "prompts", "output": "out"}
    refuse_secrets(RunConfig(**settings))
    with pytest.raises(ValueError, match=f"^{name}: "):
        refuse_secrets(RunConfig(**{**settings, name: "s3://AKIA:abc@bucket/x"}))


class Trap:
    """A pickle of it makes a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.file,)


PICKLED = ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt", "state.pkl"]


@pytest.mark.parametrize("name", PICKLED)
def test_pickled_weights_are_refused_unread_with_reason_and_fix(name: str, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    folder = tmp_path / "checkpoint"
    shutil.copytree(TINY, folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ValueError, match=r"can run code when read.*[Cc]onvert them") as refused:
        load_model(folder)
    assert name in str(refused.value)
    assert not sprung.exists()


@pytest.mark.parametrize("name", PICKLED)
def test_an_index_cannot_name_a_pickle(name: str, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    folder = tmp_path / "checkpoint"
    shutil.copytree(TINY, folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Trap(sprung)))
    index = {"weight_map": {"model.transformer.wte.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"can run code when read.*[Cc]onvert them"):
        load_model(folder)
    assert not sprung.exists()


@pytest.mark.parametrize("package", ["lrd", "pipeline"])
def test_nothing_unpickles_and_no_code_of_a_checkpoint_is_run(package: str) -> None:
    found = []
    for path in (ROOT / package).rglob("*.py"):
        if path.name == "confined.py":  # Runs answers in the sandbox, no checkpoint's code.
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                if names & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}:
                    found.append(f"{path.name}:{node.lineno}")
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                keywords = {keyword.arg for keyword in node.keywords}
                if called in ("torch.load", "eval", "exec") or "trust_remote_code" in keywords:
                    found.append(f"{path.name}:{node.lineno}")
    assert not found
