"""Shifts of data that are no pictures: rows of features, sequences, and tokens.

Real-valued inputs meet measurement noise, missing values and covariate shift, each in units of a feature's own spread
over the batch at hand; tokens are lost or mistaken. As with pictures, chance belongs to the sample, not to its place.
"""

import zlib
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from nervure.core.check import checked, require_choice
from nervure.core.schema import Count, Seed, Size
from nervure.errors import DataError
from nervure.evaluation.corruptions.chance import mix_bits, normal, uniform

FEATURE_STRENGTHS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "feature_noise": (0.1, 0.2, 0.4, 0.7, 1.0),  # standard deviations
        "missing_values": (0.05, 0.1, 0.2, 0.35, 0.5),  # share of the values
        "covariate_shift": (0.25, 0.5, 0.75, 1.0, 1.5),  # standard deviations
    }
)
TOKEN_STRENGTHS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "missing_tokens": (0.05, 0.1, 0.2, 0.35, 0.5),  # share of the tokens
        "replaced_tokens": (0.02, 0.05, 0.1, 0.2, 0.3),
    }
)
FEATURE_SHIFTS: tuple[str, ...] = tuple(FEATURE_STRENGTHS)
TOKEN_SHIFTS: tuple[str, ...] = tuple(TOKEN_STRENGTHS)
SEVERITIES = (1, 2, 3, 4, 5)
LEAST_SPREAD = 1e-6


@checked
def corrupt_features(
    inputs: Tensor,
    name: str,
    severity: int,
    *,
    seed: Seed = 0,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Shifted copy of real-valued features.

    * ``"feature_noise"``: normal noise on every value;
    * ``"missing_values"``: values replaced by the mean of their feature, as a common repair does;
    * ``"covariate_shift"``: every feature moved by a random offset, the same for all samples (the sensor drifted).

    Args:
        inputs: float, [samples, features] or [samples, ..., features].
        name: one of ``FEATURE_SHIFTS``.
        severity: 1 to 5.
        seed: another seed draws other chance.
        statistics: mean and standard deviation of every feature, [features] each; None takes those of ``inputs``, and
            then a sample comes out alike only beside the same others.

    Raises:
        ArgumentError: for an unknown name or severity.
        DataError: if inputs are not floats of two or more axes, or not finite.
    """
    require_choice(name, FEATURE_SHIFTS, "name")
    level = FEATURE_STRENGTHS[name][require_choice(severity, SEVERITIES, "severity") - 1]
    if inputs.ndim < 2 or not inputs.is_floating_point() or inputs.numel() == 0:
        raise DataError(
            f"inputs are {inputs.dtype} of shape {tuple(inputs.shape)}; give floats [samples, ..., features]."
        )
    if not bool(torch.isfinite(inputs).all()):
        raise DataError("inputs hold NaN or infinite values; fill or drop them first.")
    rows = inputs.flatten(0, -2)
    mean, std = statistics or (rows.mean(0), rows.std(0, correction=0))
    spread = std.to(inputs).clamp(min=LEAST_SPREAD)
    if name == "covariate_shift":
        direction = normal(fix_seed(seed, inputs.device), inputs.shape[-1])[0]
        return inputs + (level * spread * direction).to(inputs.dtype)
    keys = content_keys(inputs, name, seed)
    if name == "feature_noise":
        return inputs + (level * spread * normal(keys, *inputs.shape[1:])).to(inputs.dtype)
    return torch.where(uniform(keys, *inputs.shape[1:]) < level, mean.to(inputs), inputs)


@checked
def corrupt_tokens(
    tokens: Tensor, name: str, severity: int, *, seed: Seed = 0, vocabulary: Size | None = None, mask: Count = 0
) -> Tensor:
    """Shifted copy of token numbers.

    * ``"missing_tokens"``: tokens replaced by the number ``mask``;
    * ``"replaced_tokens"``: tokens replaced by others of the vocabulary, by lot.

    Args:
        tokens: integers, [samples, length].
        name: one of ``TOKEN_SHIFTS``.
        severity: 1 to 5.
        seed: another seed draws other chance.
        vocabulary: number of tokens there are; None takes the largest at hand plus one.
        mask: what stands for a missing token.

    Raises:
        ArgumentError: for an unknown name or severity.
        DataError: if tokens are not integers of two axes.
    """
    require_choice(name, TOKEN_SHIFTS, "name")
    level = TOKEN_STRENGTHS[name][require_choice(severity, SEVERITIES, "severity") - 1]
    if tokens.ndim != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool or tokens.numel() == 0:
        raise DataError(f"tokens are {tokens.dtype} of shape {tuple(tokens.shape)}; give integers [samples, length].")
    keys = content_keys(tokens, name, seed)
    hit = uniform(keys, *tokens.shape[1:]) < level
    if name == "missing_tokens":
        return torch.where(hit, torch.full_like(tokens, mask), tokens)
    size = int(tokens.max()) + 1 if vocabulary is None else vocabulary
    others = (uniform(keys, *tokens.shape[1:], stream=1) * size).floor().to(tokens.dtype)
    return torch.where(hit, others, tokens)


def content_keys(inputs: Tensor, name: str, seed: int) -> Tensor:
    """One 64-bit number for each sample, from its content, a shift and a seed: int64 [samples]."""
    bits = inputs.float().contiguous().view(torch.int32) if inputs.is_floating_point() else inputs
    flat = bits.long().flatten(1)
    places = mix_bits(torch.arange(1, flat.shape[1] + 1, device=flat.device)) | 1
    known = FEATURE_SHIFTS + TOKEN_SHIFTS
    # Shifts that came later are known by their letters: the numbers of the first stay as they are.
    number = known.index(name) if name in known else zlib.crc32(name.encode())
    return mix_bits((mix_bits(flat) * places).sum(1) ^ fix_seed(seed, flat.device) ^ number)


def fix_seed(seed: int, device: torch.device) -> Tensor:
    """A 64-bit number for a seed, int64 [1]."""
    return mix_bits(torch.tensor([seed + 1], dtype=torch.int64, device=device))
