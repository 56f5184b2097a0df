"""Width pruning: SNACS, its ablations and the yardsticks under one protocol; writes docs/results/pruning.*.

Run `python benchmarks/pruning.py`; it goes on where it was stopped, and trials whose line is in
docs/results/pruning.jsonl are not run again. The study is benchmarks/pruning.toml.
"""

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from nervure import Study, compare
from nervure.report.comparison import write_comparison

HERE = Path(__file__).parent
PAGES = HERE.parent / "docs" / "results"
STUDY = HERE / "pruning.toml"


def main() -> None:
    """Run what is not done yet, then write the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, default=STUDY)
    parser.add_argument("--folder", type=Path, default=Path("runs/pruning"), help="trained networks stay here")
    parser.add_argument("--limit", type=int, help="run so many trials at most; 0: only write the pages")
    options = parser.parse_args()
    study, name = Study.from_toml(options.study), options.study.stem
    results, published = options.folder / "results.jsonl", PAGES / f"{name}.jsonl"
    options.folder.mkdir(parents=True, exist_ok=True)
    if published.exists() and not results.exists():
        shutil.copy(published, results)
    outcomes = compare(study, folder=options.folder, limit=options.limit)
    published.write_text("".join(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes))
    write_comparison(outcomes, PAGES, title=study.study.title, baseline=study.study.baseline, name=name)
    reading, page = options.study.with_suffix(".md"), PAGES / f"{name}.md"
    if reading.exists():
        title, tables = page.read_text().split("\n", 1)
        page.write_text(f"{title}\n\n{reading.read_text().strip()}\n{tables}")
    print(f"wrote {PAGES / name}.md")


if __name__ == "__main__":
    main()
