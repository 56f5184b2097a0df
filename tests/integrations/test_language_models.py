"""A language model on texts, by one command: windows, uniform cut, refit, figures, and a folder that loads."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from nervure.cli.commands import main
from nervure.errors import DataError, RecipeError
from nervure.recipe import Recipe
from nervure.recipe.making import data_of
from nervure.recipe.text_windows import TextWindows

pytestmark = pytest.mark.filterwarnings("ignore")
transformers: Any = pytest.importorskip("transformers")
WORDS = [f"w{n}" for n in range(12)]
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model with its tokenizer, one token a word, and texts beside it."""
    tokenizers: Any = pytest.importorskip("tokenizers")
    monkeypatch.chdir(tmp_path)
    vocabulary = {word: n for n, word in enumerate(("<unk>", "<bos>", "user", *WORDS))}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<bos>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained("dense")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=len(vocabulary), intermediate_size=24, **SIZES)
    transformers.LlamaForCausalLM(config).save_pretrained("dense")
    Path("texts").mkdir()
    order = torch.randint(len(WORDS), (2, 900), generator=torch.Generator().manual_seed(2)).tolist()
    for name, numbers in zip("ab", order, strict=True):
        Path("texts", f"{name}.txt").write_text(" ".join(WORDS[n] for n in numbers))
    return tmp_path


def prune_command(*words: Any) -> Result:
    options = ["--data-option", "window=16", "--data-option", "train=12", "--quiet"]
    return CliRunner().invoke(main, ["prune", *map(str, words), *options])


def test_one_command_goes_from_folder_to_folder(folder: Path) -> None:
    pytest.importorskip("torchmetrics")
    done = prune_command("hf:dense", "--keep", 0.75, "--data", "text:texts", "--out", "small")
    assert done.exit_code == 0, done.output
    assert "model: small, which from_pretrained loads" in done.output
    again, told = transformers.AutoModelForCausalLM.from_pretrained("small", output_loading_info=True)
    assert not any(told.values())
    assert again.config.intermediate_size < 24 and again.config.use_cache and again.config.hidden_size == 16
    assert transformers.AutoTokenizer.from_pretrained("small").chat_template == TEMPLATE
    dense, pruned = (json.loads((folder / "small-run" / "metrics.json").read_text())[n] for n in ("dense", "pruned"))
    assert pruned["params"] <= 0.75 * dense["params"] and pruned["metrics"]["perplexity"] > 1
    assert json.loads((folder / "small-run" / "plan.json").read_text())["asked"]["scope"] == "uniform"
    recipe = Recipe.from_toml(folder / "small-run" / "recipe.toml")
    assert (recipe.folder.path, recipe.refit.samples, recipe.recover.epochs) == ("small", 16, 0)
    assert prune_command("hf:dense", "--keep", 0.75, "--data", "text:texts", "--out", "small").exit_code == 0


@pytest.mark.parametrize(("words", "rate"), [((), 3e-4), (("--lr", 1e-3), 1e-3)])
def test_it_recovers_by_what_the_dense_model_thinks_of_all_tokens(
    folder: Path, words: tuple[Any, ...], rate: float
) -> None:
    pytest.importorskip("torchmetrics")
    done = prune_command("hf:dense", "--data", "text:texts", "--epochs", 1, *words, "--out", "small")
    assert done.exit_code == 0, done.output
    recipe = Recipe.from_toml(folder / "small-run" / "recipe.toml")
    recover = recipe.recover
    assert (recipe.data.options["batch"], recipe.data.options["train"], recipe.prune.samples) == (2, 12, 64)
    assert (recover.distill, recover.temperature, recover.lr, recover.schedule) == (0.5, 1.0, rate, "onecycle")
    assert recover.optimizer == "adamw" and recover.epochs == 1


def test_layer_by_layer_the_same_command_makes_the_same_layers(folder: Path) -> None:
    pytest.importorskip("torchmetrics")
    words = ("hf:dense", "--keep", 0.75, "--data", "text:texts", "--out")
    streamed, whole = prune_command("--stream", *words, "streamed"), prune_command(*words, "small")
    assert streamed.exit_code == 0 == whole.exit_code, streamed.output + whole.output
    assert "streamed: 3 layers of " in streamed.output and "intermediate_size 24 -> " in streamed.output
    one, other = (
        transformers.AutoModelForCausalLM.from_pretrained(name).state_dict() for name in ("streamed", "small")
    )
    assert one.keys() == other.keys()
    # In memory the head is fitted as well, once the layers are.
    assert [name for name in one if not torch.equal(one[name], other[name])] == ["lm_head.weight"]
    assert transformers.AutoTokenizer.from_pretrained("streamed").chat_template == TEMPLATE


def test_layer_by_layer_masks_and_what_is_told_otherwise(folder: Path) -> None:
    words = ("--stream", "hf:dense", "--data", "text:texts", "--out", "masked")
    done = prune_command(*words, "--method", "Wanda", "--set", "granularity=2:4")
    assert done.exit_code == 0, done.output
    weight = transformers.AutoModelForCausalLM.from_pretrained("masked").model.layers[1].mlp.up_proj.weight
    assert bool(((weight.view(24, 4, 4) != 0).sum(2) == 2).all())
    for more, told in ((("--epochs", 1), "nothing is trained"), (("--part", "width"), "it spans layers")):
        done = prune_command(*words, *more)
        assert done.exit_code == 2 and told in done.output, done.output
    done = CliRunner().invoke(main, ["prune", "--stream", "resnet8", "--data", "digits"])
    assert done.exit_code == 2 and "hf:FOLDER" in done.output


