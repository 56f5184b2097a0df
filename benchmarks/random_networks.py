# ruff: noqa: D101, D102
"""Thousands of small networks put together at random, each cut at random and compared with what it should compute.

Run ``python benchmarks/random_networks.py 5000``. The networks are drawn by seed from ``random_pieces.py``; what a cut
one must compute is worked out on the original by ``survivors.py``, not by nervure. Writes
``docs/results/random_networks.*``; ``--show SEED`` prints one network with what was found, made as small as the fault
allows.
"""

import copy
import json
import math
import signal
import sys
import time
import traceback
import warnings
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.random_pieces import PIECES, activation, divisor, norm_of_rows, width
from benchmarks.runner import Benchmark, Case, Row, fields, main
from benchmarks.survivors import (
    UnknownFateError,
    called,
    exact_outputs,
    expected_outputs,
    tensors,
    verdict,
)

WRONG = 1e-6
"""Relative difference, in double precision, from which a cut is called wrong."""
ROUNDING, REWRITTEN, NUDGES = 1e-13, 2**-24, 16
"""Relative size of the random changes of weights that stand for rounding, and how many are tried.

Weights under a norm of their own are written anew by a cut, in single precision.
"""
Shape = tuple[int, ...]
Example = Any


# -- putting pieces together -----------------------------------------------------------------------------------------


class Around(nn.Module):
    """A shortcut around a chain, projected where the widths differ."""

    def __init__(self, draw: Random, shape: Shape, chain: nn.Module, out: Shape) -> None:
        super().__init__()
        self.chain = chain
        self.project = nn.Identity() if shape == out else projection(shape, out)
        self.style = draw.randrange(4)
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.chain(x.clone() if self.style == 2 else x)
        if self.style == 0:
            return self.project(x) + y
        if self.style == 1:
            return torch.add(self.project(x) * self.scale, y)
        if self.style == 2:
            y = y.clone()
            y += self.project(x)
            return y
        return torch.stack([self.project(x), y]).sum(0)


class Beside(nn.Module):
    """Two chains of one input side by side, or one as a gate of the other."""

    def __init__(self, draw: Random, shape: Shape, chains: list[nn.Module], outs: list[Shape]) -> None:
        super().__init__()
        self.chains = nn.ModuleList(chains)
        self.axis = -1 if len(shape) < 3 else 1
        self.style = draw.randrange(3)
        self.project = projection(outs[1], outs[0])

    def forward(self, x: Tensor) -> Tensor:
        a, b = (chain(x.clone()) for chain in self.chains)
        if self.style == 0:
            return torch.cat([a, b], self.axis)
        b = self.project(b)
        return a * torch.sigmoid(b) if self.style == 1 else torch.maximum(a, b)


class Again(nn.Module):
    """The same chain several times, perhaps recomputed in the backward pass."""

    def __init__(self, draw: Random, chain: nn.Module) -> None:
        super().__init__()
        self.chain, self.times, self.recompute = chain, draw.randint(1, 3), draw.random() < 0.3

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            if self.recompute:
                x = torch.utils.checkpoint.checkpoint(self.chain, x, use_reentrant=False)
            else:
                x = self.chain(x)
        return x


class Sometimes(nn.Module):
    """Stochastic depth: a chain that is left out now and then while training."""

    def __init__(self, chain: nn.Module) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, x: Tensor) -> Tensor:
        if self.training and float(torch.rand(())) < 0.3:
            return x
        return x + self.chain(x)


