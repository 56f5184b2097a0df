"""The lines of each part as a table in Markdown."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

Row: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Sequence[Row]


def table(heads: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A table, its numbers to three digits."""
    ruled = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(map(show, line))} |" for line in ruled) if lines else "nothing was measured"


def show(value: Any) -> str:
    """A cell: a number to three digits."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 or math.isnan(value) else f"{value:.0f}"
    return "" if value is None else str(value)


def failures(rows: Rows) -> str:
    """What failed, a line each."""
    told = [
        " ".join(f"{k}={v}" for k, v in row.items() if k != "failed") + f": {row['failed']}"
        for row in rows
        if "failed" in row
    ]
    return "\n".join(["", "Failed:", "", *(f"* {line}" for line in told)]) if told else ""


def of_training(rows: Rows) -> str:
    """Reads and waits, steps, feeding, masks."""
    good = [row for row in rows if "failed" not in row]
    parts = [
        "Numbers that a step of `train` reads from the device, and how often CUDA says that it waits:",
        table(["", "reads", "waits"], [[r["way"], r["reads"], r["waits"]] for r in good if r["kind"] == "reads"]),
        "Milliseconds of a step:",
        table(["network", "", "ms"], [[r["network"], r["way"], r["ms"]] for r in good if r["kind"] == "step"]),
        "Milliseconds of a step by where its batch (128 pictures of 128 px) comes from:",
        table(["", "ms"], [[r["way"], r["ms"]] for r in good if r["kind"] == "feeding"]),
        "What held masks of a tenth of the weights add to a step:",
        table(
            ["network", "optimizer", "dense ms", "held"],
            [
                [r["network"], r["optimizer"], r["dense_ms"], f"{100 * (r['held_ms'] / r['dense_ms'] - 1):+.1f} %"]
                for r in good
                if r["kind"] == "masks"
            ],
        ),
    ]
    return "\n\n".join(parts) + failures(rows)


def of_latency(rows: Rows) -> str:
    """Times as fast as dense, by network, mode and batch."""
    times = {(r["network"], r["mode"], r["batch"], r["variant"]): r["ms"] for r in rows if "ms" in r}
    sizes = {(r["network"], r["variant"]): r for r in rows if "parameters" in r}
    parts = ["Dense: milliseconds of a batch in bfloat16. The others: times as fast as dense."]
    for network in dict.fromkeys(key[0] for key in times):
        columns = list(dict.fromkeys((mode, batch) for name, mode, batch, _ in times if name == network))
        lines = [
            [variant, *(speed(times, network, mode, batch, variant) for mode, batch in columns)]
            for variant in dict.fromkeys(key[3] for key in times if key[0] == network)
        ]
        parts += [f"**{network}**", table(["", *(f"{mode}, {batch}" for mode, batch in columns)], lines)]
        errors = [row["error"] for (name, _), row in sizes.items() if name == network and row["error"] is not None]
        parts.append(f"All cuts were verified on the device; largest error {max(errors, default=math.nan):.1e}.")
    for row in (row for row in rows if "share" in row):
        parts.append(f"{row['network']}, planned for {row['asked']} of the time: timed at {row['share']:.2f} of it.")
    return "\n\n".join(parts) + failures(rows)


def speed(times: Mapping[tuple[Any, ...], float], network: str, mode: str, batch: int, variant: str) -> Any:
    """A cell: milliseconds of the dense network, else how many times as fast as it."""
    dense, own = (times.get((network, mode, batch, kind)) for kind in ("dense", variant))
    if own is None or dense is None:
        return None
    return f"{dense:.3g} ms" if variant == "dense" else f"{dense / own:.2f}x"


def of_study(rows: Rows) -> str:
    """Accuracy on test pictures."""
    good = [row for row in rows if "failed" not in row]
    lines = [
        [r["network"], r.get("keep", ""), r["method"], r["parameters"], r.get("cut"), r.get("refitted"), r["test"]]
        for r in good
    ]
    images = {row["images"] for row in good if "images" in row}
    count = ", ".join(f"{number:,}" for number in sorted(images))
    told = f"Fashion-MNIST, {count} training pictures. Accuracy in percent on test pictures, one seed."
    heads = ["network", "share of MACs", "method", "parameters", "cut", "refitted", "after 5 epochs"]
    return f"{told}\n\n{table(heads, lines)}{failures(rows)}"


def of_streamed(rows: Rows) -> str:
    """Seconds of a layer, and of all of them."""
    heads = [
        "",
        "layers measured",
        "a layer (s)",
        "the rest (s)",
        "all layers (min)",
        "error left out: before",
        "after",
    ]
    lines = [
        [
            r["case"],
            f"{r['layers']} of {r['whole']}",
            r["layer_s"],
            r["outside_s"],
            (r["layer_s"] * r["whole"] + r["outside_s"]) / 60,
            r["error_before"],
            r["error_after"],
        ]
        for r in rows
        if "failed" not in r
    ]
    return table(heads, lines) + failures(rows)


PAGES: Mapping[str, Callable[[Rows], str]] = {
    "training": of_training,
    "latency": of_latency,
    "streamed": of_streamed,
    "study": of_study,
}
