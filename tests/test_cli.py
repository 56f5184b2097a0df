"""Every arrow can be taken from the command line, and what goes wrong is one clear line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import nervure
from nervure import Graph, Plan, Stats
from nervure.cli import main
from nervure.cli.surface import listed_commands
from nervure.core.files import read_json
from nervure.export import read_header
from nervure.report import Report, Row
from tests.clocks import Clock, installed

MODEL = ("--model", "resnet8", "--option", "width=0.25")
INPUT = ("--input", "1x3x16x16")
DIGITS = (*MODEL, "--data", "digits")


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def done(*words: str | Path) -> str:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*words: str | Path) -> str:
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["", *listed_commands()])
def test_help_shows_a_working_example(name: str) -> None:
    text = done(*filter(None, [name]), "--help")
    assert f"nervure {name}" in text.split("Example:" if name else "Begin with:")[-1]


def test_commands_come_in_the_order_of_the_arrows() -> None:
    order = [
        "run",
        "prune",
        "sweep",
        "compare",
        "trace",
        "measure",
        "score",
        "plan",
        "apply",
        "refit",
        "train",
        "evaluate",
        "connectivity",
        "export",
        "report",
    ]
    assert main.list_commands(main.make_context("nervure", ["--help"], resilient_parsing=True)) == order


def test_a_pruned_network_goes_to_another_engine_with_its_card_and_is_timed_there() -> None:
    done("plan", *DIGITS, "-o", "plan.json")
    done("apply", *DIGITS, "--plan", "plan.json", "-o", "m.safetensors")
    file = ("--file", "m.safetensors", "--data", "digits")
    text = done("evaluate", *file, "--batch", "2", "--engine", "eager", "--engine", "openvino", "-o", "n.json")
    assert "ms at batch 2 in openvino" in text and "of activations at the peak at batch 2" in text
    numbers = read_json("n.json")
    assert [row["engine"] for row in numbers["latency"]] == ["eager", "openvino"]
    assert numbers["memory"]["2"]["activations"] > 0 and numbers["bytes"] > 0
    text = done("export", *file, "--samples", "40", "--notes", "n.json", "-o", "m.pt2")
    assert "on data inputs" in text and "wrote m.pt2.card.md" in text
    card = read_json("m.pt2.card.json")
    assert card["notes"]["accuracy"] == numbers["accuracy"]
    assert card["pruning"]["steps"][0]["edits"]["cuts"] > 0
    assert card["provenance"]["again"].startswith("nervure export --file m.safetensors --data digits")


def test_a_device_that_is_not_there_is_named() -> None:
    assert "--device cuda:7: torch finds no such device here" in refused("trace", *MODEL, *INPUT, "--device", "cuda:7")
    assert "--device meta" in refused("trace", *MODEL, *INPUT, "--device", "meta")


def test_the_version_is_that_of_the_package() -> None:
    assert nervure.__version__ in done("--version")


def test_trace_shows_groups_and_writes_graph_and_page() -> None:
    text = done("trace", *MODEL, *INPUT, "-o", "g.json", "--html", "g.html")
    graph = Graph.from_json(read_json("g.json"))
    assert all(group.name in text for group in graph.groups)
    assert "<!doctype html>" in Path("g.html").read_text()


def test_trace_shows_on_its_page_what_a_plan_would_take() -> None:
    done("plan", *MODEL, *INPUT, "--keep", "0.5")
    done("trace", *MODEL, *INPUT, "--html", "g.html", "--plan", "plan.json")
    cut = Plan.from_json(read_json("plan.json")).cuts[0]
    assert f"{cut.keep.size} → {cut.keep.count}" in Path("g.html").read_text()


def test_trace_pins_what_must_not_change() -> None:
    done("trace", *MODEL, *INPUT, "--ignore", "layer1.*")
    pinned = [group.name for group in Graph.from_json(read_json("graph.json")).groups if group.is_pinned]
    assert any(name.startswith("layer1") for name in pinned)


def test_a_plan_is_shown_and_nothing_is_cut() -> None:
    text = done("plan", *MODEL, *INPUT, "--keep", "0.5", "--set", "norm=2")
    plan = Plan.from_json(read_json("plan.json"))
    assert plan.cuts
    assert all(cut.group in text for cut in plan.cuts)
    assert [path.name for path in Path().iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("words", "density"),
    [
        (("SNIP", "--density", "0.1", *DIGITS), 0.1),
        (("--method", "ERK", "--keep", "0.2", *MODEL, *INPUT), 0.2),
        (("magnitudemasks", "--set", "density=0.3", "--set", "granularity=kernel", *MODEL, *INPUT), 0.3),
    ],
)
def test_methods_that_mask_weights_take_a_density(words: tuple[str, ...], density: float) -> None:
    done("plan", *words)
    plan = Plan.from_json(read_json("plan.json"))
    assert plan.masks
    assert plan.reached["density"] == pytest.approx(density, abs=1e-3)
    assert plan.asked["density"] == density


def test_a_plan_is_made_for_an_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed(monkeypatch, tmp_path / "cache", Clock())
    text = done("plan", *MODEL, *INPUT, "--budget", "latency", "--target", "0.8", "--set", "multiple=2", "-o", "a.json")
    plan = Plan.from_json(read_json("a.json"))
    assert plan.asked == {"budget": "latency", "engine": "eager", "target": 0.8}
    assert plan.cuts
    assert f"timed on eager: {plan.reached['milliseconds']:.3g} ms" in text
    done("plan", *MODEL, *INPUT, "--budget", "latency", "--engine", "eager", "--target", "90 s", "-o", "b.json")
    assert not Plan.from_json(read_json("b.json")).edits


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--budget", "latency", "--target", "3"), 'like "3 ms"'),
        (("--budget", "latency", "--engine", "tensorrt"), "engine='tensorrt'"),
        (("--target", "0.5"), "needs budget='latency'"),
        (("SNIP", "--engine", "eager"), "SNIP plans for no engine"),
        (("Depth", "--budget", "latency", "--target", "2 hours"), "latency='2 hours' is no time"),
    ],
)
def test_what_an_engine_cannot_be_asked_is_refused(words: tuple[str, ...], told: str) -> None:
    assert told in refused("plan", *words, *MODEL, *INPUT)


def test_training_rewires_a_sparse_network_and_goes_on_with_it() -> None:
    text = done("train", *DIGITS, "--rewire", "SET", "--density", "0.2", "--set", "events=3", "--epochs", "1",
                "--events", "events.jsonl", "-o", "sparse.safetensors")  # fmt: skip
    assert "3 events" in text
    assert len(Path("events.jsonl").read_text().splitlines()) == 4
    header = read_header("sparse.safetensors")
    assert header["plan"]["reached"]["density"] == pytest.approx(0.2, abs=1e-3)
    before = done("evaluate", "--file", "sparse.safetensors", "--data", "digits")
    done("train", "--file", "sparse.safetensors", "--data", "digits", "--rewire", "rigl", "--density", "0.2",
         "--epochs", "1", "-o", "again.safetensors")  # fmt: skip
    again = read_header("again.safetensors")["plan"]
    assert again["reached"]["weights"] == header["plan"]["reached"]["weights"]
    assert done("evaluate", "--file", "again.safetensors", "--data", "digits") != before


@pytest.mark.parametrize("words", [("--density", "0.2"), ("--rewire", "Magnitude"), ("--rewire", "SNIP")])
def test_what_does_not_rewire_is_refused_before_any_work(words: tuple[str, ...]) -> None:
    assert "--rewire" in refused("train", *DIGITS, *words)


def test_a_method_that_measures_takes_data_or_evidence() -> None:
    options = ("--method", "energy", "--set", "drop=1", "--set", "policy=rank", "--set", "score=dcor")
    continuous = ("--set", "target=probabilities")
    text = done("plan", *MODEL, "--data", "digits", *options, *continuous, "-o", "now.json")
    assert "block dropped" in text
    done("measure", *MODEL, "--data", "digits", "--want", "blocks", "--want", "outputs")
    done("plan", *MODEL, *INPUT, *options, *continuous, "--stats", "stats.safetensors", "-o", "then.json")
    now, then = (Plan.from_json(read_json(name)) for name in ("now.json", "then.json"))
    assert now.drops == then.drops != ()
    assert "give --data NAME to measure now" in refused("plan", *MODEL, *INPUT, *options)


def test_score_gives_each_unit_a_number() -> None:
    text = done("score", *MODEL, *INPUT, "--criterion", "random")
    assert "median" in text
    assert Path("scores.safetensors").exists()


def test_score_takes_the_options_of_its_criterion() -> None:
    done("score", *MODEL, *INPUT, "-o", "one.safetensors")
    done("score", *MODEL, *INPUT, "--set", "norm=2", "-o", "two.safetensors")
    assert Path("one.safetensors").read_bytes() != Path("two.safetensors").read_bytes()


def test_from_network_to_numbers_arrow_by_arrow() -> None:
    done("trace", *DIGITS)
    done("measure", *DIGITS, "--samples", "64", "--want", "activations")
    assert Stats.load("stats.safetensors").samples == 64
    done("train", *DIGITS, "--epochs", "1", "-o", "dense.safetensors")
    trained = (*DIGITS, "--weights", "dense.safetensors")
    done("plan", *trained, "--graph", "graph.json", "--stats", "stats.safetensors")
    assert "verified" in done("apply", *trained, "--plan", "plan.json", "--graph", "graph.json")
    # The file knows its network: no --model from here on.
    done("train", "--file", "model.safetensors", "--data", "digits", "--epochs", "1", "-o", "recovered.safetensors")
    shifted = ("--shift", "noise", "--severity", "2", "--samples", "100")
    text = done(
        "evaluate", "--file", "recovered.safetensors", "--data", "digits", "--batch", "1", *shifted, "-o", "n.json"
    )
    assert "impulse_noise" in text
    assert "accuracy" in text
    assert read_json("n.json")["params"] == read_header("recovered.safetensors")["costs"]["after"]["params"]


def test_a_factory_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    body = "return nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))"
    Path("own_nets.py").write_text(f"from torch import nn\ndef net(width=4):\n    {body}\n")
    monkeypatch.syspath_prepend(Path.cwd())
    done("plan", "--model", "own_nets:net", "--option", "width=8", "--input", "2x3", "-o", "plan.json")
    assert Plan.from_json(read_json("plan.json")).cuts[0].keep.size == 8


def test_corrupted_data_in_a_folder_and_a_network_compiled_for_its_zeros() -> None:
    image = torch.randn(1, 1, 8, 8)
    net = nervure.zoo.build("resnet8", in_channels=1, width=0.25).eval()
    nervure.save(
        "m.safetensors",
        nervure.prune(net, image, nervure.ERK(density=0.1), verify=False),
        meta={"model": {"name": "resnet8", "options": {"in_channels": 1, "width": 0.25}}},
    )
    generator = np.random.default_rng(0)
    Path("digits-c").mkdir()
    np.save("digits-c/fog.npy", generator.integers(0, 256, (50, 8, 8, 1), dtype=np.uint8))
    np.save("digits-c/labels.npy", np.arange(10))
    told = ("--shift-root", "digits-c", "--severity", "2", "--batch", "1", "--sparse", "-o", "n.json")
    text = done("evaluate", "--file", "m.safetensors", "--data", "digits", *told)
    found = read_json("n.json")
    assert "compiled for its zeros" in text and "times as fast as dense" in text
    assert [row["name"] for row in found["latency"]] == ["model", "sparse"]
    assert [(row["corruption"], row["severity"], row["samples"]) for row in found["shift"]["rows"]] == [("fog", 2, 10)]


def test_a_report_can_be_made_again() -> None:
    rows = {"dense": Row(macs=100, params=10), "pruned": Row(macs=50, params=5)}
    Path("run").mkdir()
    Report("title", "method", {}, Plan(), rows).save("run/report.json")
    assert "50 % of the multiply-accumulates removed" in done("report", "run")
    assert Path("run/report.html").exists()
    done("report", "run/report.json", "--folder", "elsewhere")
    assert Path("elsewhere/report.md").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trace"], "no network"),
        (["trace", "--model", "resnte8", *INPUT], "Did you mean 'resnet8'"),
        (["trace", *MODEL], "no example"),
        (["trace", *MODEL, *INPUT, "--plan", "none.json"], "say with --html"),
        (["trace", *MODEL, "--input", "3xx"], "not a shape"),
        (["trace", "--model", "resnet8", "--option", "width", *INPUT], "not written key=value"),
        (["trace", "--model", "resnet8", "--option", "wdith=1", *INPUT], "wdith"),
        (["trace", "--model", "no_such:f", *INPUT], "cannot be imported"),
        (["trace", *MODEL, "--input", "1x7x16x16"], "expected input"),
        (["trace", *MODEL, *INPUT, "-o", "no/such/graph.json"], "choose another folder"),
        (["measure", *MODEL, *INPUT], "no data"),
        (["measure", *MODEL, "--data", "digist"], "Did you mean 'digits'"),
        (["plan", *MODEL, *INPUT, "--method", "Magnitud"], "Magnitude"),
        (["plan", *MODEL, *INPUT, "--keep", "2"], "(0, 1]"),
        (["plan", *MODEL, *INPUT, "--budget", "flops"], "flops"),
        (["plan", "SNIP", "--method", "ERK", *MODEL, *INPUT], "Name one"),
        (["plan", "Random", "--density", "0.1", *MODEL, *INPUT], "takes no density"),
        (["plan", "ERK", "--density", "0.001", *MODEL, *INPUT], "Give density="),
        (["plan", "SNIP", "--density", "0.1", *MODEL, *INPUT], "give data="),
        (["plan", *MODEL, *INPUT, "--graph", "none.json"], "nothing is there"),
        (["apply", *MODEL, *INPUT, "--plan", "none.json"], "nothing is there"),
        (["evaluate", "--file", "none.safetensors", "--data", "digits"], "nothing is there"),
        (["evaluate", *DIGITS, "--sparse"], "--sparse without --batch"),
        (["evaluate", *DIGITS, "--engine", "openvino"], "--engine without --batch"),
        (["evaluate", *DIGITS, "--batch", "1", "--engine", "tvm"], "'tvm' is not one of 'eager'"),
        (["export", *MODEL, *INPUT, "-o", "m.tflite"], "does not say its format"),
        (["export", *MODEL, *INPUT, "--precision", "int8"], "give --data NAME"),
        (["evaluate", *DIGITS, "--shift-root", "."], "holds no corruption"),
        (["report", "none"], "nothing is there"),
        (["run", "none.toml"], "there is no recipe"),
    ],
)
def test_what_goes_wrong_is_one_line(words: list[str], message: str) -> None:
    text = refused(*words)
    assert message in text
    assert len([line for line in text.splitlines() if line.startswith("Error")]) == 1
    assert not list(Path().iterdir())


def test_a_plan_for_another_network_is_refused() -> None:
    done("plan", *MODEL, *INPUT)
    other = ("--model", "resnet8", "--option", "width=0.5")
    assert "plan" in refused("apply", *other, *INPUT, "--plan", "plan.json")


def test_with_debug_the_traceback_comes_through() -> None:
    assert isinstance(call("--debug", "run", "none.toml").exception, nervure.errors.RecipeError)


def test_python_m_nervure_is_the_command_line() -> None:
    words = [sys.executable, "-m", "nervure", "--version"]
    result = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.startswith("nervure")


def test_a_whole_recipe_from_the_command_line() -> None:
    Path("recipe.toml").write_text(
        '[model]\nname = "resnet8"\noptions = { width = 0.25 }\n[data]\nname = "digits"\ntrain_samples = 128\n'
        "[train]\nepochs = 1\n[recover]\nepochs = 0\n[evaluate]\nlatency = []\nshift = []\n[run]\ntwins = false\n"
    )
    text = done("run", "recipe.toml", "--folder", "out")
    # The plan is shown before anything is cut.
    assert text.index("->") < text.index("cut ...")
    assert text.rstrip().endswith("report.html")
    assert done("run", "recipe.toml", "--folder", "out", "--quiet").strip().endswith("report.html")


STUDY = """
[study]
seeds = [0]
keeps = [0.5]
[data]
name = "digits"
train_samples = 64
test_samples = 40
[train]
epochs = 0
[recover]
epochs = 0
[[network]]
name = "resnet8"
options = { width = 0.25 }
[[method]]
name = "Random"
[[method]]
name = "FPGM"
"""


def test_compare_shows_the_tables_and_goes_on_where_it_was() -> None:
    Path("study.toml").write_text(STUDY)
    text = done("compare", "study.toml", "--folder", "out", "--limit", "2")
    assert "0 of 3 trials are done" in text
    assert "| Random at 0.5 |" in text
    assert "FPGM" not in Path("out/comparison.md").read_text()
    assert "| FPGM at 0.5 |" in done("compare", "study.toml", "--folder", "out")
    assert "no key 'sedes'" in refused("compare", str(_written("bad.toml", STUDY.replace("seeds", "sedes"))))


def _written(name: str, text: str) -> Path:
    Path(name).write_text(text)
    return Path(name)


def test_connectivity_tells_and_writes_what_is_joined() -> None:
    files = ("--json", "c.json", "--html", "c.html", "--picture", "c.svg")
    text = done("connectivity", *MODEL, *INPUT, "--reference", "dense", *files)
    assert "effective density 100.00%" in text
    assert read_json(Path("c.json"), "numbers")["relative_distances"] == pytest.approx([0] * 5, abs=1e-9)
    assert Path("c.svg").read_text().startswith("<svg")
    assert Path("c.html").read_text().startswith("<!doctype html>")


def test_connectivity_of_a_masked_network_that_was_saved() -> None:
    net, image = nervure.zoo.build("resnet8", width=0.25), torch.zeros(1, 3, 16, 16)
    nervure.save("m.safetensors", nervure.prune(net, image, nervure.ERK(density=0.05, guard="none"), verify=False))
    text = done("connectivity", *MODEL, "--file", "m.safetensors", *INPUT)
    assert "density 5.0" in text


def test_connectivity_refuses_an_unknown_laplacian() -> None:
    assert "normalize='no'" in refused("connectivity", *MODEL, *INPUT, "--normalize", "no")
