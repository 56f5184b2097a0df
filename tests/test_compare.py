"""A comparison is fair, and can be stopped anywhere: what is written is never computed again."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nervure.errors import FileError, RecipeError
from nervure.recipe import Recipe, Study, compare
from nervure.recipe import compare as compare_function
from nervure.recipe.results import read_outcomes
from nervure.recipe.study import swept_trials
from nervure.recipe.workers import pool_of
from nervure.report.comparison import (
    Mean,
    Outcome,
    paired_differences,
    summary_table,
)
from nervure.report.comparison_report import comparison_charts, comparison_text

TINY: dict[str, Any] = {
    "study": {"seeds": [0, 1], "keeps": [0.5], "samples": 64},
    "data": {"name": "digits", "train_samples": 128, "test_samples": 60},
    "train": {"epochs": 1},
    "recover": {"epochs": 1},
    "network": [{"name": "resnet8", "options": {"width": 0.25}}],
    "method": [
        {"name": "Random"},
        {"name": "Taylor"},
        {"name": "Magnitude", "label": "by layer", "options": {"scope": "layer"}},
    ],
}


def tiny(**sections: Any) -> Study:
    return Study.from_dict(TINY | {k: v if isinstance(v, list) else TINY.get(k, {}) | v for k, v in sections.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("studies") / "tiny"
    compare(tiny(), folder=place, progress=False)
    return place


def lines(folder: Path) -> list[str]:
    return (folder / "results.jsonl").read_text().splitlines()


def test_every_trial_is_one_line_with_quality_size_and_where_it_comes_from(folder: Path) -> None:
    outcomes = list(read_outcomes(folder / "results.jsonl"))
    labels = [(o.seed, o.method) for o in outcomes]
    expected = ["dense", "dense+", "Random", "Taylor", "by layer"]
    assert labels == [(seed, method) for seed in (0, 1) for method in expected]
    for outcome in outcomes:
        assert 0 <= outcome.accuracy <= 1
        assert 0 <= outcome.validation <= 1
        assert 0 <= outcome.ece <= 1
        assert outcome.samples == 60
        assert outcome.provenance["torch"] == torch.__version__
        assert outcome.provenance["processor"]
    whole, cut = outcomes[0], outcomes[3]
    assert (whole.macs_kept, whole.params_kept) == (1, 1)
    assert cut.macs / whole.macs == cut.macs_kept <= 0.5
    assert "Taylor(keep=0.5" in cut.options
    assert (folder / "comparison.md").exists()
    assert (folder / "comparison-resnet8.svg").read_text().startswith("<svg")


def test_what_is_done_is_never_done_again_and_new_methods_are_added(folder: Path) -> None:
    before, said = lines(folder), list[str]()
    again = compare(tiny(), folder=folder, say=said.append)
    assert lines(folder) == before
    assert said == [f"8 of 8 trials are done; results: {folder / 'results.jsonl'}"]
    assert [o.key for o in again] == [json.loads(b)["key"] for b in (before[0], before[5], *before[1:5], *before[6:])]
    more = tiny(method=[*TINY["method"], {"name": "FPGM"}])
    assert len(compare(more, folder=folder, progress=False)) == len(before) + 2
    assert lines(folder)[: len(before)] == before
    assert [json.loads(line)["method"] for line in lines(folder)[len(before) :]] == ["FPGM", "FPGM"]


def test_a_comparison_stopped_anywhere_gives_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    for _ in range(20):
        done = len(compare(tiny(), folder=tmp_path, progress=False, limit=1))
        path = tmp_path / "results.jsonl"
        # Killed while writing: the line that was begun is no result.
        path.write_text(path.read_text() + '{"key": "a54b5')
        if done == 10:
            break
    numbers = ("key", "accuracy", "loss", "ece", "validation", "macs", "params", "loss_curve")
    whole = {o.key: asdict(o) for o in read_outcomes(folder / "results.jsonl")}
    parts = {o.key: asdict(o) for o in read_outcomes(tmp_path / "results.jsonl")}
    assert all([parts[key][n] for n in numbers] == [whole[key][n] for n in numbers] for key in parts)
    assert len(parts) == 10


def test_a_change_of_the_protocol_is_another_trial(folder: Path) -> None:
    keys = {t.key for t in tiny().trials()}
    for change in ({"train": {"epochs": 2}}, {"recover": {"distill": 0.5}}, {"study": {"budget": "params"}}):
        assert keys.isdisjoint({t.key for t in tiny(**change).trials()})
    assert keys == {t.key for t in tiny(study={"folder": "elsewhere", "threads": 2}).trials()}
    assert {t.dense_key for t in tiny(recover={"lr": 0.3}).trials()} == {t.dense_key for t in tiny().trials()}


def test_a_trial_that_fails_is_noted_with_its_reason_and_tried_again(tmp_path: Path) -> None:
    study = tiny(study={"seeds": [0], "keeps": [0.01], "dense_plus": False})
    said: list[str] = []
    assert [o.method for o in compare(study, folder=tmp_path, say=said.append)] == ["dense"]
    assert "failed: keep=0.01 of" in said[-1]
    assert "floors" in json.loads(lines(tmp_path)[-1])["error"]
    compare(study, folder=tmp_path, progress=False)
    assert len(lines(tmp_path)) == 1 + 2 * 3


def test_networks_and_methods_can_have_settings_of_their_own() -> None:
    other = {"label": "other", "name": "resnet8", "recover": {"optimizer": "adamw", "lr": 0.001}}
    study = tiny(
        network=[TINY["network"][0], other],
        method=[{"name": "Random"}, {"name": "Taylor", "networks": ["other"], "keeps": [0.3, 0.2]}],
    )
    taylor = [t for t in study.trials() if t.method == "Taylor"]
    assert [(t.network, t.recipe.prune.keep) for t in taylor] == [("other", 0.3), ("other", 0.2)] * 2
    assert {t.recipe.recover.optimizer for t in study.trials() if t.network == "other"} == {"adamw"}
    assert {t.recipe.recover.optimizer for t in study.trials() if t.network == "resnet8"} == {"sgd"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": []}, r"at least one \[\[network\]\]"),
        ({"method": [{"name": "Random"}, {"name": "Random"}]}, "'Random' must be there, once"),
        ({"method": [{"name": "Taylor"}]}, r"baseline names no \[\[method\]\] 'Random'"),
        ({"method": [{"name": "Random", "networks": ["vgg"]}]}, r"networks names no \[\[network\]\] 'vgg'"),
        ({"study": {"seeds": [1, 1]}}, "seeds .* once"),
        ({"study": {"keeps": [1.5]}}, r"keeps .* <= 1.0 \(at \$\[0\]: 1.5\)"),
        ({"study": {"sedes": [1]}}, "no key 'sedes'. Did you mean 'seeds'"),
        ({"recover": {"distill": 2.0}}, "distill = 2.0 .* <= 1.0"),
        ({"network": [{"name": "resnet8", "train": {"epoch": 1}}]}, "train has no key 'epoch'"),
    ],
)
def test_a_study_is_checked_before_any_work(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny(**change)


def test_a_method_that_does_not_exist_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no method 'Tailor'"):
        compare(tiny(method=[{"name": "Random"}, {"name": "Tailor"}]), folder=tmp_path, progress=False)


def outcome(method: str, seed: int, accuracy: float, keep: float = 0.5) -> Outcome:
    return Outcome(f"{method}{seed}{keep}", "net", method, seed, keep, "macs", accuracy=accuracy, ece=0.01)


ROWS = [
    outcome("Random", 0, 0.50),
    outcome("Random", 1, 0.70),
    outcome("A", 0, 0.52),
    outcome("A", 1, 0.76),
    outcome("A", 2, 0.99),
    outcome("A", 0, 0.99, keep=0.25),
]


def test_differences_are_paired_by_network_seed_and_budget() -> None:
    found = paired_differences(ROWS, "A", "Random")
    assert found == {("net", 0, 0.5): pytest.approx(0.02), ("net", 1, 0.5): pytest.approx(0.06)}
    assert Mean.of(list(found.values())) == pytest.approx((0.04, 0.02 * math.sqrt(2), 0.02, 2))
    assert summary_table(ROWS, "Random").rows == (("A", "+4.00 ± 2.00 (n=2)", "–"),)


def test_tables_and_charts_show_every_method_and_survive_missing_trials() -> None:
    text = comparison_text(ROWS, title="T", baseline="Random")
    assert "| A at 0.5 | +4.00 ± 2.00 | 75.67 ± 23.50 |" in text
    assert "| A at 0.25 | – | 99.00 |" in text
    chart = comparison_charts(ROWS, baseline="Random")["net"]
    assert chart.count("<circle") == 1
    assert "No trial" in comparison_text([], title="T", baseline="Random")
    assert comparison_charts([replace(ROWS[0], error="x")], baseline="Random") == {}


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"foo": 1}\n{"bar": 2}\n')
    with pytest.raises(FileError, match="line 1: this outcome of a trial cannot be read: .* `key`"):
        compare_function(tiny(), folder=tmp_path, progress=False)


def test_the_example_is_a_study() -> None:
    study = Study.from_toml(Path(__file__).parent.parent / "examples" / "study.toml")
    assert len(study.trials()) == 3 * (1 + 3 * 2)


def test_the_study_of_the_benchmark_can_be_read() -> None:
    study = Study.from_toml(Path(__file__).parent.parent / "benchmarks" / "pruning.toml")
    assert {trial.recipe.run.seed for trial in study.trials()} == {0, 1, 2}


@pytest.mark.filterwarnings("ignore::nervure.errors.NervureWarning")
def test_a_method_gets_the_evidence_it_wants_and_no_other(tmp_path: Path) -> None:
    more = {"name": "MINT", "options": {"groups": 2, "samples": 12}}
    snacs = {"name": "SNACS", "options": {"granularity": "filters", "samples": 64}}
    alone = tiny(study={"seeds": [0], "dense_plus": False}, method=[{"name": "Random"}, snacs])
    beside = tiny(study={"seeds": [0], "dense_plus": False}, method=[{"name": "Random"}, more, snacs])
    found = [compare(study, folder=tmp_path / str(i), progress=False) for i, study in enumerate((alone, beside))]
    one, other = ([o for o in outcomes if o.method == "SNACS"] for outcomes in found)
    assert [(o.accuracy, o.params) for o in one] == [(o.accuracy, o.params) for o in other]
    assert len(one) == 1


def test_a_default_that_changed_makes_another_trial_and_a_new_option_does_not(folder: Path, tmp_path: Path) -> None:
    one = tiny(study={"seeds": [0], "dense_plus": False}, method=[{"name": "Random"}])
    old = [asdict(o) for o in read_outcomes(folder / "results.jsonl") if o.method in ("dense", "Random") and not o.seed]
    for change, again in (("seed=0, ", ""), False), (("seed=0", "seed=7"), True), (("Random(", "Lots("), True):
        path = tmp_path / str(again) / change[1]
        path.mkdir(parents=True)
        lines_then = [json.dumps(o | {"options": o["options"].replace(*change)}) for o in old]
        (path / "results.jsonl").write_text("\n".join(lines_then) + "\n")
        (compared,) = (o for o in compare(one, folder=path, progress=False) if o.method == "Random")
        assert len(lines(path)) == 2 + again
        assert ("seed=0" in compared.options) == again


def test_a_study_and_a_sweep_that_ask_for_the_same_share_their_trials() -> None:
    """Digests are those of the version before: its folders are gone on in."""
    study = tiny(study={"seeds": [0]})
    recipe = {name: TINY[name] for name in ("data", "train", "recover")} | {"model": TINY["network"][0]}
    swept = {"keeps": [0.5], "method": TINY["method"]}
    keys = [trial.key for trial in study.trials()]
    assert [t.key for t in swept_trials(Recipe.from_dict(recipe | {"prune": {"samples": 64}, "sweep": swept}))] == keys
    assert keys[:2] == ["ce5f9008e1841319", "6536b85d92ed9f83"]
    assert study.trials()[0].dense_key == "d93c8afd3dfbfc23"


@pytest.mark.parametrize(
    "method",
    [
        [{"name": "Random"}, {"name": "Taylor", "label": "dense"}],
        [{"name": "Random"}, {"name": "Random", "label": "x"}],
    ],
)
def test_a_label_or_a_trial_that_is_taken_is_refused(method: list[dict[str, str]]) -> None:
    with pytest.raises(RecipeError, match="not 'dense' or 'dense[+]'|Random at 0.5 of macs and .*, x at .* the same"):
        tiny(method=method)


def test_a_comparison_goes_to_the_workers_that_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def pool(work: Any, workers: int, ray: str) -> Any:
        asked.append((workers, ray))
        return pool_of(work, 1)

    monkeypatch.setattr("nervure.recipe.grid.pool_of", pool)
    assert compare(tiny(), folder=tmp_path, workers=3, ray="local", limit=0, progress=False) == ()
    assert asked == [(3, "local")]
