"""A model in a folder, pruned layer by layer: one layer at a time is in memory."""

from nervure.streaming.prune_folder import StreamedFolder, prune_folder
from nervure.streaming.streamed_run import StreamedLayer

__all__ = ["StreamedFolder", "StreamedLayer", "prune_folder"]
