"""Networks as files: saved to be loaded again, and exported for other engines."""

from nervure.core.renamed import old_names
from nervure.export.card import Card
from nervure.export.checking import FileDifference
from nervure.export.formats import FORMATS, Format
from nervure.export.pretrained import SavedFolder, save_pretrained
from nervure.export.saving import load, load_state, read_header, save, save_state
from nervure.export.state import versions
from nervure.export.writing import ExportedFile, export, require_format

__all__ = [
    "FORMATS",
    "Card",
    "ExportedFile",
    "FileDifference",
    "Format",
    "SavedFolder",
    "export",
    "load",
    "load_state",
    "read_header",
    "require_format",
    "save",
    "save_pretrained",
    "save_state",
    "versions",
]

__getattr__ = old_names(__name__)
