"""What travels with an exported file: what it is, how it came about, how good it is, and how to run it."""

import datetime
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from nervure.core.markup import code, code_block, escape_markdown, table
from nervure.core.provenance import commit
from nervure.engines.exported import Exported
from nervure.export.checking import FileDifference
from nervure.export.state import versions
from nervure.plan import Cut, Drop, Link, Mask, Plan
from nervure.prune import Pruned

FORMAT = 1
KINDS: Mapping[type, str] = {Cut: "cuts", Mask: "masks", Drop: "drops", Link: "links"}


@final
@dataclass(frozen=True, slots=True)
class Card:
    """The facts about an exported file, as plain data by section.

    Attributes:
        facts: ``model``, ``file``, ``files``, ``inputs``, ``outputs``, ``pruning``, ``costs``, ``verification``,
            ``notes``, ``provenance``, ``usage``.
    """

    facts: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"kind": "nervure-card", "format": FORMAT, **self.facts}

    def to_markdown(self) -> str:
        """The card for people, ending with a newline."""
        facts, file = self.facts, self.facts["file"]
        parts = [
            f"# {escape_markdown(file['name'])}",
            f"{escape_markdown(facts['model'])} as {file['format']} in {file['precision']}, "
            f"{_samples(file['samples'])}.",
            "## Use",
            code_block(facts["usage"], "python"),
            table(("input", "type", "shape"), [(i["name"], i["dtype"], _shape(i["shape"])) for i in facts["inputs"]]),
            "## Pruning",
            *_pruning(facts["pruning"]),
            _costs(facts["costs"]),
            "## Verification",
            _format_checks(facts["verification"]),
            *(["## Notes", _flat(facts["notes"])] if facts["notes"] else []),
            "## Provenance",
            _flat(facts["provenance"]),
            "## Files",
            table(("file", "bytes", "sha256"), [(f["name"], f"{f['bytes']:,}", f["sha256"]) for f in facts["files"]]),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"


def file_facts(path: Path) -> dict[str, Any]:
    """Name, bytes and checksum of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}


def pruning_facts(pruned: Pruned | None) -> dict[str, Any]:
    """The plans, earlier ones first, with what they asked and reached; empty for a model that was not pruned."""
    if pruned is None:
        return {}
    steps = [*((step.method, step.plan) for step in pruned.earlier), (pruned.method, pruned.plan)]
    return {
        "steps": [{"method": method, **_plan_facts(plan)} for method, plan in steps],
        "fingerprint": (pruned.earlier[0].graph if pruned.earlier else pruned.graph).fingerprint,
        "verification": pruned.verification,
    }


def _plan_facts(plan: Plan) -> dict[str, Any]:
    counts = {name: sum(isinstance(edit, kind) for edit in plan) for kind, name in KINDS.items()}
    widths = {cut.group: [cut.keep.count, cut.keep.size] for cut in plan.cuts}
    return {
        "edits": {name: count for name, count in counts.items() if count},
        "asked": dict(plan.asked),
        "reached": dict(plan.reached),
        "widths": widths,
    }


def checks_facts(checks: Mapping[str, FileDifference]) -> dict[str, Any]:
    """The verification, by what was run."""
    return {name: asdict(found) for name, found in checks.items()}


def inputs_of(graph: Exported) -> list[dict[str, Any]]:
    """Name, type and shape of each input; an axis of any length is None."""
    return [_tensor(node) for node in graph.placeholders()]


def outputs_of(graph: Exported) -> list[dict[str, Any]]:
    """Name, type and shape of each output; an axis of any length is None."""
    found = (node for node in graph.program.graph.output_node().args[0] if isinstance(node, torch.fx.Node))
    return [_tensor(node) for node in found if isinstance(node.meta.get("val"), torch.Tensor)]


def _tensor(node: torch.fx.Node) -> dict[str, Any]:
    value = node.meta["val"]
    shape = [size if isinstance(size, int) else None for size in value.shape]
    return {"name": node.name, "dtype": str(value.dtype).removeprefix("torch."), "shape": shape}


def provenance(command: str, libraries: Sequence[str]) -> dict[str, Any]:
    """Versions, date, commit of the working folder, and the command that does it again."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **versions(),
        **{library: importlib.metadata.version(library) for library in libraries},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "commit": commit(),
        "again": command,
    }


def model_name(model: nn.Module) -> str:
    """The class of a model."""
    return type(model).__name__


def _samples(fixed: int | None) -> str:
    return "for any number of samples" if fixed is None else f"for {fixed} samples at a time"


def _shape(sizes: Sequence[int | None]) -> str:
    return " x ".join("any" if size is None else str(size) for size in sizes)


def _pruning(pruning: Mapping[str, Any]) -> list[str]:
    if not pruning:
        return ["Not pruned."]
    lines = []
    for step in pruning["steps"]:
        edits = ", ".join(f"{count} {name}" for name, count in step["edits"].items()) or "nothing changed"
        reached = ", ".join(f"{key} {_text(value)}" for key, value in step["reached"].items())
        lines.append(
            f"- {code(step['method'])}: {edits}" + (f"; reached {escape_markdown(reached)}" if reached else "")
        )
    error = pruning["verification"]
    said = "not made" if error is None else f"largest relative difference {error:.1e}"
    return ["\n".join(lines), f"Cut against silenced original: {said}."]


def _costs(costs: Mapping[str, Mapping[str, int]]) -> str:
    rows = [(name, *(f"{costs[when][key]:,}" for when in costs)) for key, name in COUNTED.items()]
    return table(("", *costs), rows)


COUNTED: Mapping[str, str] = {"params": "parameters", "nonzero": "non-zero", "macs": "multiply-accumulates"}


def _format_checks(checks: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (
            name,
            ", ".join(map(str, found["batches"])),
            f"{found['largest']:.1e}",
            "told only" if found["tolerance"] is None else f"{found['tolerance']:.0e}",
            _percent(found["agreement"]),
            " → ".join(map(_percent, found["accuracy"])) if found["accuracy"] else "–",
        )
        for name, found in checks.items()
    ]
    head = ("inputs", "batch sizes", "largest difference", "allowed", "same class", "accuracy, module → file")
    return table(head, rows)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"


def _flat(facts: Mapping[str, Any], prefix: str = "") -> str:
    return table(("", ""), list(_rows(facts, prefix)))


def _rows(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            rows += _rows(value, f"{prefix}{key}, ")
        else:
            rows.append((f"{prefix}{key}", _text(value)))
    return rows


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
