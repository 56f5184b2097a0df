"""Width pruning: SNACS, its ablations and the yardsticks under one protocol; writes docs/results/pruning.*.

Run `python benchmarks/pruning.py`; it goes on where it was stopped, and trials whose line is in
docs/results/pruning.jsonl are not run again. The study is benchmarks/pruning.toml.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import RESULTS, RUNS, pack, read_rows, sources_of
from nervure import Study, compare
from nervure.report.comparison_report import write_comparison

STUDY = Path(__file__).with_suffix(".toml")


def main() -> None:
    """Run what is not done yet, then write the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, default=STUDY)
    parser.add_argument("--folder", type=Path, default=RUNS / "pruning", help="trained networks stay here")
    parser.add_argument("--limit", type=int, help="run so many trials at most; 0: only write the pages")
    options = parser.parse_args()
    study, name = Study.from_toml(options.study), options.study.stem
    results, published = options.folder / "results.jsonl", RESULTS / f"{name}.jsonl"
    options.folder.mkdir(parents=True, exist_ok=True)
    if not results.exists() and (known := read_rows(published)):
        results.write_text("".join(json.dumps(row) + "\n" for row in known))
    outcomes = compare(study, folder=options.folder, limit=options.limit)
    rows = [asdict(outcome) for outcome in outcomes]
    pack(published, rows)
    write_comparison(outcomes, RESULTS, title=study.study.title, baseline=study.study.baseline, name=name)
    reading, page = options.study.with_suffix(".md"), RESULTS / f"{name}.md"
    title, tables = page.read_text().split("\n", 1)
    said = f"\n{reading.read_text().strip()}\n" if reading.exists() else ""
    sources = sources_of([{"commit": row["provenance"].get("commit", "")} for row in rows])
    page.write_text(f"{title}\n{said}{tables.rstrip()}\n\n{sources}\n")
    print(f"wrote {RESULTS / name}.md")


if __name__ == "__main__":
    main()
