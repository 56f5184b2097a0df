"""The part of a report that shows accuracy under shift: a table by corruption, with pictures of what was shown."""

import base64
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nervure.evaluation import Shifted, corrupt
from nervure.report.run_report import DENSE, Report
from nervure.report.tables import MISSING, Table, percent

SHOWN = 3
PNG = "data:image/png;base64,"
LEAST_SIDE = 56


def shift_facts(found: Mapping[str, Shifted], pictures: Tensor, seed: int) -> dict[str, Any]:
    """Plain data for a report: accuracies by network and corruption, corruption errors, and example pictures.

    Args:
        found: what each network did; ``"dense"`` is the reference of the corruption errors (None: it has too few).
        pictures: float in [0, 1], [images, 1 or 3, height, width]; the first few are shown.
        seed: of the corruptions.
    """
    dense = found[DENSE]
    severities = sorted({severity for _, severity in dense.rows})
    networks = {
        name: {
            "clean": one.clean.accuracy,
            "mean": one.accuracy,
            "interval": list(one.interval),
            "ece": one.ece,
            "worst": list(one.worst),
            "mce": _finite(one.mce(dense)),
            "relative_mce": _finite(one.relative_mce(dense)),
            "accuracy": one.by_corruption,
        }
        for name, one in found.items()
    }
    shown = {name: [picture_uri(p) for p in _examples(pictures, name, severities, seed)] for name in dense.names}
    return {
        "severities": severities,
        "samples": dense.clean.samples,
        "networks": networks,
        "original": [picture_uri(p) for p in pictures[:SHOWN]],
        "pictures": shown,
    }


def table(report: Report) -> Table:
    """Accuracy of each network, clean, under each corruption, and on average, with corruption errors below."""
    networks = report.shift.get("networks", {})
    if not networks:
        return Table(("corruption",), ())
    names = next(iter(networks.values()))["accuracy"]
    rows = [("clean", *(percent(_clean(report, name)) for name in networks))]
    rows += [(_words(name), *(percent(one["accuracy"][name]) for one in networks.values())) for name in names]
    rows.append(("mean under shift", *(percent(one["mean"]) for one in networks.values())))
    rows.append(("95 % interval", *(_interval(one) for one in networks.values())))
    rows.append(("mCE, dense = 100", *(_error(one["mce"]) for one in networks.values())))
    rows.append(("relative mCE, dense = 100", *(_error(one["relative_mce"]) for one in networks.values())))
    return Table(("corruption", *networks), tuple(rows))


def _clean(report: Report, network: str) -> float:
    """Clean accuracy as the rest of the report has it: of all test samples, where fewer were corrupted too."""
    row = report.rows.get(network)
    return report.shift["networks"][network]["clean"] if row is None or row.accuracy is None else row.accuracy


def strips(report: Report) -> dict[str, list[str]]:
    """Pictures by the name of the table's row: those that the report holds, none from elsewhere."""
    shift = report.shift
    found = {"clean": shift.get("original", []), **{_words(n): p for n, p in shift.get("pictures", {}).items()}}
    return {name: [uri for uri in uris if uri.startswith(PNG)] for name, uris in found.items()}


def caption(report: Report) -> str:
    """What was shown to the networks, in a sentence."""
    shift = report.shift
    severities = ", ".join(map(str, shift["severities"]))
    first = next(iter(shift["networks"].values()))
    return (
        f"{shift['samples']:,}{_of_all(report)} test samples under {len(first['accuracy'])} corruptions at severity "
        f"{severities} of 5, the same for every network. The interval is what so few samples leave. mCE is the mean "
        "error under corruption over that of the dense network: below 100, pruning helped. The relative one "
        f"compares what is lost: clean accuracy{_on(report)} less the mean under shift. A dash stands where that of "
        "the dense network is within its standard error."
    )


def _of_all(report: Report) -> str:
    """Of how many test samples, where the clean accuracy is that of more."""
    whole = report.rows[DENSE].samples
    return f" of the {whole:,}" if whole > report.shift["samples"] else ""


def _on(report: Report) -> str:
    return f" on these {report.shift['samples']:,}" if _of_all(report) else ""


def picture_uri(picture: Tensor) -> str:
    """A picture [1 or 3, height, width] in [0, 1] as the address of a PNG that holds it."""
    levels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    factor = max(1, LEAST_SIDE // max(levels.shape[1:]))
    levels = levels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    channels, height, width = levels.shape
    rows = levels.permute(1, 2, 0).reshape(height, width * channels).numpy()
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(raw, 9)), _chunk(b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    return PNG + base64.b64encode(data).decode()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _examples(pictures: Tensor, name: str, severities: list[int], seed: int) -> Tensor:
    return corrupt(pictures[:SHOWN], name, severities[-1], seed=seed)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _words(name: str) -> str:
    return name.replace("_", " ")


def _interval(network: Mapping[str, Any]) -> str:
    low, high = network["interval"]
    return f"{100 * low:.1f} – {100 * high:.1f}"


def _error(ratio: float | None) -> str:
    return MISSING if ratio is None else f"{100 * ratio:.0f}"
