"""Models of other packages: the README's example decodes, what does not fit is refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import lrd
from lrd.models.checkpoint import fingerprint


@pytest.fixture
def plugs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package beside the tests: the README's example, and some that do not fit."""
    readme = (Path(lrd.__file__).parent / "models" / "README.md").read_text()
    example = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert len(example) == 1
    (tmp_path / "readme_plug.py").write_text(example[0])
    (tmp_path / "half_plug.py").write_text(
        "class Half:\n    mask_id = 1\n    max_length = 4\ndef half(device, dtype): return Half()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("readme_plug", "half_plug"):  # of a test before
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("preset", ["baseline", "fast"])
def test_readme_plug_decodes(plugs: Path, dtype: str, preset: str) -> None:
    model = lrd.load_model("readme_plug:counter", dtype=dtype)
    config = lrd.DecodingConfig.preset(preset, gen_length=6)
    samples = lrd.decode(model, [[3], [5, 6, 7, 8]], config)
    assert samples[0].canvas == [4, 5, 6, 7, 8, 9]
    assert samples[1].canvas == [9, 0, 1, 2, 3, 4]
    alone = lrd.decode(model, [[3]], config, padding_side="right")[0]
    assert alone.canvas == samples[0].canvas


def test_plugs_that_do_not_fit(plugs: Path) -> None:
    with pytest.raises(ValueError, match="no module missing_plug to import; install"):
        lrd.load_model("missing_plug:model")
    with pytest.raises(ValueError, match=r"no module missing\.plug to import; install"):
        lrd.load_model("missing.plug:model")
    with pytest.raises(ValueError, match="has no function model"):
        lrd.load_model("half_plug:model")
    missing = "eos_id, pad_id, eot_id, tokenizer, embedding_table, embed, logits"
    with pytest.raises(ValueError, match=f"has no {missing}"):
        lrd.load_model("half_plug:half")
    with pytest.raises(ValueError, match="drop the revision"):
        lrd.load_model("half_plug:half", revision="main")


def test_plug_fingerprint_follows_its_source(plugs: Path) -> None:
    before = fingerprint("half_plug:half")
    assert fingerprint("half_plug:half") == before
    with (plugs / "half_plug.py").open("a") as file:
        file.write("# changed\n")
    assert fingerprint("half_plug:half") != before
