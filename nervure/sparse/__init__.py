"""Masked models made faster for inference, where the clock says that zeros pay."""

from nervure.sparse.compile import compile_sparse
from nervure.sparse.compiled import CompiledSparse, LayerChoice
from nervure.sparse.layers import Compacted, SparseConv2d, SparseLinear, SparseMatrix

__all__ = [
    "Compacted",
    "CompiledSparse",
    "LayerChoice",
    "SparseConv2d",
    "SparseLinear",
    "SparseMatrix",
    "compile_sparse",
]
