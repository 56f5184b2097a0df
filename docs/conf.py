"""Sphinx: furo for the looks, MyST for the pages, autodoc for the reference."""

import shutil
import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.ext import viewcode

sys.path.insert(0, str(Path(__file__).parent.parent))

from docs import reference

project = "nervure"
author = "The nervure developers"
project_copyright = "The nervure developers"
release = version = installed("nervure")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.doctest", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "nervure"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# The reference is built without the libraries whose loops they join.
autodoc_mock_imports = ["lightning", "pytorch_lightning", "transformers"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Docstring examples run in their own module's namespace, under pytest; here only what a page marks as a test runs.
doctest_test_doctest_blocks = ""


def name_as_the_source_does(app: Sphinx, doctree: Any) -> None:
    """Give each object the anchor that its line in the source links back to.

    A file's lines all link by the module under which its first object was shown, others may be shown under another.
    """
    for signature in doctree.findall(addnodes.desc_signature):
        name, shown = signature.get("fullname"), signature.get("module")
        source = shown and getattr(app.env, "_viewcode_modules", {}).get(viewcode._get_full_modname(shown, name))
        anchor = f"{source[3]}.{name}" if source else ""
        if anchor and anchor not in signature["ids"]:
            signature["ids"].append(anchor)


def setup(app: Sphinx) -> None:
    """Write the reference before Sphinx looks for pages."""
    if reference.write_pages():
        # What moved to another page would be told twice, and sources would link to where it was.
        (app.doctreedir / "environment.pickle").unlink(missing_ok=True)
        shutil.rmtree(app.outdir / "_modules", ignore_errors=True)
    app.connect("doctree-read", name_as_the_source_does, priority=900)
