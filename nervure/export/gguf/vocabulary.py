"""The vocabulary of a GGUF file: copied from another one, or made of a tokenizer of transformers."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nervure.core.check import show_value
from nervure.core.extras import require_extra
from nervure.errors import ArgumentError

NORMAL, UNKNOWN, CONTROL, OWN, UNUSED, BYTE = range(1, 7)
"""Kinds of tokens, as GGUF numbers them."""
_CASES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PIECES: Mapping[tuple[str, ...], str] = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (rf"{_CASES}{_WORDS}\p{{N}}{{1,3}}{_REST}",): "llama-bpe",
    (rf"{_CASES}{_WORDS}\p{{N}}{_REST}",): "qwen2",
}
"""How text falls into pieces before it becomes tokens -> what llama.cpp calls that."""
WHAT = (
    "a folder with tokenizer.json, a tokenizer of transformers, or the GGUF file of the model before pruning, whose "
    "vocabulary is copied"
)


def write_vocabulary(writer: Any, tokenizer: Any, size: int) -> None:
    """Give a file that is being written its vocabulary.

    Args:
        writer: ``gguf.GGUFWriter``.
        tokenizer: a folder with ``tokenizer.json``, a tokenizer (whatever has ``save_pretrained``), or a GGUF file.
        size: tokens that the model knows.

    Raises:
        ArgumentError: there is none, it knows more tokens than the model, or it is of a kind that has no name in GGUF.
    """
    if hasattr(tokenizer, "save_pretrained"):
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            _write_folder(writer, Path(folder), size)
        return
    path = Path(tokenizer)
    if path.is_file():
        _copy(writer, path, size)
    else:
        _write_folder(writer, path, size)


def require_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer, if it can be one; raises ArgumentError where it is missing or is not there."""
    if tokenizer is None:
        raise ArgumentError(f"a GGUF file holds the vocabulary of its model: give tokenizer= (--tokenizer), {WHAT}.")
    if hasattr(tokenizer, "save_pretrained"):
        return tokenizer
    if not isinstance(tokenizer, str | Path):
        raise ArgumentError(f"tokenizer={show_value(tokenizer)} is no tokenizer: give {WHAT}.")
    path = Path(tokenizer)
    if not (path / "tokenizer.json").is_file() and not (path.is_file() and path.suffix == ".gguf"):
        raise ArgumentError(f"tokenizer={str(path)!r}: there is no tokenizer. Give {WHAT}.")
    return path


def put(writer: Any, key: str, value: Any) -> None:
    """Write a value under a key, by its type."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))


def _copy(writer: Any, path: Path, size: int) -> None:
    """Take the vocabulary of another file as it is."""
    fields = require_extra("gguf", "GGUF", "gguf").GGUFReader(path).fields
    found = {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer.")}
    if "tokenizer.ggml.tokens" not in found:
        raise ArgumentError(f"tokenizer={str(path)!r} holds no vocabulary. Give {WHAT}.")
    _require_size(len(found["tokenizer.ggml.tokens"]), size, path)
    for key, value in found.items():
        put(writer, key, value)


def _write_folder(writer: Any, folder: Path, size: int) -> None:
    gguf = require_extra("gguf", "GGUF", "gguf")
    try:
        said = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        model, added = said["model"], said.get("added_tokens") or []
        tokens = _tokens(model["vocab"], added)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArgumentError(
            f"the tokenizer of {str(folder)!r} cannot be read ({type(error).__name__}: {error}). Give {WHAT}."
        ) from error
    if model.get("type", "BPE") != "BPE":
        raise ArgumentError(f"a tokenizer of type {model['type']!r} has no name in GGUF here, only BPE. Give {WHAT}.")
    _require_size(len(tokens), size, folder)
    pieces = bool(model.get("byte_fallback"))
    names = [*tokens, *(f"[PAD{number}]" for number in range(len(tokens), size))]
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    writer.add_tokenizer_pre("default" if pieces else _name_pieces(said.get("pre_tokenizer")))
    writer.add_token_list(names)
    writer.add_token_types(_kinds(names, added, model, len(tokens)))
    if pieces:
        writer.add_token_scores(_scores(names, model))
        writer.add_add_space_prefix(_begins_with_space(said))
    gguf.SpecialVocab(folder, load_merges=not pieces, n_vocab=size).add_to_gguf(writer, quiet=True)


def _tokens(vocabulary: Mapping[str, int], added: list[Any]) -> list[str]:
    """Tokens by their number; a number that has none gets a name."""
    names = {number: token for token, number in vocabulary.items()} | {t["id"]: t["content"] for t in added}
    return [names.get(number, f"[PAD{number}]") for number in range(max(names) + 1)]


def _require_size(tokens: int, size: int, place: Path) -> None:
    if tokens > size:
        raise ArgumentError(
            f"the tokenizer of {str(place)!r} knows {tokens} tokens, the model {size}: it is another model's. Give the "
            "one that the model was trained with."
        )


def _name_pieces(said: Any) -> str:
    """What llama.cpp calls the way in which text falls into pieces."""
    steps = said.get("pretokenizers", [said]) if isinstance(said, Mapping) else []
    if (name := PIECES.get(tuple(filter(None, map(_piece, steps))))) is None:
        raise ArgumentError(
            f"the tokenizer splits text in a way that has no name here ({show_value(said)}). Give the GGUF file of the "
            "model before pruning as tokenizer=: its vocabulary is copied."
        )
    return name


def _piece(step: Mapping[str, Any]) -> str:
    """One step of splitting, in short; empty where it splits nothing."""
    match step.get("type"):
        case "ByteLevel":
            return "ByteLevel" if step.get("use_regex", True) else ""
        case "Digits":
            return "Digits" if step.get("individual_digits") else "Digits together"
        case "Split":
            pattern = step.get("pattern", {})
            return str(pattern.get("Regex", pattern))
        case kind:
            return str(kind)


def _kinds(names: list[str], added: list[Any], model: Mapping[str, Any], known: int) -> list[int]:
    kinds = [NORMAL] * known + [UNUSED] * (len(names) - known)
    for number, name in enumerate(names[:known]):
        if model.get("byte_fallback") and len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            kinds[number] = BYTE
        elif name == f"[PAD{number}]":
            kinds[number] = UNUSED
    for token in added:
        kinds[token["id"]] = CONTROL if token.get("special") else OWN
    unknown = model["vocab"].get(model.get("unk_token"))
    if unknown is not None and model.get("byte_fallback"):
        kinds[unknown] = UNKNOWN
    return kinds


def _scores(names: list[str], model: Mapping[str, Any]) -> list[float]:
    """The earlier two pieces are merged, the higher scores what they become."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model.get("merges") or ()):
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    return [-float(ranks.get(name, len(ranks))) for name in names]


def _begins_with_space(said: Mapping[str, Any]) -> bool:
    """Whether a space is put before the first word."""
    normalizer, splitter = said.get("normalizer") or {}, said.get("pre_tokenizer") or {}
    steps = [*normalizer.get("normalizers", [normalizer]), *splitter.get("pretokenizers", [splitter])]
    return any(step.get("type") == "Prepend" or step.get("prepend_scheme") in ("first", "always") for step in steps)
