"""The pages on other people's loops: their code runs, prunes, trains, comes back, and is as short as they say."""

import importlib.util
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import nervure
from nervure import Pruned

# What other packages warn of while they train is theirs.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

FOLDER = Path(__file__).parents[2] / "docs" / "integrations"
FENCE = re.compile(r"^```python( alone)?\n(.*?)^```$|^##? ([^\n]*)$", re.MULTILINE | re.DOTALL)
MOST_LINES = 8
NEEDS = {
    "plain_loop.md": (),
    "timm.md": ("timm",),
    "transformers.md": ("transformers", "accelerate"),
    "lightning.md": ("lightning",),
    "accelerate.md": ("accelerate",),
    "ultralytics.md": ("ultralytics",),
    "segmentation_models_pytorch.md": ("segmentation_models_pytorch",),
    "diffusers.md": ("diffusers",),
    "speech.md": ("transformers", "accelerate"),
    "llama_cpp.md": ("transformers", "gguf"),
    "deploying.md": ("onnx", "onnxscript", "onnxruntime"),
}
CASES = {
    ("plain_loop.md", "Regression"),
    ("plain_loop.md", "Several outputs"),
    ("plain_loop.md", "Speech, with CTC"),
    ("timm.md", "timm and torchvision"),
    ("transformers.md", "A token classifier"),
    ("transformers.md", "A language model"),
    ("lightning.md", "Lightning"),
    ("accelerate.md", "Accelerate"),
    ("ultralytics.md", "ultralytics"),
    ("segmentation_models_pytorch.md", "segmentation_models_pytorch"),
    ("diffusers.md", "diffusers"),
    ("speech.md", "Speech"),
}
"""Where a user's lines are counted: page and heading."""


State = dict[str, Tensor]
PRUNE = nervure.prune


class Block(NamedTuple):
    """Code under a heading, from a line of a page."""

    heading: str
    line: int
    text: str
    alone: bool = False

    @property
    def lines(self) -> list[str]:
        """What somebody has to write."""
        return [line for line in self.text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def blocks(page: str) -> Iterator[Block]:
    text, heading = (FOLDER / page).read_text(encoding="utf-8"), ""
    for found in FENCE.finditer(text):
        heading = found.group(3) or heading
        if found.group(2):
            yield Block(heading, text.count("\n", 0, found.start(2)), found.group(2), bool(found.group(1)))


def users_lines(page: str, heading: str) -> Block:
    """The one block of a case that prunes."""
    (block,) = (block for block in blocks(page) if block.heading == heading and "nervure" in block.text)
    return block


class Spy:
    """Stands for ``prune``, and remembers what was so before the loop of a page went on."""

    def __init__(self) -> None:
        self.dense, self.before, self.fresh = nn.Module(), State(), State()

    def __call__(self, model: nn.Module, *args: Any, **options: Any) -> Pruned:
        self.dense, self.before = model, state_of(model)
        pruned = PRUNE(model, *args, **options)
        self.fresh = state_of(pruned.model)
        return pruned


def state_of(model: nn.Module) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def are_equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def assert_pruned_trained_and_back(names: dict[str, Any], spy: Spy) -> None:
    pruned = names["pruned"]
    assert pruned.verification is not None and pruned.verification < 1e-4
    assert pruned.cost_after.params < 0.8 * pruned.cost_before.params
    assert are_equal(state_of(spy.dense), spy.before), "pruning changed the dense model"
    assert not any(type(module).__module__.startswith("nervure") for module in pruned.model.modules())
    trained = names["yolo"].model if "yolo" in names else pruned.model
    after = state_of(trained)
    assert all(value.isfinite().all() for value in after.values())
    assert {n: v.shape for n, v in after.items()} == {n: v.shape for n, v in spy.fresh.items()}
    assert not are_equal(after, spy.fresh), "nothing was trained"
    again = names.pop("again", trained)
    assert are_equal(state_of(again.model if isinstance(again, Pruned) else again), after)


def run(page: str, block: Block, names: dict[str, Any]) -> None:
    exec(compile("\n" * block.line + block.text, str(FOLDER / page), "exec"), names)


def run_alone(codes: list[str]) -> None:
    """Run code, one piece after the other, in a process that cannot import nervure."""
    pieces = "".join(f"exec({code!r}, {{}})\n" for code in codes)
    code = f"import sys\nsys.modules['nervure'] = None\n{pieces}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


def require(packages: tuple[str, ...]) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def test_every_page_is_run_and_counted() -> None:
    assert {page.name for page in FOLDER.glob("*.md")} == {*NEEDS, "index.md"}
    assert {page for page, _ in CASES} == {*NEEDS} - {"deploying.md", "llama_cpp.md"}
    assert not list(blocks("index.md"))


@pytest.mark.parametrize(("page", "heading"), sorted(CASES))
def test_a_case_takes_few_lines(page: str, heading: str) -> None:
    assert len(users_lines(page, heading).lines) <= MOST_LINES


@pytest.mark.parametrize("page", NEEDS)
def test_the_code_of_a_page_prunes_trains_and_comes_back(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(NEEDS[page])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLO_OFFLINE", "1")
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "__page__"}
    for block in (block for block in blocks(page) if not block.alone):
        counted = (page, block.heading) in CASES and "nervure" in block.text
        spy = Spy()
        with monkeypatch.context() as patch:
            patch.setattr(nervure, "prune", spy) if counted else None
            run(page, block, names)
        if counted:
            assert_pruned_trained_and_back(names, spy)
    alone = [block.text for block in blocks(page) if block.alone]
    if alone:
        run_alone(alone)
    if "yolo" in names:
        with zipfile.ZipFile(names["yolo"].trainer.best) as file:
            (pickled,) = (name for name in file.namelist() if name.endswith("data.pkl"))
            assert b"nervure" not in file.read(pickled)


def test_what_stands_alone_cannot_import_nervure() -> None:
    with pytest.raises(AssertionError, match="ModuleNotFoundError: import of nervure halted"):
        run_alone(["import nervure"])
