"""Decoders of transformers as GGUF files, which llama.cpp and its kin run."""

from nervure.export.gguf.decoder import Decoder, read_decoder
from nervure.export.gguf.gguf_file import PRECISIONS, GgufReader, write_gguf
from nervure.export.gguf.reference_decoder import FileDecoder, check_decoder
from nervure.export.gguf.vocabulary import require_tokenizer

__all__ = [
    "PRECISIONS",
    "Decoder",
    "FileDecoder",
    "GgufReader",
    "check_decoder",
    "read_decoder",
    "require_tokenizer",
    "write_gguf",
]
