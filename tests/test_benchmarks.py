"""What runs benchmarks: nothing is measured twice or lost, rows say where they come from, pages follow from rows."""

import json
import os
import re
import signal
import time
from importlib import import_module
from pathlib import Path

import pytest
from torch import nn

from benchmarks import runner
from benchmarks.runner import Benchmark, Results, fields, main, pack, packed, read_rows, sources_of, spearman, spread
from nervure.training import passes_of

SCRIPTS = {
    path.stem: path.read_text() for path in sorted((runner.ROOT / "benchmarks").glob("*.py")) if path.stem != "runner"
}
BENCHMARKS = [name for name, text in SCRIPTS.items() if "\nBENCHMARK = " in text]


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """The sources that run are those of a commit."""
    stand_on(monkeypatch, "aaa")


def stand_on(monkeypatch, commit):
    monkeypatch.setattr(runner, "provenance", lambda packages=(): {"commit": commit, "processor": "a fast one"})


def square(number):
    return {"number": number, "square": number**2}


def made(work=square, numbers=range(3), **more):
    """A benchmark of squares, and what was worked at."""
    worked = []

    def case(number):
        worked.append(number)
        return work(number)

    def cases(options):
        return [((number,), lambda number=number: case(number)) for number in numbers]

    def page(rows):
        return f"# Squares\n\n{[row['square'] for row in rows]}\n"

    return Benchmark("squares", page, fields("number"), cases, **more), worked


def run(benchmark, tmp_path, *words):
    main(benchmark, ["--results", str(tmp_path / "squares.jsonl"), *words])


def test_each_case_is_run_once_and_the_page_says_what_came_of_it_and_of_which_sources(tmp_path):
    benchmark, worked = made()
    run(benchmark, tmp_path)
    run(benchmark, tmp_path)
    assert worked == [0, 1, 2]
    text = (tmp_path / "squares.md").read_text()
    assert text.startswith("# Squares\n\n[0, 1, 4]\n\n")
    assert "`aaa`" in text
    assert "a fast one" in text


def test_what_was_done_before_a_stop_is_kept(tmp_path):
    def work(number):
        if number == 2:
            raise KeyboardInterrupt
        return square(number)

    with pytest.raises(KeyboardInterrupt):
        run(made(work)[0], tmp_path)
    benchmark, worked = made()
    run(benchmark, tmp_path)
    assert worked == [2]


def test_a_line_that_was_torn_is_dropped_and_its_case_run_again(tmp_path):
    path = tmp_path / "squares.jsonl"
    path.write_text(json.dumps(square(0)) + "\n" + json.dumps(square(1))[:-3])
    benchmark, worked = made()
    run(benchmark, tmp_path)
    assert worked == [1, 2]
    assert [json.loads(line)["square"] for line in path.read_text().splitlines()] == [0, 1, 4]


def test_fresh_runs_what_is_of_other_sources_and_nothing_else(tmp_path, monkeypatch):
    run(made(numbers=[0, 1])[0], tmp_path)
    stand_on(monkeypatch, "bbb")
    run(made(numbers=[2])[0], tmp_path)
    benchmark, worked = made()
    run(benchmark, tmp_path)
    assert not worked
    run(benchmark, tmp_path, "--fresh")
    assert worked == [0, 1]


def test_again_runs_what_went_wrong(tmp_path):
    benchmark, worked = made(goes_wrong=lambda row: row["square"] == 1)
    run(benchmark, tmp_path)
    run(benchmark, tmp_path, "--again")
    assert worked == [0, 1, 2, 1]


def test_the_table_alone_and_a_limit(tmp_path):
    benchmark, worked = made()
    run(benchmark, tmp_path, "--limit", "2")
    run(benchmark, tmp_path, "--table")
    assert worked == [0, 1]


def test_sources_of_no_commit_are_refused_or_marked(tmp_path, monkeypatch):
    stand_on(monkeypatch, "aaa+")
    with pytest.raises(SystemExit, match="--dirty"):
        run(made()[0], tmp_path)
    run(made()[0], tmp_path, "--dirty")
    assert {row["commit"] for row in read_rows(tmp_path / "squares.jsonl")} == {"aaa+"}