class Rows(nn.Module):
    """A linear layer over the channels of an image."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.linear = nn.Linear(i, o)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def wide(shape: Shape) -> int:
    """The number of channels of a sample."""
    return shape[0] if len(shape) == 3 else shape[-1]


def projection(shape: Shape, out: Shape) -> nn.Module:
    """From the channels of one shape to those of another."""
    return nn.Conv2d(wide(shape), wide(out), 1) if len(shape) == 3 else nn.Linear(wide(shape), wide(out))


def same_places(a: Shape, b: Shape) -> bool:
    """Whether two shapes differ in nothing but their channels."""
    return len(a) == len(b) and (a[1:] == b[1:] if len(a) == 3 else a[:-1] == b[:-1])


def shape_after(module: nn.Module, shape: Shape) -> Shape:
    """The shape of one sample that leaves."""
    with torch.no_grad():
        return tuple(copy.deepcopy(module).eval()(torch.randn(3, *shape)).shape[1:])


def chosen_piece(draw: Random, shape: Shape) -> nn.Module:
    """One piece; what grows too much is made small first."""
    kinds = PIECES[len(shape)]
    names = list(kinds)
    if len(shape) > 1 and math.prod(shape) > 600:
        names = [n for n in names if n.startswith(("PoolTo", "PoolSteps", "Latents", "Convolution", "Bottleneck"))]
    return kinds[draw.choice(names)](draw, *shape)


def stage(draw: Random, shape: Shape, depth: int = 0) -> nn.Module:
    """A piece, or several that are put together."""
    kind = draw.choice(["piece"] * 6 + ["around", "beside", "again", "sometimes"]) if depth < 2 else "piece"
    if kind == "piece":
        return chosen_piece(draw, shape)
    chain = chain_of(draw, shape, draw.randint(1, 2), depth + 1)
    out = shape_after(chain, shape)
    if kind == "around" and same_places(shape, out):
        return Around(draw, shape, chain, out)
    if kind == "again" and shape == out:
        return Again(draw, chain)
    if kind == "sometimes" and shape == out:
        return Sometimes(chain)
    if kind == "beside":
        other = chain_of(draw, shape, 1, depth + 1)
        beside = shape_after(other, shape)
        if same_places(out, beside):
            return Beside(draw, out, [chain, other], [out, beside])
    return chain


def chain_of(draw: Random, shape: Shape, length: int, depth: int) -> nn.Sequential:
    stages = []
    for _ in range(length):
        stages.append(stage(draw, shape, depth))
        shape = shape_after(stages[-1], shape)
    return nn.Sequential(*stages)


# -- where networks begin --------------------------------------------------------------------------------------------


class Stem(nn.Module):
    """The first layers: they take all inputs and make one tensor, with a mask where there is one."""

    inputs: ClassVar[tuple[str, ...]] = ("x",)


class OfImage(Stem):
    def __init__(self, draw: Random) -> None:
        super().__init__()
        self.size = draw.choice([5, 6, 8])
        self.conv = nn.Conv2d(3, width(draw), 3, draw.choice([1, 1, 2]), 1)

    def example(self, batch: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, 3, self.size, self.size),)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class OfSequence(Stem):
    def __init__(self, draw: Random) -> None:
        super().__init__()
        self.steps, self.linear = draw.randint(3, 8), nn.Linear(5, width(draw))

    def example(self, batch: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, self.steps, 5),)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class OfVector(Stem):
    def __init__(self, draw: Random) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(6, width(draw)), activation(draw)

    def example(self, batch: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, 6),)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


class OfTokens(Stem):
    """Embeddings of tokens, of a small width widened perhaps, with types of segments perhaps."""

    inputs: ClassVar[tuple[str, ...]] = ("input_ids", "token_type_ids")

    def __init__(self, draw: Random) -> None:
        super().__init__()
        self.steps, self.words = draw.randint(3, 8), 11
        dim, self.style = width(draw, 4, 14), draw.randrange(4)
        self.embed = nn.Embedding(self.words, dim, padding_idx=0 if draw.random() < 0.3 else None)
        self.types, self.position = nn.Embedding(2, dim), nn.Embedding(10, dim)
        self.norm, self.wider = norm_of_rows(draw, dim), nn.Linear(dim, width(draw), bias=False)

    def example(self, batch: int) -> tuple[Tensor, ...]:
        ids = torch.randint(1, self.words, (batch, self.steps))
        return (ids, ids % 2) if self.style == 1 else (ids,)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        if token_type_ids is not None:
            x = x + self.types(token_type_ids)
        if self.style >= 2:
            x = x + self.position(torch.arange(input_ids.shape[1], device=input_ids.device))[None]
        x = self.norm(x)
        return self.wider(x) if self.style == 3 else x


class OfFields(Stem):
    """Numbers and categories of a table."""

    inputs: ClassVar[tuple[str, ...]] = ("numbers", "categories")

    def __init__(self, draw: Random) -> None:
        super().__init__()
        self.embeds = nn.ModuleList(nn.Embedding(n, width(draw, 2, 5)) for n in (4, 3))
        self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, width(draw))

    def example(self, batch: int) -> tuple[Tensor, ...]:
        return torch.randn(batch, 4), torch.randint(0, 3, (batch, 2))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        parts = [embed(categories[:, i]) for i, embed in enumerate(self.embeds)]
        return torch.cat([self.linear(self.norm(numbers)), *parts], dim=1)


class OfPair(Stem):
    """Two images through the same layers."""

    inputs: ClassVar[tuple[str, ...]] = ("left", "right")

    def __init__(self, draw: Random) -> None:
        super().__init__()
        out = width(draw)
        self.shared, self.style = nn.Sequential(nn.Conv2d(3, out, 3, padding=1), nn.BatchNorm2d(out)), draw.randrange(4)

    def example(self, batch: int) -> tuple[Tensor, ...]:
        return torch.randn(batch, 3, 6, 6), torch.randn(batch, 3, 6, 6)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        if self.style == 3:
            return torch.cat(self.shared(torch.cat([left, right])).chunk(2), 1)
        a, b = self.shared(left), self.shared(right)
        if self.style == 0:
            return torch.cat([a, b], 1)
        return (a - b).abs() if self.style == 1 else F.relu(a) * b


class OfGuided(Stem):
    """An image, scaled and shifted as a vector says."""

    inputs: ClassVar[tuple[str, ...]] = ("image", "time")

    def __init__(self, draw: Random) -> None:
        super().__init__()
        self.out, self.style = 2 * width(draw, 2, 6), draw.randrange(3)
        self.conv, self.film = nn.Conv2d(3, self.out, 3, padding=1), nn.Linear(4, 2 * self.out)
        self.norm, self.time = nn.GroupNorm(divisor(draw, self.out), self.out), nn.Linear(self.out, self.out)

    def example(self, batch: int) -> tuple[Tensor, ...]:
        return torch.randn(batch, 3, 6, 6), torch.rand(batch) if self.style == 2 else torch.randn(batch, 4)

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        x = self.norm(self.conv(image))
        if self.style == 2:
            rate = torch.exp(torch.arange(self.out // 2, device=time.device) * -0.5)
            angle = time[:, None] * rate[None]
            return x + self.time(torch.cat([angle.sin(), angle.cos()], -1))[..., None, None]
        scale, shift = self.film(time).chunk(2, dim=1)
        if self.style == 0:
            return x * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        return torch.addcmul(shift.view(-1, self.out, 1, 1), x, scale.view(-1, self.out, 1, 1))


class OfPadded(Stem):
    """A sequence with a mask of what is there, through attention that heeds it."""

    inputs: ClassVar[tuple[str, ...]] = ("x", "mask")

    def __init__(self, draw: Random) -> None:
        super().__init__()
        self.heads, self.steps, self.style = draw.choice([1, 2, 3]), draw.randint(4, 7), draw.randrange(5)
        self.dim = self.heads * width(draw, 2, 4)
        self.embed, self.qkv, self.out = (
            nn.Linear(5, self.dim),
            nn.Linear(self.dim, 3 * self.dim),
            nn.Linear(self.dim, self.dim),
        )
        self.library = nn.MultiheadAttention(self.dim, self.heads, batch_first=True)
        self.layer = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(self.dim, self.heads, width(draw), batch_first=True), 1,
            enable_nested_tensor=draw.random() < 0.5 and self.heads != 1 and self.heads % 2 == 0,
        )  # fmt: skip

    def example(self, batch: int) -> tuple[Tensor, ...]:
        lengths = torch.arange(batch) % (self.steps - 1) + 2
        return torch.randn(batch, self.steps, 5), torch.arange(self.steps)[None] < lengths[:, None]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(x)
        if self.style == 0:
            return x + self.library(x, x, x, key_padding_mask=~mask, need_weights=False)[0]
        if self.style == 1:
            return self.layer(x, src_key_padding_mask=~mask)
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.style == 2:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        else:
            logits = q @ k.transpose(-2, -1) / math.sqrt(k.shape[-1])
            if self.style == 3:
                logits = logits + (1.0 - mask[:, None, None].to(x.dtype)) * torch.finfo(x.dtype).min
            else:
                logits = torch.where(mask[:, None, None], logits, torch.full_like(logits, -1e9))
            y = logits.softmax(-1) @ v
        y = x + self.out(y.transpose(1, 2).reshape(b, n, -1))
        return y * mask.unsqueeze(-1)


class OfMemory(Stem):
    """A sequence that reads another one."""

    inputs: ClassVar[tuple[str, ...]] = ("target", "memory")

    def __init__(self, draw: Random) -> None:
        super().__init__()
        self.heads, each, dim = draw.randint(1, 4), width(draw, 2, 4), width(draw)
        inner = self.heads * each
        self.embed, self.encode = nn.Linear(5, dim), nn.Linear(4, width(draw))
        self.q, self.kv = nn.Linear(dim, inner), nn.Linear(self.encode.out_features, 2 * inner)
        self.out, self.steps = nn.Linear(inner, dim), draw.randint(3, 6)

    def example(self, batch: int) -> tuple[Tensor, ...]:
        return torch.randn(batch, self.steps, 5), torch.randn(batch, 4, 4)

    def forward(self, target: Tensor, memory: Tensor) -> Tensor:
        x, memory = self.embed(target), F.gelu(self.encode(memory))
        b = x.size(0)
        q = self.q(x).view(b, -1, self.heads, self.q.out_features // self.heads).transpose(1, 2)
        k, v = self.kv(memory).view(b, memory.size(1), 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.permute(0, 2, 1, 3).flatten(2))


STEMS: tuple[type[Stem], ...] = (
    OfImage, OfImage, OfImage, OfSequence, OfSequence, OfVector, OfTokens, OfTokens, OfFields, OfPair, OfGuided,
    OfPadded, OfMemory,
)  # fmt: skip
PLAIN: dict[int, type[Stem]] = {1: OfVector, 2: OfSequence, 3: OfImage}


# -- where they end --------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What some networks return."""

    logits: Tensor
    hidden: Tensor | None = None


