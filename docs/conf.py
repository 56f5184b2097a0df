"""Sphinx: furo for the looks, MyST for the pages, autodoc for the reference."""

from importlib.metadata import version as installed

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
