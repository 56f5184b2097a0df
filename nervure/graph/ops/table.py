"""All that is known of PyTorch's operators, a row for each or for several that are alike.

Labels, neuron graphs, blocks, masks, places for links, sizes, verification and cost look here; what the columns mean
stands at :class:`~nervure.graph.ops.facets.Operator`. What is not here is probed.
"""

from collections.abc import Callable, Mapping

from nervure.graph.ops import contractions, movers, pointwise
from nervure.graph.ops.facets import Family, Operator
from nervure.graph.tape import Entry, Tape

_ROWS = (
    # -- products ------------------------------------------------------------------------------------------------
    Operator("linear", contractions.linear, "linear", reads="sum", macs=True, operands=((1, 0, "rc"),)),
    Operator("mm", contractions.mm, "product", zero="any", reads="sum", macs=True,
             operands=((1, 0, "cr"), (0, 1, "rc"))),
    Operator("bmm", contractions.mm, "product", zero="any", reads="sum", macs=True,
             operands=((1, 0, "scr"), (0, 1, "src"))),
    Operator("_sparse_mm_reduce_impl", contractions.mm, zero="any", reads="sum", macs=True),
    Operator("addmm", contractions.addmm, "product and sum", reads="sum", macs=True,
             operands=((2, 1, "cr"), (1, 2, "rc"))),
    Operator("baddbmm", contractions.addmm, "product and sum", reads="sum", macs=True,
             operands=((2, 1, "scr"), (1, 2, "src"))),
    Operator("_sparse_addmm", contractions.addmm, reads="sum", macs=True),
    Operator("addbmm", pointwise.unknown, operands=((2, 1, "scr"), (1, 2, "src"))),
    Operator("_addmm_activation", pointwise.unknown, operands=((2, 1, "cr"), (1, 2, "rc"))),
    Operator("_grouped_mm", contractions.grouped_mm, "experts", "experts", zero="any", reads="sum", macs=True,
             operands=((1, 0, "scr"),)),
    Operator("_trilinear", contractions.bilinear, "as shaped", "bilinear", zero="any", reads="sum", macs=True,
             operands=((1, 0, "rcc"),)),
    Operator("mv", contractions.mv, "vector product", zero="any", reads="sum", macs=True, operands=((0, 1, "rc"),)),
    Operator("addmv", pointwise.unknown, operands=((1, 2, "rc"),)),
    Operator("dot vdot", contractions.dot, "vector product", zero="any", reads="sum", macs=True),
    Operator("convolution convolution_overrideable _convolution", contractions.convolution, "convolution",
             "convolution", reads="sum", macs=True,
             sized="conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"),
    Operator("_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
             "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention",
             contractions.attention, "attention", reads="sum", macs=True, sized="multi_head_attention_forward"),
    Operator("cdist _cdist_forward _euclidean_dist", contractions.distances, reads="sum"),
    Operator("embedding _embedding_bag _embedding_bag_forward_only", contractions.embedding, "look up", "look-up"),

    # -- element by element --------------------------------------------------------------------------------------
    Operator("relu gelu silu tanh leaky_relu elu hardswish mish", pointwise.pointwise, "as shaped", "activation",
             zero="first"),
    Operator("sigmoid hardtanh softplus", pointwise.pointwise, "as shaped", "activation"),
    Operator("relu6 selu celu softshrink hardshrink prelu _prelu_kernel rrelu_with_noise "
             "expm1 log1p sqrt abs neg sign floor ceil round trunc frac square sin tan asin atan sinh erf erfinv "
             "nan_to_num real imag polar", pointwise.pointwise, zero="first"),
    Operator("hardsigmoid threshold log_sigmoid_forward glu_jvp clamp clamp_min clamp_max "
             "exp exp2 log log2 log10 rsqrt pow reciprocal cos acos cosh atan2 erfc fmod remainder addcdiv where "
             "masked_fill eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or "
             "bitwise_not bitwise_xor isnan isinf isfinite", pointwise.pointwise),
    Operator("add", pointwise.pointwise, "sum", "add", zero="all"),
    Operator("sub rsub lerp add_relu", pointwise.pointwise, "sum", zero="all"),
    Operator("maximum minimum addcmul complex", pointwise.pointwise, zero="all"),
    # As an einsum it contracts over a single unit, and costs.
    Operator("mul", pointwise.multiply, zero="any", macs=True),
    Operator("div", pointwise.pointwise, "as shaped", "quotient", zero="first"),
    Operator("tril triu", pointwise.pointwise, "move", zero="first"),
    Operator("fake_quantize_per_tensor_affine fake_quantize_per_channel_affine "
             "fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask "
             "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams _fake_quantize_learnable_per_tensor_affine "
             "_fake_quantize_learnable_per_channel_affine", pointwise.fake_quantised, zero="first"),
    Operator("_fused_moving_avg_obs_fq_helper fused_moving_avg_obs_fake_quant", pointwise.observe, zero="first",
             reads="statistic"),
    Operator("glu", pointwise.glu, "gate"),
    Operator("copy", pointwise.copy, "copy", sized="__setitem__"),
    Operator("fill zero normal_ uniform_ random_ exponential_", pointwise.fill, "nothing"),

    # -- over axes -----------------------------------------------------------------------------------------------
    Operator("sum mean amax amin norm linalg_vector_norm var std var_mean std_mean prod logsumexp",
             pointwise.reduction, "reduce", reads="reduction"),
    Operator("any all nansum count_nonzero aminmax", pointwise.reduction, reads="reduction"),
    Operator("max min argmax argmin", pointwise.extreme, "reduce", reads="places"),
    Operator("median", pointwise.extreme, reads="places"),
    Operator("_softmax _log_softmax softmax log_softmax _safe_softmax", pointwise.along_axis, reads="statistic"),
    # Without what leaves, a running sum goes on as it was: later ones may count from there (ends of stretches).
    Operator("cumsum", pointwise.along_axis, "mix along", reads="sum"),
    Operator("cumprod logcumsumexp", pointwise.along_axis, "mix along", reads="statistic"),
    Operator("topk", pointwise.top, "mix along", reads="places"),
    Operator("sort", pointwise.pin_order, "mix along"),
    Operator("histc", pointwise.count_places, "hub", sized="histc"),
    Operator("argsort cummax cummin kthvalue mode msort", pointwise.pin_order),
    Operator("_fft_c2c _fft_r2c _fft_c2r", pointwise.fourier, "mix along"),
    Operator("segment_reduce", pointwise.segment_reduce),

    # -- norms ---------------------------------------------------------------------------------------------------
    Operator("native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training batch_norm "
             "_batch_norm_with_update _batch_norm_no_update cudnn_batch_norm miopen_batch_norm",
             pointwise.batch_norm, "normalise", "batch norm", reads="statistic"),
    Operator("native_layer_norm layer_norm", pointwise.layer_norm, "normalise", "layer norm", reads="trailing",
             sized="layer_norm"),
    Operator("rms_norm _fused_rms_norm", pointwise.rms_norm, "normalise", reads="trailing", sized="rms_norm"),
    Operator("native_group_norm", pointwise.group_norm, "normalise", reads="blocks", sized="group_norm"),
    Operator("_weight_norm_interface", pointwise.weight_norm, "as shaped", "quotient", zero="first"),

    # -- space ---------------------------------------------------------------------------------------------------
    Operator("max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d", pointwise.spatial(1), "as shaped",
             "pool"),
    Operator("max_pool2d_with_indices max_pool2d avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool2d "
             "adaptive_max_pool2d fractional_max_pool2d", pointwise.spatial(2), "as shaped", "pool"),
    Operator("max_pool3d_with_indices avg_pool3d _adaptive_avg_pool3d adaptive_avg_pool3d adaptive_max_pool3d",
             pointwise.spatial(3), "as shaped", "pool"),
    Operator("upsample_nearest1d upsample_linear1d", pointwise.spatial(1)),
    Operator("upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa "
             "_upsample_bicubic2d_aa _upsample_nearest_exact2d", pointwise.spatial(2)),
    Operator("upsample_nearest3d upsample_trilinear3d", pointwise.spatial(3)),
    Operator("reflection_pad1d replication_pad1d", pointwise.spatial(1), "move"),
    Operator("reflection_pad2d replication_pad2d", pointwise.spatial(2), "move"),
    Operator("reflection_pad3d replication_pad3d", pointwise.spatial(3), "move"),
    Operator("max_unpool2d max_unpool3d", pointwise.unpool),
    Operator("grid_sampler_2d grid_sampler_3d", pointwise.grid_sample, "sample"),
    Operator("affine_grid_generator", pointwise.affine_grid),

    # -- what only moves -----------------------------------------------------------------------------------------
    Operator("clone detach alias contiguous _to_copy lift_fresh lift_fresh_copy lift", movers.same, "as shaped",
             "copy", moves="first", zero="first"),
    Operator("dropout native_dropout _conj", movers.same, zero="first"),
    Operator("bernoulli alpha_dropout", movers.same),
    Operator("view _unsafe_view reshape _reshape_alias squeeze unsqueeze flatten unflatten _reshape_copy view_copy",
             movers.view, "reshape", "view", moves="first", zero="first", sized="view reshape unflatten",
             lengths="view reshape unflatten"),
    Operator("transpose t swapaxes swapdims", movers.transpose, "reorder", moves="first", zero="first"),
    Operator("permute", movers.permute, "reorder", moves="first", zero="first"),
    Operator("movedim", pointwise.unknown, "reorder", moves="first", zero="first"),
    Operator("expand", movers.expand, "expand", moves="first", zero="first", sized="expand broadcast_to",
             lengths="expand broadcast_to"),
    Operator("broadcast_to", pointwise.unknown, "expand", moves="first", zero="first"),
    Operator("repeat", movers.repeat, "move", moves="first", zero="first", lengths="repeat tile"),
    Operator("tile", pointwise.unknown, "move", moves="first", zero="first"),
    # Given repeats alone it makes an index.
    Operator("repeat_interleave", pointwise.unknown, "move"),
    Operator("as_strided", movers.as_strided, "move", moves="first", zero="first"),
    Operator("slice narrow", movers.slice_, "move along", moves="first", zero="first", sized="narrow __getitem__"),
    Operator("split split_with_sizes split_with_sizes_copy unsafe_split unsafe_split_with_sizes chunk unsafe_chunk",
             movers.split, "split", moves="first", zero="first", sized="split split_with_sizes chunk"),
    Operator("select", movers.select, "move along", moves="first", zero="first"),
    Operator("unbind", movers.unbind, "move along", moves="first", zero="first"),
    Operator("cat", movers.cat, "move along", "concatenation", moves="all", zero="all"),
    Operator("stack", movers.stack, "stack", moves="all", zero="all"),
    # With zeros, as nearly all padding is.
    Operator("constant_pad_nd", movers.pad, "pad", moves="all", zero="first"),
    Operator("flip", movers.flip, "move", moves="first", zero="first"),
    Operator("roll", movers.roll, "move", moves="first", zero="first"),
    Operator("pixel_shuffle", movers.pixel_shuffle, "move", moves="first", zero="first"),
    Operator("pixel_unshuffle", movers.pixel_unshuffle, "move", moves="first", zero="first"),
    Operator("channel_shuffle native_channel_shuffle unfold diagonal", pointwise.unknown, "move", moves="first",
             zero="first"),
    Operator("im2col", movers.unfold, "move"),
    Operator("col2im", movers.fold),
    Operator("view_as_complex", movers.as_complex, "pair"),
    Operator("view_as_real", movers.as_real, "unpair"),
    Operator("_pack_padded_sequence", movers.pack),

    # -- by index ------------------------------------------------------------------------------------------------
    Operator("index_select", movers.index_select, "pick", "look-up", moves="first", zero="first"),
    Operator("index", movers.index, "pick", "look-up", moves="first", zero="first"),
    Operator("gather", movers.gather, "pick", "look-up", moves="first", zero="first"),
    Operator("take_along_dim", pointwise.unknown, "pick"),
    Operator("masked_select", movers.masked_select, moves="first", zero="first"),
    Operator("masked_scatter", movers.masked_scatter),
    Operator("index_add index_copy", movers.index_add, "put"),
    Operator("scatter scatter_add scatter_reduce", movers.scatter, "put"),
    Operator("index_put _index_put_impl", movers.index_put, "put"),
    Operator("slice_scatter select_scatter", pointwise.unknown, "put"),

    # -- from sizes alone ----------------------------------------------------------------------------------------
    Operator("zeros ones full empty scalar_tensor new_zeros new_ones new_full new_empty new_empty_strided",
             pointwise.constant, "nothing", sized="zeros ones full empty new_zeros new_ones new_full new_empty"),
    Operator("eye", pointwise.identity, sized="eye"),
    Operator("zeros_like ones_like full_like empty_like rand_like randn_like", pointwise.like, "nothing"),
    Operator("_local_scalar_dense equal is_same_size", pointwise.nothing, "nothing"),
    Operator("resize", pointwise.resize),
)  # fmt: skip

KNOWN: Mapping[str, Operator] = {name: row for row in _ROWS for name in row.names.split()}
UNKNOWN = Operator("", pointwise.unknown)
GIVEN: dict[str, Callable[[Tape, Entry], Operator]] = {}
"""What users say of operations (see ``nervure.rules``); it goes before what nervure knows itself."""
SIZED_CALLS = frozenset(name for row in _ROWS for name in row.sized.split())
"""Calls of which the rules look at the sizes themselves."""


def find_operator(tape: Tape, entry: Entry) -> Operator:
    """What is known of the operator of an entry."""
    for name in (entry.name, entry.name.removesuffix("_")):
        if name in GIVEN:
            return GIVEN[name](tape, entry)
        if name in KNOWN:
            return KNOWN[name]
    return UNKNOWN


def family(name: str) -> Family:
    """What PyTorch's operator of that name is to those that look for operators of a kind."""
    return KNOWN.get(name, KNOWN.get(name.removesuffix("_"), UNKNOWN)).family