class Head(nn.Module):
    """The outputs: one or several, of many forms and scales."""

    def __init__(self, draw: Random, shape: Shape, plain: bool, tied: nn.Embedding | None) -> None:
        super().__init__()
        self.axes, self.style = len(shape), 0 if plain else draw.randrange(13)
        self.scale = 1.0 if plain else 10.0 ** draw.choice([0, 0, 0, -6, -4, -2, 3, 6])
        channels = wide(shape)
        self.is_dense = not plain and self.axes > 1 and draw.random() < 0.5
        self.first = projection(shape, (7, 1, 1) if self.axes == 3 and self.is_dense else (7,))
        if not self.is_dense:
            self.first = nn.Linear(channels, 7)
        self.second = Rows(channels, 4) if self.is_dense and self.axes == 3 else nn.Linear(channels, 4)
        self.tied = tied if tied is not None and self.axes == 2 and self.is_dense else None
        if self.tied is not None:
            self.first = nn.Linear(channels, tied.embedding_dim)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Any:  # noqa: PLR0911
        if not self.is_dense and self.axes > 1:
            x = x.mean(1) if self.axes == 2 else F.adaptive_avg_pool2d(x, 1).flatten(1)
        y = self.first(x)
        y = F.linear(y, self.tied.weight) if self.tied is not None else y
        y = y * self.scale
        if self.style == 1:
            return y, self.second(x)
        if self.style == 2:
            return {"logits": y, "boxes": self.second(x).sigmoid() * 640}
        if self.style == 3:
            return y.log_softmax(-1)
        if self.style == 4:
            dead = torch.zeros(y.shape[-1], dtype=torch.bool)
            dead[1] = True
            return y.masked_fill(dead, torch.finfo(y.dtype).min)
        if self.style == 5:
            return Result(y, self.second(x))
        if self.style == 6:
            return (y, {"aux": self.second(x)}) if self.training else y
        if self.style == 7:
            return [y.softmax(1), [self.second(x), y.argmax(-1)]]
        if self.style == 8:
            return torch.cat([self.second(x).exp().clamp(max=1e3) * 640, y.sigmoid()], 1 if self.axes == 3 else -1)
        if self.style == 9:
            return F.normalize(self.second(x), dim=1)
        if self.style == 10:
            return y, x
        if self.style == 11:
            return y, self.second(x).to(torch.bfloat16)
        return y


