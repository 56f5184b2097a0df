"""What a GGUF file computes, by its own words alone: the check that the words are right."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nervure.core.annotations import Batches
from nervure.core.inputs import Inputs
from nervure.engines.engine import FLOAT32
from nervure.errors import VerificationError
from nervure.evaluation.labelled import pairs
from nervure.export.checking import FileDifference, difference, on_data, on_random
from nervure.export.gguf.decoder import Decoder, token_numbers
from nervure.export.gguf.families import BY_ARCHITECTURE
from nervure.export.gguf.gguf_file import GgufReader, compare_tensors
from nervure.graph.models import device_of, evaluating

TOLERANCE, COARSE = 1e-4, 5e-2
"""Largest difference, relative to the largest logit: of a model in float32, of one in half precision."""
ROUNDINGS = 10
"""How many times what one rounding at the beginning does to the logits two orders of the same sums may be apart."""
BATCHES = (1, 2)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class LogitsOnly(nn.Module):
    """A decoder of transformers that takes token numbers and returns logits [samples, length, vocabulary]."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        """Logits in float32."""
        logits: Tensor = self.decoder(input_ids=input_ids, use_cache=False).logits
        return logits.float()


@final
class FileDecoder:
    """A decoder as a GGUF file says it, in float32; slow and plain, one tensor of a file in memory at a time.

    Args:
        settings: what the file says.
        tensor: gives a tensor by its name, KeyError where there is none.
    """

    def __init__(self, settings: dict[str, Any], tensor: Callable[[str], Tensor]) -> None:
        self._said, self._tensor = settings, tensor
        self._prefix = settings["general.architecture"]
        self._family = BY_ARCHITECTURE[self._prefix]

    @torch.no_grad()
    def __call__(self, inputs: Any) -> Tensor:
        """Logits [samples, length, vocabulary] of token numbers."""
        x = list(self.states(token_numbers(Inputs.of_batch(inputs))))[-1]
        return self._linear(self._norm(x, "output_norm"), "output", "token_embd")

    def states(self, tokens: Tensor) -> Iterator[Tensor]:
        """The stream [samples, length, width] after the embedding, and after each layer."""
        x = self._tensor("token_embd.weight")[tokens.cpu()]
        if self._family.scales_embeddings:
            x = x * x.shape[-1] ** 0.5
        yield x
        for number in range(self._get("block_count")):
            if self._get("attention.head_count", number):
                x = x + self._attention(x, number)
            x = x + self._ffn(x, number)
            yield x

    def _get(self, key: str, number: int | None = None) -> Any:
        found = self._said[f"{self._prefix}.{key}"]
        return found if number is None or not isinstance(found, list) else found[number]

    def _attention(self, x: Tensor, number: int) -> Tensor:
        name, width = f"blk.{number}", self._get("attention.key_length")
        normed = self._norm(x, f"{name}.attn_norm")
        q, k, v = (
            self._linear(normed, f"{name}.attn_{part}").unflatten(-1, (-1, width)).transpose(1, 2) for part in "qkv"
        )
        assert q.shape[1] == self._get("attention.head_count", number)
        assert k.shape[1] == self._get("attention.head_count_kv", number)
        if "attn_q_norm" in self._family.attention:
            q, k = self._norm(q, f"{name}.attn_q_norm"), self._norm(k, f"{name}.attn_k_norm")
        near = bool(self._family.period) and (number + 1) % self._family.period != 0
        q, k = self._turn(q, near), self._turn(k, near)
        mixed = F.scaled_dot_product_attention(q, k, v, self._mask(x.shape[1], near), enable_gqa=True)
        return self._after(self._linear(mixed.transpose(1, 2).flatten(2), f"{name}.attn_output"), name, "attention")

    def _ffn(self, x: Tensor, number: int) -> Tensor:
        name = f"blk.{number}"
        normed = self._norm(x, f"{name}.ffn_norm")
        gate = ACTIVATIONS[self._family.activation](self._linear(normed, f"{name}.ffn_gate"))
        return self._after(self._linear(gate * self._linear(normed, f"{name}.ffn_up"), f"{name}.ffn_down"), name, "ffw")

    def _after(self, x: Tensor, name: str, part: str) -> Tensor:
        """The norm that some families have behind a branch."""
        norms = {*self._family.attention, *self._family.ffn}
        return self._norm(x, f"{name}.post_{part}_norm") if f"post_{part}_norm" in norms else x

    def _mask(self, length: int, near: bool) -> Tensor:
        """Which tokens each attends to [length, length]."""
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        return mask.triu(1 - self._get("attention.sliding_window")) if near else mask

    def _turn(self, x: Tensor, near: bool) -> Tensor:
        """Rotate the pairs of numbers of each head by its token's place."""
        width = x.shape[-1]
        base = self._get("rope.freq_base_swa" if near else "rope.freq_base")
        speeds = base ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
        speeds = speeds / (self._optional("rope_freqs.weight", torch.ones(1)))
        if not near:
            speeds = speeds / self._said.get(f"{self._prefix}.rope.scaling.factor", 1.0)
        angles = torch.arange(x.shape[-2], dtype=torch.float32)[:, None] * speeds
        pairs = x.unflatten(-1, (-1, 2) if self._family.interleaved else (2, -1))
        axis = -1 if self._family.interleaved else -2
        a, b = pairs.unbind(axis)
        turned = (a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos())
        return torch.stack(turned, axis).flatten(-2)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + self._get("attention.layer_norm_rms_epsilon")).rsqrt()
        normed: Tensor = x * scale * self._tensor(f"{name}.weight")
        return normed

    def _linear(self, x: Tensor, name: str, otherwise: str = "") -> Tensor:
        weight = self._optional(f"{name}.weight", None) if otherwise else self._tensor(f"{name}.weight")
        if weight is None:
            weight = self._tensor(f"{otherwise}.weight")
        return F.linear(x, weight, self._optional(f"{name}.bias", None))

    def _optional(self, name: str, otherwise: Any) -> Any:
        try:
            return self._tensor(name)
        except KeyError:
            return otherwise


