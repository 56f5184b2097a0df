"""The version of nervure, for all that writes it down."""

__version__ = "0.2.0"