class Network(nn.Module):
    """A stem, stages, a head."""

    def __init__(self, stem: Stem, stages: list[nn.Module], head: Head) -> None:
        super().__init__()
        self.stem, self.stages, self.head = stem, nn.ModuleList(stages), head

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        x = self.stem(*args, **kwargs)
        for each in self.stages:
            x = each(x)
        return self.head(x)


def network(
    seed: int, without: frozenset[int] = frozenset(), plain: bool = False
) -> tuple[Network, Callable[[int], Example]]:
    """The network of a seed, and what makes an example of so many samples.

    Every third seed is one piece between two plain layers. ``without`` leaves stages out by number, ``plain`` takes the
    plainest beginning and end: to find the least that shows a fault.
    """
    draw = Random(f"stem {seed}")
    torch.manual_seed(seed)
    if seed % 3 == 0:
        axes = draw.choice([1, 2, 2, 3, 3])
        stem: Stem = PLAIN[axes](draw)
        lengths = 1
        plain = True
    else:
        stem = draw.choice(STEMS)(draw)
        lengths = draw.randint(1, 5)
    shape = tuple(_run_stem(stem).shape[1:])
    if plain and seed % 3:
        stem = PLAIN[len(shape)](draw)
        shape = tuple(_run_stem(stem).shape[1:])
    stages: list[nn.Module] = []
    for i in range(lengths):
        if i in without:
            continue
        own = Random(f"stage {seed} {i}")
        torch.manual_seed(seed * 31 + i)
        made = chosen_piece(own, shape) if seed % 3 == 0 else stage(own, shape)
        shape = shape_after(made, shape)
        stages.append(made)
    tied = stem.embed if isinstance(stem, OfTokens) and draw.random() < 0.5 else None
    model = Network(stem, stages, Head(Random(f"head {seed}"), shape, plain, tied))
    _wake(model, seed)
    return model.eval(), lambda batch: _example(stem, batch, draw=Random(f"example {seed}"))


