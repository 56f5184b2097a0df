"""A decoder of transformers in the words of GGUF: its sizes layer by layer, its settings, its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from nervure.core.check import show_value
from nervure.core.inputs import Inputs
from nervure.errors import ArgumentError
from nervure.export.gguf.families import Family
from nervure.export.gguf.layer_sizes import LayerSizes, find_shape
from nervure.export.gguf.settings_of import Setting, settings_of
from nervure.export.gguf.tensors_of import MakeTensor, require_complete, tensors_of
from nervure.graph.models import unwrap

LONGEST = 32
"""Tokens in the windows on which a file is compared."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Decoder:
    """A decoder that GGUF has a place for.

    Attributes:
        module: of transformers.
        family: what kind it is, in the architecture that is written.
        layers: number in the module -> sizes, of the layers that compute something.
        settings: what the file says of the architecture, key without its prefix -> value.
        tensors: name in the file -> what makes the tensor: float32, on the CPU.
        tokenizer: where the file's vocabulary comes from.
        length: tokens in the windows on which the file is compared.
    """

    module: nn.Module
    family: Family
    layers: Mapping[int, LayerSizes]
    settings: Mapping[str, Setting]
    tensors: Mapping[str, MakeTensor]
    tokenizer: Any
    length: int

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        found = self.settings["vocab_size"]
        assert isinstance(found, int)
        return found

    def inputs(self) -> list[dict[str, Any]]:
        """What the card says of inputs."""
        return [{"name": "input_ids", "dtype": "int64", "shape": [None, None]}]

    def outputs(self) -> list[dict[str, Any]]:
        """What the card says of outputs."""
        return [{"name": "logits", "dtype": "float32", "shape": [None, None, self.vocabulary]}]


def read_decoder(module: nn.Module, example: Inputs, tokenizer: Any) -> Decoder:
    """Say a decoder in the words of GGUF.

    Args:
        module: ``LlamaForCausalLM`` of transformers and its kin, cut or not.
        example: token numbers [samples, length], alone or as ``input_ids``.
        tokenizer: where the vocabulary comes from, see :func:`nervure.export.gguf.vocabulary.write_vocabulary`.

    Raises:
        ArgumentError: the example holds no token numbers.
        EngineError: it is no such decoder, or GGUF has no words for what was cut; the message says what to do.
    """
    shape = find_shape(unwrap(module))
    tensors = dict(tensors_of(shape))
    require_complete(shape)
    length = min(int(token_numbers(example).shape[1]), LONGEST)
    return Decoder(shape.module, shape.family, shape.layers, settings_of(shape), tensors, tokenizer, length)


def token_numbers(inputs: Inputs) -> Tensor:
    """The token numbers [samples, length] among inputs.

    Raises:
        ArgumentError: there are none, or some of the tokens are padding.
    """
    found = inputs.kwargs.get("input_ids", inputs.args[0] if inputs.args else None)
    if not isinstance(found, Tensor) or found.dim() != 2 or found.is_floating_point() or not found.numel():
        raise ArgumentError(
            f"a decoder takes token numbers [samples, length], not {show_value(found)}: give an example like "
            "torch.randint(0, 1000, (1, 32)), or {'input_ids': ...}."
        )
    mask = inputs.kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask.all()):
        raise ArgumentError("attention_mask leaves out tokens; a GGUF file is compared on windows without padding.")
    return found