def test_provenance_marks_changes_to_the_sources_alone(monkeypatch):
    monkeypatch.undo()
    said = {"status": " M nervure/plan.py", "rev-parse": "0123456"}
    monkeypatch.setattr(runner, "git", lambda *words: said[words[0]])
    assert runner.provenance()["commit"] == "0123456+"
    said["status"] = ""
    assert runner.provenance(("pytest", "there is no such package"))["versions"].keys() == {"python", "torch", "pytest"}
    assert runner.provenance()["commit"] == "0123456"


def test_cases_apart_cost_each_other_nothing(tmp_path, capfd):
    def work(number):
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return square(number) | {"process": os.getpid()}

    with pytest.raises(SystemExit, match="1 cases failed"):
        run(made(work)[0], tmp_path, "--jobs", "2")
    rows = read_rows(tmp_path / "squares.jsonl")
    assert {row["number"] for row in rows} == {0, 2}
    assert len({row["process"] for row in rows} - {os.getpid()}) == 2
    assert "(1,): ended with -9" in capfd.readouterr().err


def test_a_case_apart_that_raises_or_takes_too_long_has_the_row_of_a_failure(tmp_path):
    def work(number):
        if number == 1:
            raise ValueError("lost")
        while number == 2:
            time.process_time()
        return square(number)

    failed = lambda key, why: {"number": key[0], "square": why}  # noqa: E731
    run(made(work, apart=True, seconds=1, failed=failed)[0], tmp_path)
    why = {row["number"]: row["square"] for row in read_rows(tmp_path / "squares.jsonl")}
    assert why[0] == 0
    assert "ValueError: lost" in why[1]
    assert why[2] == "over 1 s"


def test_a_case_of_several_rows_is_done_where_any_is_there(tmp_path):
    benchmark, worked = made(lambda number: [square(number) | {"part": part} for part in "ab"])
    benchmark = Benchmark("squares", benchmark.page, fields("number", "part"), benchmark.cases)
    run(benchmark, tmp_path)
    run(benchmark, tmp_path)
    assert worked == [0, 1, 2]
    assert len(read_rows(tmp_path / "squares.jsonl")) == 6


KEYS = [("resnet20", "onnx", 0), ("resnet20", "eager", 1), ("resnet56", "onnx", 1), ("vit", "onnx", 10)]


@pytest.mark.parametrize(
    ("words", "places"),
    [
        ([], [0, 1, 2, 3]),
        (["vit"], [3]),
        (["resnet"], [0, 1, 2]),
        (["resnet", "onnx"], [0, 2]),
        (["resnet20", "vit"], [0, 1, 3]),
        (["1"], [1, 2]),
    ],
)
def test_words_name_cases_by_the_entries_of_their_keys(words, places):
    cases = [(key, square) for key in KEYS]
    assert [case[0] for case in runner.choose(cases, words)] == [KEYS[place] for place in places]


def test_a_word_that_names_nothing_is_told():
    with pytest.raises(SystemExit, match="'vgg'"):
        runner.choose([(key, square) for key in KEYS], ["vgg"])


def test_many_lines_are_packed_and_newer_ones_come_first_by_key(tmp_path):
    path = tmp_path / "squares.jsonl"
    pack(path, [square(number) | {"note": "long" * 100} for number in range(300)])
    assert not path.exists()
    assert packed(path).stat().st_size < runner.LARGE
    results = Results(path, fields("number"))
    results.add({"number": 5, "square": "new"})
    assert len(read_rows(path)) == 301
    again = Results(path, fields("number"))
    assert [row["square"] for row in again.rows[4:7]] == [16, "new", 36]
    again.publish(lambda rows: "page")
    assert not path.exists()
    assert len(read_rows(path)) == 300


def test_what_another_run_added_meanwhile_is_kept(tmp_path):
    path = tmp_path / "squares.jsonl"
    pack(path, [square(number) | {"note": "long" * 100} for number in range(300)])
    one, other = (Results(path, fields("number")) for _ in range(2))
    other.add(square(500))
    one.add(square(501))
    one.publish(lambda rows: f"{len(rows)} rows")
    assert (tmp_path / "squares.md").read_text().startswith("302 rows\n")
    other.add(square(502))
    assert {row["number"] for row in read_rows(path)} >= {500, 501, 502}


