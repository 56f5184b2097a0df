"""What is shared, and what is called and answers in other ways than by one tensor."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.registry import Head, cbr, conv, covers, image, noise, words


@covers(image)
class SharedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = cbr(3, 6), cbr(6, 6), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(self.shared(self.stem(x))))


@covers(image)
class SharedBranches(nn.Module):
    """One module object under two names, on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(3, 6), cbr(3, 6)
        self.left = self.right = cbr(6, 5)
        self.head = Head(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.left(self.a(x)) * self.right(self.b(x)))


@covers(lambda: noise(4, 6))
class TiedTransposed(nn.Module):
    """An auto-encoder whose decoder is its encoder, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        y = torch.tanh(self.b(x))
        return self.out(torch.tanh(F.linear(y, self.b.weight.t())) + x)


@covers(words)
class TiedEmbedding(nn.Module):
    """A language model whose head is its embedding: one parameter, two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Embedding(11, 6), nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.hidden(x))


@covers(lambda: noise(4, 6))
class RawParameters(nn.Module):
    """Weights kept as bare parameters and used by ``F.linear``, ``@`` and ``addmm``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(8))
        self.second, self.third = nn.Parameter(torch.randn(8, 7)), nn.Parameter(torch.randn(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(F.linear(x, self.weight, self.bias))
        return torch.addmm(torch.zeros(3, dtype=x.dtype), torch.relu(x @ self.second), self.third)


@covers(image)
class ClassToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, stride=4)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 5, 6))
        self.up, self.down, self.head = nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head((x + self.down(F.gelu(self.up(x))))[:, 0])


@covers(lambda: (noise(2, 3, 8, 8), noise(2, 4, seed=8)))
class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = cbr(3, 6), nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.fc(self.a(x).mean((2, 3)) * torch.sigmoid(self.b(y)))


@covers(lambda: ({"image": noise(2, 3, 8, 8), "facts": noise(2, 4, seed=8)},))
class DictInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = cbr(3, 6), nn.Linear(4, 7), nn.Linear(13, 5)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.fc(torch.cat([self.a(inputs["image"]).amax((2, 3)), self.b(inputs["facts"])], 1))


@covers(lambda: {"x": noise(2, 3, 8, 8), "scale": 2.0, "deep": True})
class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = cbr(3, 6), cbr(6, 6), Head(6)

    def forward(self, x: Tensor, *, scale: float = 1.0, deep: bool = False) -> Tensor:
        x = scale * self.a(x)
        return self.head(self.b(x) if deep else x)


@covers(image)
class TupleOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.one, self.two = cbr(3, 6), cbr(6, 7), Head(6), Head(7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.a(x)
        return self.one(x), self.two(self.b(x))


@covers(image)
class DictOutput(nn.Module):
    """One of the outputs is a feature map: its channels must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = cbr(3, 6), cbr(6, 7), Head(7)

    def forward(self, x: Tensor) -> dict[str, Any]:
        a = self.a(x)
        b = self.b(a)
        return {"logits": self.head(b), "features": [b]}


@dataclass
class Answer:
    """What :class:`DataclassOutput` returns."""

    logits: Tensor
    boxes: Tensor | None = None


@covers(image)
class DataclassOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.logits, self.boxes = cbr(3, 6), Head(6), conv(6, 4, 1)

    def forward(self, x: Tensor) -> Answer:
        x = self.a(x)
        return Answer(self.logits(x), self.boxes(x))


@covers(image)
class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 6), conv(6, 6), conv(6, 5), Head(5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.a(x))
        y = self.b(x)
        y += x
        y.add_(0.1).mul_(2.0)
        return self.head(F.leaky_relu_(self.c(y)))


@covers(image)
class SliceWrites(nn.Module):
    """An output buffer that is filled by writing into slices of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = cbr(3, 4), cbr(3, 6), cbr(10, 5), Head(5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        both = x.new_zeros(x.shape[0], a.shape[1] + b.shape[1], x.shape[2], x.shape[3])
        both[:, : a.shape[1]] = a
        both[:, a.shape[1] :] = b
        return self.head(self.c(both))


@covers(image)
class PartialConv(nn.Module):
    """Only the first channels are convolved, written over a copy (as in FasterNet); their number is remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.part = 3
        self.stem, self.partial, self.after, self.head = cbr(3, 8), conv(3, 3), cbr(8, 6), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x.clone()
        y[:, : self.part] = self.partial(x[:, : self.part])
        return self.head(self.after(y))


@covers(image)
class ControlFlow(nn.Module):
    """How often a layer runs, and whether another does, depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = cbr(3, 6), cbr(6, 6), cbr(6, 5), Head(5)

    def forward(self, x: Tensor) -> Tensor:
        energy = float(x.abs().mean())
        x = self.a(x)
        for _ in range(2 if energy > 0.1 else 1):
            x = x + self.b(x)
        return self.head(self.c(x) if energy > 0 else x[:, :5])
