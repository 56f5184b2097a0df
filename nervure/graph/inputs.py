"""Where helpers about inputs were: now in ``core.inputs``, ``core.tensors`` and ``graph.models``."""

from nervure.core.inputs import (
    CONTENTS,
    as_inputs,
    examples_of,
    forward,
    placed_like,
    plain,
    require_shallow,
    resize_batch,
    run_example,
    samples_of,
)
from nervure.core.tensors import (
    describe_example,
    digest_of,
    has_shape_only,
    is_cache,
    outputs_by_name,
    outputs_in,
    require_numbers,
    tensors_in,
)
from nervure.graph.models import evaluating, is_weightless, unwrap, without_fakes

__all__ = [
    "CONTENTS",
    "as_inputs",
    "describe_example",
    "digest_of",
    "evaluating",
    "examples_of",
    "forward",
    "has_shape_only",
    "is_cache",
    "is_weightless",
    "outputs_by_name",
    "outputs_in",
    "placed_like",
    "plain",
    "require_numbers",
    "require_shallow",
    "resize_batch",
    "run_example",
    "samples_of",
    "tensors_in",
    "unwrap",
    "without_fakes",
]