def check_decoder(
    decoder: Decoder, file: GgufReader, precision: str, tolerance: float | None, data: Batches | None
) -> dict[str, FileDifference]:
    """Compare a file with its module: tensor by tensor; its words, with the tensors as the module has them; the whole.

    Args:
        decoder: what was written.
        file: as it was read back.
        precision: of the file.
        tolerance: of the whole; None: 1e-4 for float32, while what rounding does is told only.
        data: batches of real (inputs, labels) to compare on as well.

    Raises:
        VerificationError: the file computes something else; the first layer that differs is named.
    """
    compare_tensors(decoder, file)
    tokens = _draw_tokens(decoder)
    module, shown = LogitsOnly(decoder.module), Inputs((), {"input_ids": tokens})
    own = COARSE if _is_coarse(decoder.module) else TOLERANCE
    exact = FileDecoder(file.settings, lambda name: decoder.tensors[name]())
    words = on_random(module, exact, shown, BATCHES, own)
    if not words.ok:
        # A network that makes much of little is told from a wrong file by what it makes of a rounding.
        own = min(max(own, ROUNDINGS * _shaken(module, tokens)), COARSE)
        words = replace(words, tolerance=own)
    if not words.ok:
        raise VerificationError(
            f"the largest relative difference is {words.largest:.1e}, allowed {own:.0e}. "
            f"{_first_layer(decoder, exact, tokens, own)}"
        )
    allowed = own if tolerance is None and precision == FLOAT32 else tolerance
    rounded = FileDecoder(file.settings, file.tensor)
    # In float32 the tensors of the file are the module's, as was just seen.
    found = replace(words, tolerance=allowed) if precision == FLOAT32 else None
    checks = {"random": found or on_random(module, rounded, shown, BATCHES, allowed)}
    if data is not None:
        checks["data"] = on_data(module, rounded, pairs(data, "check"), allowed, None)
    return checks


def _draw_tokens(decoder: Decoder) -> Tensor:
    tokens = torch.randint(decoder.vocabulary, (1, decoder.length), generator=torch.Generator().manual_seed(0))
    # What is drawn like these is drawn between the smallest and the largest.
    tokens[0, 0], tokens[0, -1] = 0, decoder.vocabulary - 1
    return tokens


@torch.no_grad()
def _shaken(module: LogitsOnly, tokens: Tensor) -> float:
    """How far the logits move where what the embedding gives moves in its last digit."""
    given, generator = tokens.to(device_of(module)), torch.Generator().manual_seed(0)

    def shake(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        lot = torch.randn(out.shape, generator=generator).to(out)
        return out * (1 + torch.finfo(out.dtype).eps * lot)

    embedding = next((m for m in module.modules() if isinstance(m, nn.Embedding)), None)
    if embedding is None:
        return 0.0
    with evaluating(module):
        still = module(given)
        hook = embedding.register_forward_hook(shake)
        try:
            return max(difference(still, module(given)) for _ in range(2))
        finally:
            hook.remove()


def _is_coarse(module: nn.Module) -> bool:
    return any(p.dtype in (torch.float16, torch.bfloat16) for p in module.parameters())


@torch.no_grad()
def _first_layer(decoder: Decoder, file: FileDecoder, tokens: Tensor, allowed: float) -> str:
    said = decoder.module(input_ids=tokens.to(device_of(decoder.module)), use_cache=False, output_hidden_states=True)
    # The last one has gone through the norm, and the file has no place for layers that compute nothing.
    streams = [said.hidden_states[0], *(said.hidden_states[number + 1] for number in decoder.layers)][:-1]
    for place, (expected, found) in enumerate(zip(streams, file.states(tokens), strict=False)):
        if difference(expected.float(), found) > allowed:
            return (
                f"The first layer that differs is number {[*decoder.layers][place - 1]}."
                if place
                else ("The embedding differs.")
            )
    return "The last layer is the first that differs."