def _run_stem(stem: Stem) -> Tensor:
    with torch.no_grad():
        output: Tensor = copy.deepcopy(stem).eval()(*stem.example(3))  # type: ignore[operator]
    return output


def _example(stem: Stem, batch: int, draw: Random) -> Example:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw.randrange(10**6) + batch)
        values = stem.example(batch)  # type: ignore[operator]
    if draw.random() < 0.3:
        return dict(zip(stem.inputs, values, strict=False))
    return values[0] if len(values) == 1 else values


def _wake(model: nn.Module, seed: int) -> None:
    """Norms and zeros away from their neutral start; so that a wrong cut cannot hide, nothing is alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.2)
            if name.endswith(("running_var", "average")):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


# -- one network -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomCuts:
    """A method: every group that can be cut loses units at random, or now and then none."""

    seed: int
    asked: list[Any]
    wants: ClassVar[frozenset[str]] = frozenset()

    def plan(self, view: Any) -> Any:
        from nervure import Cut, Keep, Plan

        draw = Random(f"plan {self.seed}")
        cuts: list[Any] = []
        for group in view.graph.prunable:
            kept = group.round_up(draw.randint(1, group.size))
            is_last_chance = not cuts and group is view.graph.prunable[-1]
            kept = group.round_up(1) if is_last_chance and kept == group.size else kept
            if (draw.random() < 0.85 or is_last_chance) and kept < group.size:
                stay = set(draw.sample(range(group.size), kept))
                cuts.append(Cut(group.name, Keep.of([i in stay for i in range(group.size)])))
        plan = Plan(tuple(cuts), view.graph.fingerprint)
        self.asked.append((view.graph, plan))
        return plan


def removed_by(graph: Any, plan: Any) -> dict[str, list[tuple[int, Tensor]]]:
    """What a plan removes: for each tensor the axes and the positions along them that leave."""
    removed: dict[str, list[tuple[int, Tensor]]] = {}
    for cut in plan.cuts:
        keep = cut.keep.tensor()
        for slot in graph[cut.group].slots:
            units = torch.from_numpy(slot.units.array.copy())
            gone = torch.where(units >= 0, ~keep[units.clamp(min=0)], False)
            removed.setdefault(slot.tensor, []).append((slot.axis, gone))
    return removed


def examine(seed: int, without: frozenset[int] = frozenset(), plain: bool = False) -> dict[str, Any]:
    """Draw a network, cut it, and say what was found."""
    import nervure

    model, make = network(seed, without, plain)
    example = make(2)
    row: dict[str, Any] = {"pieces": pieces_of(model), "params": sum(p.numel() for p in model.parameters())}
    exact = _double(example)
    before = exact_outputs(copy.deepcopy(model).double(), exact)
    method = RandomCuts(seed, [])
    try:
        pruned = nervure.prune(model, example, method, progress=False)
    except nervure.errors.NervureError as error:
        row |= {"refused": f"{type(error).__name__}: {error}"[:400]}
        if not method.asked:
            return row | {"fault": "not traced"}
        graph, plan = method.asked[0]
        return row | {"fault": "refused", "groups": len(graph.groups), "prunable": len(graph.prunable)}
    graph, plan = pruned.graph, pruned.plan
    reasons = {g.pinned.split(" at ")[0][:140] for g in graph.groups if g.is_pinned}
    row |= {
        "groups": len(graph.groups),
        "prunable": len(graph.prunable),
        "left": sum(p.numel() for p in pruned.model.parameters()),
        "verified": pruned.verification,
        "unverified": pruned.unverified,
        "pins": sorted(reasons - {"model output"}),
    }
    if len(method.asked) > 1:
        pinned = [g.name for g in graph.groups if g.is_pinned and not method.asked[0][0][g.name].is_pinned]
        row["doubted"] = [f"{n}: {graph[n].pinned}"[:200] for n in pinned]
    row |= _compared(model, pruned, make, (exact, before), removed_by(graph, plan))
    # Experts that no token of the example came to: the user was told.
    if row.get("fault") == "crash" and any("not reached by the example" in note for note in graph.notes):
        row["fault"] = "not reached"
    return row


def _compared(model: Network, pruned: Any, make: Any, before: Any, removed: Any) -> dict[str, Any]:
    """The cut network beside what is expected: on the example, on another batch, as it will be used."""
    dense = copy.deepcopy(model).double().eval()
    found: dict[str, Any] = {}
    example, outputs = before
    if verdict(outputs, exact_outputs(copy.deepcopy(dense), example))[0] > WRONG:
        found["fault"] = "original changed"
    if not removed:
        return found | ({} if "fault" in found else {"fault": "nothing to cut"})
    for batch in (2, 3):
        example = _double(make(batch))
        try:
            whole = exact_outputs(copy.deepcopy(dense), example)
        except Exception:
            continue  # the network takes no other batch
        try:
            expected = expected_outputs(copy.deepcopy(dense), removed, example)
        except UnknownFateError as error:
            return found | {"fault": "unknown", "why": str(error)[:300]}
        try:
            got = exact_outputs(copy.deepcopy(pruned.model).double().eval(), example)
        except Exception as error:
            return found | {"fault": "crash", "why": f"batch of {batch}: {_told(error)}"}
        apart, moved = verdict(expected, got, whole)
        found |= {"apart": apart, "moved": max(moved, found.get("moved", 0.0))}
        if WRONG < apart <= 10 * unsettled(dense, removed, example, expected):
            return found | {"fault": "turns on a rounding", "why": f"batch of {batch}: {apart:.1e} apart"}
        if apart > WRONG:
            shapes = [[tuple(t.shape) for t in ts] for ts in (expected, got)]
            why = f"shapes {shapes[0]} and {shapes[1]}" if shapes[0] != shapes[1] else f"{apart:.1e} apart"
            return found | {"fault": "wrong", "why": f"batch of {batch}: {why}"}
    return found | _used(model, pruned.model, make)


def unsettled(dense: nn.Module, removed: Any, example: Example, expected: list[Tensor]) -> float:
    """How far what is expected moves where every weight of the original changes in its last digit.

    Two steps that are alike up to rounding, of which an expert takes one, or a very deep network: what comes out is
    then no answer of the network, and nothing can be told by it.
    """
    lot, furthest = torch.Generator().manual_seed(0), 0.0
    for _ in range(NUDGES):
        nudged = copy.deepcopy(dense)
        with torch.no_grad():
            for name, weight in nudged.named_parameters():
                size = REWRITTEN if "parametrizations" in name else ROUNDING
                weight.mul_(1 + size * torch.randn(weight.shape, generator=lot, dtype=torch.float64))
        found = expected_outputs(nudged, removed, example)
        if [t.shape for t in found] != [t.shape for t in expected]:
            return math.inf
        furthest = max(furthest, verdict(expected, found)[0])
    return furthest


def _used(model: nn.Module, smaller: nn.Module, make: Any) -> dict[str, Any]:
    """Whether the cut network runs where the original does: with fast paths, other modes, gradients."""
    for batch in (2, 5):
        for training in (False, True):
            for slopes in (False, True):
                mode = "training" if training else "evaluation"
                way = f"batch of {batch}, {mode}, {'with' if slopes else 'no'} gradients"
                example = make(batch)
                try:
                    _run(copy.deepcopy(model).train(training), example, slopes)
                except Exception:
                    continue
                try:
                    _run(copy.deepcopy(smaller).train(training), example, slopes)
                except Exception as error:
                    return {"fault": "crash", "why": f"{way}: {_told(error)}"}
    return {}


def _run(model: nn.Module, example: Example, slopes: bool) -> None:
    with torch.set_grad_enabled(slopes), torch.random.fork_rng(devices=[]):
        outputs = list(tensors(called(model, example)))
        if slopes:
            sum(t.float().nan_to_num(0, 0, 0).clamp(-1e3, 1e3).mean() for t in outputs if t.requires_grad).backward()  # type: ignore[union-attr]


def _told(error: BaseException) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:200]} ({Path(place.filename).name}:{place.lineno})"


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: _double(v) for k, v in value.items()}
    return type(value)(_double(v) for v in value)


def pieces_of(model: Network) -> str:
    """The names of the pieces with their styles, in order."""
    named = [type(model.stem).__name__ + _style(model.stem)]
    for each in model.stages:
        inner = [
            type(m).__name__ + _style(m)
            for m in each.modules()
            if any(type(m) is kind for kinds in PIECES.values() for kind in kinds.values())
            or isinstance(m, Around | Beside | Again | Sometimes)
        ]
        named.append("(" + " ".join(inner) + ")")
    return " > ".join([*named, "Head" + _style(model.head)])


def _style(module: nn.Module) -> str:
    styles = [
        str(getattr(module, key)) for key in ("kind", "style", "fused", "product", "merge") if hasattr(module, key)
    ]
    return "." + ".".join(styles) if styles else ""


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError after so many seconds."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"over {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tried(seed: int, without: frozenset[int] = frozenset(), plain: bool = False) -> dict[str, Any]:
    """As :func:`examine`; whatever is raised that nobody announced is a crash."""
    start = time.process_time()
    try:
        with limit(300), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = examine(seed, without, plain)
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__)]
        where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-4:]))
        kind = "crash" if any("/nervure/" in f.filename for f in frames) else "bench"
        row = {"fault": kind, "why": f"{type(error).__name__}: {str(error)[:300]} ({where})"}
    return {"seed": seed, "seconds": round(time.process_time() - start, 2)} | row


def smallest(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Leave stages out while the fault stays: what is left, and its row."""
    fault = tried(seed).get("fault")
    options: dict[str, Any] = {"without": frozenset(), "plain": False}
    for change in ({"plain": True}, *({"without": i} for i in range(5))):
        attempt = dict(options)
        if "plain" in change:
            attempt["plain"] = True
        else:
            attempt["without"] = options["without"] | {change["without"]}
        if tried(seed, **attempt).get("fault") == fault:
            options = attempt
    return options, tried(seed, **options)


