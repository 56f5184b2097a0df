"""Names of operators that do the same in the eyes of every pass over a tape."""

BATCH_NORMS = (
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "batch_norm",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
    "cudnn_batch_norm",
)
NEW = ("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided")
"""A tensor of a size of its own, whose values do not depend on the one it is asked of."""
LIKE = ("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
"""A tensor of the size of another one, whose values do not depend on it."""
FOURIER = ("_fft_c2c", "_fft_r2c", "_fft_c2r")
TOLD = ("_local_scalar_dense", "equal", "is_same_size")
"""What is said about a tensor in plain numbers."""
FAKE_QUANTISED = (
    "fake_quantize_per_tensor_affine",
    "fake_quantize_per_channel_affine",
    "fake_quantize_per_tensor_affine_cachemask",
    "fake_quantize_per_channel_affine_cachemask",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    "_fake_quantize_learnable_per_tensor_affine",
    "_fake_quantize_learnable_per_channel_affine",
)
"""Rounds to what whole numbers of few bits could say."""
