"""``python -m docs.screenshot runs/demo-sweep/sweep.html docs/report.png`` pictures a page for the README.

Needs Chromium, and pillow (it comes with the extra 'data').
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COLOURS = 160
"""Few, since a picture in a repository stays in it for ever."""


def picture(page: Path, to: Path, width: int, height: int, top: int) -> None:
    """Write what a browser shows of a page: pixels ``top`` to ``top + height`` of it."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"none of {', '.join(BROWSERS)} is installed.")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}/user"]
        size = [f"--window-size={width},{top + height}", f"--screenshot={shot}"]
        subprocess.run([browser, *flags, *size, page.resolve().as_uri()], check=True, capture_output=True)
        with Image.open(shot) as image:
            image.crop((0, top, width, top + height)).convert("RGB").quantize(COLOURS).save(to, optimize=True)
    print(f"{to}: {to.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("to", type=Path)
    parser.add_argument("--width", type=int, default=1000, help="pixels")
    parser.add_argument("--height", type=int, default=850, help="pixels")
    parser.add_argument("--top", type=int, default=0, help="pixels of the page that are left out above")
    told = parser.parse_args()
    picture(told.page, told.to, told.width, told.height, told.top)
