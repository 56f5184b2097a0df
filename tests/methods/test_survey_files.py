"""What a survey keeps on disk is made again where it is damaged, not believed."""

from pathlib import Path

import pytest
import torch
from torch import nn

from nervure import trace
from nervure.methods import View
from nervure.methods.snacs import survey as surveys
from tests.old_snacs import old_snacs


def view() -> View:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)).eval()
    inputs = torch.randn(60, 6)
    graph = trace(model, inputs[:2])
    return View(graph, dict(model.named_parameters()), data=[(inputs, torch.arange(60) % 3)], model=model)


def damage(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 64]) + whole[-1:])


def test_a_damaged_layer_or_survey_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, seen = old_snacs(keep=0.6, cache=str(tmp_path), limits=False), view()
    expected = old_snacs(keep=0.6, limits=False).plan(seen)
    with monkeypatch.context() as patch:
        # As where the process ends before the whole is written.
        patch.setattr(surveys.ConnectivityEvidence, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            method.plan(seen)
    cells = list(tmp_path.glob("*/*.layer.safetensors"))
    assert len(cells) > 1
    for path in (*cells, *tmp_path.glob("*/stats.safetensors")):
        damage(path)
    assert method.plan(seen) == expected
    (whole,) = tmp_path.glob("*/connectivity.safetensors")
    right = whole.read_bytes()
    damage(whole)
    assert method.plan(seen) == expected
    assert whole.read_bytes() == right
