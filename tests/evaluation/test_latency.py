import json

import pytest
import torch
from torch import nn

from nervure.core.inputs import Inputs
from nervure.errors import ArgumentError, ForwardError
from nervure.evaluation import Latency, Timing, latency

QUICK = {"rounds": 3, "seconds": 0.0, "warmup": 1}


class Recorder(nn.Module):
    def __init__(self, name, log):
        super().__init__()
        # A bound method: lists in attributes are put back.
        self.name, self.tell = name, log.append

    def forward(self, x):
        self.tell((self.name, len(x), torch.get_num_threads(), self.training, torch.is_grad_enabled()))
        return x


def test_the_table_has_a_row_per_model_batch_and_thread_count():
    models = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 8)}
    table = latency(models, torch.randn(2, 4), batch_sizes=(1, 3), threads=(1, 2), **QUICK)
    expected = [(n, b, t) for b in (1, 3) for t in (1, 2) for n in ("a", "b")]
    assert [(r.name, r.batch, r.threads) for r in table.rows] == expected
    for row in table.rows:
        assert 0 < row.quartiles[0] <= row.median <= row.quartiles[1] and row.rounds == 3
    assert table.speedup("a") == 1.0 and table.row("a").ratio_quartiles == (1.0, 1.0)
    assert json.loads(json.dumps(table.to_json()))["rows"][0]["name"] == "a"
    assert len(str(table).splitlines()) == 9


def test_models_take_turns_in_evaluation_mode_and_everything_comes_back():
    log = []
    models = {name: Recorder(name, log).train() for name in "ab"}
    before = torch.get_num_threads()
    latency(models, torch.zeros(2, 1), batch_sizes=(5,), threads=(2,), rounds=4, seconds=0.0, warmup=1)
    assert torch.get_num_threads() == before and all(m.training for m in models.values())
    assert {entry[1:] for entry in log} == {(5, 2, False, False)}
    turns = [name for i, (name, *_) in enumerate(log) if i == 0 or log[i - 1][0] != name]
    # Warm-up in order, then there and back: ab, ba, ab, ba, where neighbours that are the same model melt together.
    assert "".join(turns) == "abababa"


def test_threads_and_modes_come_back_after_a_failure():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    model, before = Broken(), torch.get_num_threads()
    with pytest.raises(ForwardError):
        latency({"a": model}, torch.zeros(1, 1), threads=(before + 1,), **QUICK)
    assert torch.get_num_threads() == before and model.training


def test_more_rounds_follow_until_the_seconds_are_over():
    table = latency({"a": nn.Linear(1, 1)}, torch.zeros(1, 1), rounds=3, seconds=0.2, warmup=0)
    assert 3 < table.row("a").rounds <= 1000


def test_a_row_is_found_by_what_was_measured_and_missing_ones_are_listed():
    table = Latency(tuple(Timing("a", b, 1, b * 1e-3, (0.0, 1.0), b / 2, (0.0, 1.0), 3) for b in (1, 4)))
    assert table.median("a") == 1e-3 and table.median("a", 4) == 4e-3 and table.speedup("a", batch=4) == 0.5
    with pytest.raises(ArgumentError, match=r"'b' .* there are: 'a' \(batch 1, threads 1, eager\)"):
        table.median("b")


def test_examples_of_any_form_are_brought_to_the_batch_size():
    x = torch.arange(3.0)[:, None]
    assert Inputs.of(x).resize(5).args[0].flatten().tolist() == [0, 1, 2, 0, 1]
    assert Inputs.of(x).resize(2).args[0].flatten().tolist() == [0, 1]
    scale, other = torch.tensor(2.0), torch.zeros(7)
    assert [v.shape for v in Inputs.of((x, scale, other)).resize(4).args] == [(4, 1), (), (7,)]
    named = Inputs.of({"x": x, "flag": True}).resize(4).kwargs
    assert named["x"].shape == (4, 1) and named["flag"] is True

    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    latency({"a": Two()}, (x, x), batch_sizes=(2,), **QUICK)
    latency({"a": Two()}, {"x": x, "y": x}, batch_sizes=(2,), **QUICK)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "warp"}, "engine is one of 'eager'.*got 'warp'"),
        ({"rounds": 1}, "rounds=1 .* at least 3"),
        ({"batch_sizes": ()}, "batch_sizes is empty"),
        ({"batch_sizes": (0,)}, r"got \(0,\)"),
        ({"threads": (0,)}, r"got \(0,\)"),
        ({"seconds": -1.0}, "got -1"),
        ({"models": {}}, "no model"),
        ({"example": torch.tensor(1.0)}, "first axis"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, words):
    with pytest.raises(ArgumentError, match=words):
        latency(**{"models": {"a": nn.Linear(1, 1)}, "example": torch.zeros(1, 1), **QUICK, **options})