# -- running and reporting -------------------------------------------------------------------------------------------


def page(rows: list[Row]) -> str:
    """The results as Markdown."""
    faults = Counter(r.get("fault", "right") for r in rows)
    checked = [r for r in rows if "apart" in r]
    lines = [
        "# Networks drawn at random",
        "",
        "`python benchmarks/random_networks.py 5000`: each network is traced, every group that can be cut loses a",
        "random share of its units, and the result is compared, in double precision, with what an independent run of",
        "the original over the survivors gives; then it runs with other batches, in training mode, with gradients.",
        "A third of the networks are one piece between two plain layers, the rest up to five, nested and branched.",
        "A difference is not held against a cut where the original moves by a tenth of it when its weights change in",
        'their last digit ("turns on a rounding").',
        "",
        "| outcome | networks |",
        "|---|---|",
    ]
    lines += [f"| {fault} | {number} |" for fault, number in faults.most_common()]
    if checked:
        cut = sorted(1 - r["left"] / r["params"] for r in checked)
        lines += [
            "",
            f"{len(checked)} cuts compared; parameters that left: median {cut[len(cut) // 2]:.0%}; largest difference "
            f"of those that are right {max((r['apart'] for r in checked if 'fault' not in r), default=0.0):.0e}; "
            f"{sum(r.get('moved', 0.0) > 1e-6 for r in checked)} of the cuts moved the output, "
            f"{sum(r.get('verified') is None for r in checked)} were not called verified.",
        ]
    reasons = Counter(pin for r in rows for pin in r.get("pins", ()))
    lines += ["", "## What stays, and why", "", *[f"* {n} x {reason}" for reason, n in reasons.most_common(30)]]
    lines += ["", "## What was not right", ""]
    for r in sorted(
        (r for r in rows if r.get("fault", "nothing to cut") != "nothing to cut"), key=lambda r: str(r["fault"])
    ):
        lines.append(f"* {r['seed']} ({r['fault']}): {r.get('why') or r.get('refused', '')}; {r.get('pieces', '')}")
    return "\n".join(lines) + "\n"


def cases(options: Namespace) -> Iterator[Case]:
    """A network for each seed."""
    seeds = range(options.start, options.start + options.number)
    yield from (((seed,), partial(tried, seed)) for seed in seeds)


def tell(row: Row) -> str:
    """What is wrong."""
    told = row.get("why") or row.get("refused") or "; ".join(row.get("pins", []))
    return f"{row['seed']:6d} {row['fault']:16s} {told[:160]}  {row.get('pieces', '')}" if "fault" in row else ""


def show(case: str) -> None:
    """Print a network and what was found, as small as its fault allows."""
    seed = int(case)
    options, row = smallest(seed)
    print(network(seed, **options)[0])
    print(f"network({seed}, without={set(options['without']) or '{}'}, plain={options['plain']})")
    print(json.dumps(row, indent=1))


BENCHMARK = Benchmark(
    "random_networks",
    page,
    fields("seed"),
    cases,
    goes_wrong=lambda row: "fault" in row,
    tell=tell,
    show=show,
    arguments={
        "number": {"nargs": "?", "type": int, "default": 5000, "help": "how many networks"},
        "--start": {"type": int, "default": 0, "help": "the first seed"},
    },
)

if __name__ == "__main__":
    main(BENCHMARK)
