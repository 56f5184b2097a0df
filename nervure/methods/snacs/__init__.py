"""SNACS: connectivity between filters decides, within limits that the network itself tells."""

from nervure.methods.snacs.snacs import SNACS

__all__ = ["SNACS"]
