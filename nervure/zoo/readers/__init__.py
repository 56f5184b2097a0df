"""Readers of data sets in the formats they are published in: files in, :class:`~nervure.zoo.readers.raw.Raw` out."""
