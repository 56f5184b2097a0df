"""What a tape computed from weights alone: read from the parameters, or computed again from the entries."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nervure.graph.tape import Entry, Ref, Tape, WriteBack, results_of


class Statics:
    """Contents of values on a tape that do not depend on the model's inputs.

    Args:
        tape: the record of a run.
        tensors: the model's tensors by name.
    """

    def __init__(self, tape: Tape, tensors: Mapping[str, Tensor]) -> None:
        self._tape, self._tensors = tape, tensors
        self._made: dict[int, Entry | WriteBack] = {}
        for entry in tape.entries:
            for ref in entry.outs if isinstance(entry, Entry) else (entry.out,):
                self._made[ref.id] = entry

    def value(self, ref: Ref) -> Tensor:
        """The contents of a value."""
        name = self._tape.named.get(ref.id)
        if name is not None:
            return self._tensors[name]
        const = self._tape.values[ref.id].const
        return const if const is not None else self._compute(self._made[ref.id], ref)

    def name(self, ref: Ref) -> str:
        """The parameter that a weight is, or is made of (the first, where there are several); ``""`` for none."""
        if ref.id in self._tape.named:
            name = self._tape.named[ref.id]
            return name if isinstance(self._tensors[name], nn.Parameter) else ""
        entry = self._made.get(ref.id)
        if isinstance(entry, WriteBack):
            return self.name(entry.base)
        given = entry.given if entry is not None else []
        return next((name for name in map(self.name, given) if name), "")

    def _compute(self, entry: Entry | WriteBack, ref: Ref) -> Tensor:
        with torch.no_grad():
            if isinstance(entry, WriteBack):
                return self._write(entry)
            # Copies, where the operator writes: the parameters themselves stay as they are.
            copied = entry.op._schema.is_mutable
            args = [self._fill(a, copied) for a in entry.args]
            out = entry.op(*args, **{key: self._fill(value, copied) for key, value in entry.kwargs.items()})
        return results_of(out)[[r.id for r in entry.outs].index(ref.id)]

    def _write(self, entry: WriteBack) -> Tensor:
        whole = self.value(entry.base).clone()
        part: Any = whole
        for op, args, kwargs, which in entry.views:
            part = op(part, *[self._fill(a, False) for a in args[1:]], **kwargs)
            part = part[which] if isinstance(part, list | tuple) else part
        part.copy_(self.value(entry.value))
        return whole

    def _fill(self, value: Any, copied: bool) -> Any:
        if isinstance(value, Ref):
            found = self.value(value)
            return found.clone() if copied else found
        return [self._fill(v, copied) for v in value] if isinstance(value, tuple) else value