def test_a_study_finds_rows_but_not_those_that_are_to_be_made_anew(tmp_path):
    found = []

    def study(results, options):
        found.append(results.find(number=1))
        results.add(square(1))
        assert results.find(number=1)["commit"] == "aaa"

    (tmp_path / "squares.jsonl").write_text(json.dumps(square(1) | {"commit": "old"}) + "\n")
    benchmark = Benchmark("squares", lambda rows: f"{len(rows)}", fields("number"), study=study)
    run(benchmark, tmp_path)
    (tmp_path / "squares.jsonl").write_text(json.dumps(square(1) | {"commit": "old"}) + "\n")
    run(benchmark, tmp_path, "--fresh")
    assert [row and row["commit"] for row in found] == ["old", None]


def test_pages_name_sources_that_are_not_in_the_history(monkeypatch):
    monkeypatch.setattr(runner, "history", lambda: frozenset({"0123456"}))
    rows = [{"commit": "012345678"}, {"commit": "fedcba987"}, {"commit": "012345678+"}, {}, {"torch": "2"}]
    text = sources_of(rows)
    assert "`012345678` 1," in text
    assert "`fedcba987` (not in the history) 1" in text
    assert "`012345678+` 1" in text
    assert "not noted 2," in text
    assert text.endswith("; torch 2.")


def test_numbers_on_pages():
    assert spread([0.5, 0.75]) == "62.5 ± 17.7"
    assert spread([0.5]) == "50.0"
    assert spearman([1, 2, 2, 3], [10, 20, 20, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3], [0, 0, 0]) == 0


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_page_is_what_its_rows_give(name):
    page, benchmark = runner.RESULTS / f"{name}.md", import_module(f"benchmarks.{name}").BENCHMARK
    results = Results(runner.RESULTS / f"{name}.jsonl", benchmark.key)
    if not results.rows or "(commit, or tree of `nervure`" not in page.read_text():
        pytest.skip("the page was not written by this runner")
    text, _, sources = page.read_text().rpartition("\n\n")
    assert benchmark.page(results.rows).rstrip() == text, f"python benchmarks/{name}.py --table"
    counts = re.findall(r" (\d+)(?=[,;.])", sources.partition(":")[2].partition(";")[0] + ";")
    assert sum(map(int, counts)) == len(results.rows)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_named_like_its_file_and_runs_by_the_runner(name):
    assert import_module(f"benchmarks.{name}").BENCHMARK.name == name
    assert SCRIPTS[name].endswith('if __name__ == "__main__":\n    main(BENCHMARK)\n')


def test_lines_of_results_that_are_many_are_packed():
    large = [path.name for path in Path(runner.RESULTS).glob("*.jsonl") if path.stat().st_size > runner.LARGE]
    assert set(large) <= {"zoo.jsonl", "torture.jsonl"}


def test_ways_of_training_for_shift_have_as_many_settings_and_the_same_work():
    study = import_module("benchmarks.shift_training")
    assert len({len(settings) for settings in study.WAYS.values()}) == 1
    model, views = nn.Linear(2, 2), lambda batch, seed: batch
    for settings in study.WAYS.values():
        assert len({setting.name for setting in settings}) == len(settings)
        for setting in settings:
            epochs = setting.share * study.WORK / passes_of(setting.make(views, model), setting.sharpness).work
            assert epochs == pytest.approx(round(epochs))


def test_a_setting_is_chosen_by_held_out_corruptions_and_told_with_all_others():
    study = import_module("benchmarks.shift_training")
    scale = study.Scale(settings=2)
    rows = [
        {"key": ["choose", task, "magnitude", way, setting.name, 10], "shifted": 0.5 + 0.1 * number, "setting": ""}
        for way, settings in study.settings_of(scale).items()
        for number, setting in enumerate(settings)
        for task in scale.chosen_on
    ]
    rows.append({"key": ["test", "VGG-16-BN", "magnitude", "augmented", "", 0], "shifted": 0.9})
    assert all(way.name == study.WAYS[name][1].name for name, way in study.choose(rows, scale).items())
    rows[-1] |= {"clean": 0.9, "worst": 0.1, "ece": 0.1, "setting": "lr 1", "work": 12.0, "epochs": 12, "seconds": 1.0}
    other = dict(rows[-1], key=["test", "VGG-16-BN", "magnitude", "plain, longer", "", 0], shifted=0.8)
    text = study.page([*rows, other])
    assert (
        "| magnitude | augmented | +10.0 | +10.0 |" in text and "lr 0.03, clean 0: 60.0; lr 0.01, clean 0: 50.0" in text
    )