def test_two_models_answer_the_same_prompt(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = Path(__file__).parents[2] / "examples" / "side_by_side.py"
    monkeypatch.setattr(sys, "argv", [str(example), "dense", "dense", "w1", "w2"])
    runpy.run_path(str(example), run_name="__main__")
    one, other = capsys.readouterr().out.split("dense: ")[1:]
    assert "M parameters" in one and one.splitlines()[1].strip().startswith("w1 w2 ")
    assert one.splitlines()[1] == other.splitlines()[1]


def test_weights_are_masked(folder: Path) -> None:
    pytest.importorskip("torchmetrics")
    done = prune_command("hf:dense", "--method", "Wanda", "--density", "0.5", "--data", "text:texts", "--out", "masked")
    assert done.exit_code == 0, done.output
    weight = transformers.AutoModelForCausalLM.from_pretrained("masked").model.layers[1].mlp.up_proj.weight
    assert int((weight == 0).sum()) == weight.numel() // 2


def test_whole_layers_leave(folder: Path) -> None:
    pytest.importorskip("torchmetrics")
    told = ["--method", "Depth", "--set", "drop=1", "--no-refit"]
    done = prune_command("hf:dense", *told, "--data", "text:texts", "--out", "short")
    assert done.exit_code == 0, done.output
    again = transformers.AutoModelForCausalLM.from_pretrained("short")
    assert again.config.num_hidden_layers == 2 == len(again.model.layers)


def test_a_place_that_is_taken_is_told_before_anything_is_done(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "notes").write_text("")
    done = prune_command("hf:dense", "--data", "text:texts", "--out", "mine")
    assert done.exit_code == 2 and "no saved model" in done.output
    assert not (folder / "mine-run" / "plan.json").exists()
    done = prune_command("resnet8", "--data", "text:texts", "--out", "small")
    assert done.exit_code == 2 and "hf:FOLDER" in done.output
    done = CliRunner().invoke(main, ["prune", "resnet8", "--data", "digits", "--part", "ffn"])
    assert done.exit_code == 2 and "--part is for a language model" in done.output


def test_held_out_windows_are_in_no_other_split(folder: Path) -> None:
    data = TextWindows("dense", window=8, train=10_000, test=10_000, validation=10_000).load(folder / "texts")
    splits = [
        torch.cat([b["input_ids"] for b in split.batches()]) for split in (data.train, data.validation, data.test)
    ]
    assert [len(rows) for rows in splits] == [225 * 9 // 12 + 1, 19, 37] and sum(map(len, splits)) == 225
    few = TextWindows("dense", window=8, train=3).load(folder / "texts")
    assert torch.cat([b["input_ids"] for b in few.train.batches()]).shape == (3, 8)


def test_conversations_are_written_as_the_chat_template_says(folder: Path) -> None:
    entry = {"messages": [{"role": "user", "content": "w0 w3"}]}
    (folder / "chat.jsonl").write_text("\n".join([json.dumps(entry)] * 200))
    with_roles, without = (
        TextWindows("dense", window=8, chat=chat).load(folder / "chat.jsonl").first()["input_ids"][0]
        for chat in (True, False)
    )
    assert with_roles[:3].tolist() == [2, 3, 6] and without[:3].tolist() == [3, 6, 3]


def test_texts_of_several_kinds_are_taken_in_turn(folder: Path) -> None:
    how = TextWindows("dense", window=16, train=7, validation=2, test=4, batch=2)
    alone = [how.load(folder / "texts" / f"{name}.txt") for name in "ab"]
    both = how.load("texts/a.txt,texts/b.txt")
    for split, count in (("train", 7), ("validation", 2), ("test", 4)):
        rows = torch.cat([batch["input_ids"] for batch in getattr(both, split).batches()])
        assert len(rows) == count
        for place, kind in enumerate(alone):
            theirs = {tuple(row.tolist()) for batch in getattr(kind, split).batches() for row in batch["input_ids"]}
            firsts = rows[place::2][:1]
            assert tuple(firsts[0].tolist()) in theirs
    assert torch.cat([b["input_ids"] for b in how.load("texts").train.batches()]).shape == (7, 16)
    (folder / "a,b.txt").write_text((folder / "texts" / "a.txt").read_text())
    assert torch.equal(how.load("a,b.txt").shown["input_ids"], alone[0].shown["input_ids"])
    assert torch.equal(how.load("texts/a.txt, texts/b.txt").shown["input_ids"], alone[0].shown["input_ids"])
    with pytest.raises(DataError, match="nowhere.*nothing is there"):
        how.load("texts/a.txt,nowhere")
    with pytest.raises(DataError, match="text:texts/a.txt,: nothing stands before or behind a comma"):
        how.load("texts/a.txt,")


def test_texts_that_will_not_do_are_told(folder: Path) -> None:
    with pytest.raises(DataError, match="makes 18 windows of 100 tokens; 24 are needed"):
        TextWindows("dense", window=100).load(folder / "texts")
    with pytest.raises(DataError, match="nothing is there"):
        TextWindows("dense").load(folder / "nowhere")
    with pytest.raises(DataError, match="holds none"):
        TextWindows("texts").load(folder / "texts")
    (folder / "wrong.jsonl").write_text('{"words": 3}')
    with pytest.raises(DataError, match="entry 1: expected"):
        TextWindows("dense").load(folder / "wrong.jsonl")
    data = {"name": "text:texts"}
    with pytest.raises(RecipeError, match="needs a tokenizer"):
        data_of(Recipe.from_dict({"model": {"name": "hf:dense"}, "data": data}))
    with pytest.raises(RecipeError, match="no option 'windows'"):
        data_of(
            Recipe.from_dict({"model": {"name": "x"}, "data": {**data, "options": {"tokenizer": "", "windows": 1}}})
        )
