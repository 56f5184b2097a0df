"""Families for the wide zoo beyond classifiers: detectors, segmentation, diffusion, speech, vision-language, experts.

Tiny members with random weights, built without a download, called as their users call them (caches are left on). What
is not installed is left out. ultralytics is under the AGPL: it is imported here only, and only where it is installed.
"""

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Case = tuple[Callable[[], nn.Module], Any]
Cases = Iterator[tuple[str, Case]]
WIDTHS: dict[str, Any] = {
    "hidden_size": 60,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 92,
}
"""Widths that are no power of two; heads of ten."""
TEXT = WIDTHS | {"vocab_size": 99, "num_key_value_heads": 3, "max_position_embeddings": 64, "pad_token_id": 0}
ENCODER = WIDTHS | {"vocab_size": 99, "max_position_embeddings": 64}
VISION = WIDTHS | {"image_size": 32, "patch_size": 8}


def has(name: str) -> bool:
    """Whether a library is installed."""
    return importlib.util.find_spec(name) is not None


def noise(*shape: int) -> Tensor:
    """Standard normal values, the same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def words(*shape: int, high: int = 90) -> Tensor:
    """Numbers of tokens, none of them special."""
    return torch.randint(4, high, shape, generator=torch.Generator().manual_seed(0))


# -- ultralytics -----------------------------------------------------------------------------------------------------

YOLO = [
    "yolov3-tiny",
    "yolov3",
    "yolov5n",
    "yolov5n-p6",
    "yolov6n",
    "yolov8n",
    "yolov8n-p2",
    "yolov8n-ghost",
    "yolov8n-seg",
    "yolov8n-pose",
    "yolov8n-obb",
    "yolov8n-cls",
    "yolov8s-world",
    "yolov9t",
    "yolov9s",
    "yolov9c",
    "yolov10n",
    "yolov10s",
    "yolo11n",
    "yolo11n-seg",
    "yolo11n-pose",
    "yolo11n-obb",
    "yolo11n-cls",
    "yolo12n",
    "yolo12n-seg",
    "yolo26n",
    "yolo26n-seg",
    "yolo26n-pose",
    "yolo26n-obb",
    "yolo26n-cls",
    "yolov8n-rtdetr",
    "rtdetr-l",
    "rtdetr-resnet50",
]


def ultralytics_cases() -> Cases:
    """Every generation of YOLO that the installed package describes, and its RT-DETR."""
    if not has("ultralytics"):
        return
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())
    os.environ.setdefault("YOLO_OFFLINE", "true")
    for name in YOLO:
        size = 128 if name.endswith("p6") else 96
        yield f"ultralytics/{name}", (lambda n=name: yolo(n), noise(1, 3, size, size))


def yolo(name: str) -> nn.Module:
    """The network that a file of the package describes."""
    from ultralytics.nn import tasks

    ends = {"seg": "SegmentationModel", "pose": "PoseModel", "obb": "OBBModel", "cls": "ClassificationModel",
            "world": "WorldModel", "rtdetr": "RTDETRDetectionModel"}  # fmt: skip
    end = "rtdetr" if name.startswith("rtdetr") else name.rpartition("-")[2]
    model: nn.Module = getattr(tasks, ends.get(end, "DetectionModel"))(f"{name}.yaml", verbose=False)
    return model


# -- segmentation_models_pytorch -------------------------------------------------------------------------------------

SEGMENTATION = {
    "Unet": "resnet18", "UnetPlusPlus": "resnet18", "MAnet": "resnet18", "Linknet": "resnet18", "FPN": "resnet18",
    "PSPNet": "resnet18", "DeepLabV3": "resnet18", "DeepLabV3Plus": "resnet18", "PAN": "resnet18", "UPerNet": "resnet18",
    "Segformer": "resnet18",
}  # fmt: skip
ENCODERS = ("mobilenet_v2", "efficientnet-b0", "mit_b0", "timm-regnetx_002", "densenet121", "se_resnet50", "mobileone_s0",
            "dpn68", "vgg11_bn", "tu-convnext_atto")  # fmt: skip


def segmentation_cases() -> Cases:
    """Each decoder on a plain encoder, one decoder on many encoders, two that classify beside."""
    if not has("segmentation_models_pytorch"):
        return
    import segmentation_models_pytorch as smp

    def case(decoder: str, encoder: str, **options: Any) -> tuple[str, Case]:
        build = lambda: getattr(smp, decoder)(encoder, encoder_weights=None, classes=3, **options)  # noqa: E731
        size = 128 if decoder == "PAN" else 64
        return f"segmentation/{decoder}-{encoder}", (build, noise(2, 3, size, size))

    for decoder, encoder in SEGMENTATION.items():
        yield case(decoder, encoder)
    for encoder in ENCODERS:
        yield case("Unet", encoder)
    yield case("FPN", "mobilenet_v2", aux_params={"classes": 4, "dropout": 0.1})
    yield case("Unet", "resnet34", decoder_attention_type="scse")


# -- diffusers -------------------------------------------------------------------------------------------------------


def diffusion_cases() -> Cases:
    """UNets, autoencoders and transformers that denoise."""
    if not has("diffusers"):
        return
    import diffusers

    blocks = {"block_out_channels": (20, 36), "layers_per_block": 1, "norm_num_groups": 4}
    at = {"timestep": torch.tensor([3, 8])}
    flow = {"timestep": torch.tensor([0.3, 0.8])}
    cross = {"cross_attention_dim": 24, "attention_head_dim": 4}
    down2, up2 = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    table: dict[str, tuple[str, dict[str, Any], Any]] = {
        "UNet2D": ("UNet2DModel", blocks | {"sample_size": 16, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                   "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 4},
                   {"sample": noise(2, 3, 16, 16)} | at),
        "UNet2DCondition": ("UNet2DConditionModel", blocks | cross | {"sample_size": 16, "down_block_types": down2,
                            "up_block_types": up2}, {"sample": noise(2, 4, 16, 16), "encoder_hidden_states": noise(2, 5, 24)} | at),
        "UNet2DConditionXL": ("UNet2DConditionModel", blocks | cross | {"sample_size": 16, "down_block_types": down2,
                              "up_block_types": up2, "use_linear_projection": True, "transformer_layers_per_block": (1, 2),
                              "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
                              "projection_class_embeddings_input_dim": 64},
                              {"sample": noise(2, 4, 16, 16), "encoder_hidden_states": noise(2, 5, 24),
                               "added_cond_kwargs": {"text_embeds": noise(2, 16), "time_ids": noise(2, 6)}} | at),
        "UNet1D": ("UNet1DModel", {"sample_size": 64, "in_channels": 2, "out_channels": 2, "extra_in_channels": 40,
                   "block_out_channels": (20, 36), "down_block_types": ("DownBlock1DNoSkip", "DownBlock1D"),
                   "up_block_types": ("UpBlock1D", "UpBlock1DNoSkip"), "layers_per_block": 1},
                   {"sample": noise(2, 2, 64), "timestep": 3}),
        "UNet3D": ("UNet3DConditionModel", blocks | cross | {"sample_size": 16, "down_block_types": ("CrossAttnDownBlock3D",
                   "DownBlock3D"), "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")},
                   {"sample": noise(1, 4, 2, 16, 16), "encoder_hidden_states": noise(1, 5, 24), "timestep": 3}),
        "ControlNet": ("ControlNetModel", blocks | cross | {"down_block_types": down2, "conditioning_embedding_out_channels": (6, 10)},
                       {"sample": noise(2, 4, 16, 16), "encoder_hidden_states": noise(2, 5, 24),
                        "controlnet_cond": noise(2, 3, 32, 32)} | at),
        "AutoencoderKL": ("AutoencoderKL", blocks | {"down_block_types": ("DownEncoderBlock2D",) * 2,
                          "up_block_types": ("UpDecoderBlock2D",) * 2}, {"sample": noise(2, 3, 32, 32)}),
        "AutoencoderTiny": ("AutoencoderTiny", {"encoder_block_out_channels": (20, 20), "decoder_block_out_channels": (20, 20),
                            "num_encoder_blocks": (1, 2), "num_decoder_blocks": (2, 1)}, {"sample": noise(2, 3, 32, 32)}),
        "VQModel": ("VQModel", blocks | {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types":
                    ("UpDecoderBlock2D",) * 2, "num_vq_embeddings": 17}, {"sample": noise(2, 3, 32, 32)}),
        "AutoencoderDC": ("AutoencoderDC", {"attention_head_dim": 6, "encoder_block_out_channels": (18, 36),
                          "decoder_block_out_channels": (18, 36), "encoder_layers_per_block": (1, 1),
                          "decoder_layers_per_block": (1, 1), "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
                          "decoder_block_types": ("ResBlock", "EfficientViTBlock"), "encoder_qkv_multiscales": ((), (5,)),
                          "decoder_qkv_multiscales": ((), (5,)), "latent_channels": 6, "decoder_norm_types": "rms_norm",
                          "decoder_act_fns": "silu"}, {"sample": noise(1, 3, 32, 32)}),
        "AutoencoderOobleck": ("AutoencoderOobleck", {"encoder_hidden_size": 12, "downsampling_ratios": [2, 4],
                               "channel_multiples": [1, 2], "decoder_channels": 12, "decoder_input_channels": 6,
                               "audio_channels": 2}, {"sample": noise(1, 2, 64)}),
        "DiT": ("DiTTransformer2DModel", {"num_attention_heads": 3, "attention_head_dim": 12, "in_channels": 4, "out_channels": 8,
                "num_layers": 2, "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10, "norm_type": "ada_norm_zero"},
                {"hidden_states": noise(2, 4, 8, 8), "class_labels": torch.tensor([1, 2])} | at),
        "PixArt": ("PixArtTransformer2DModel", {"num_attention_heads": 3, "attention_head_dim": 12, "in_channels": 4,
                   "out_channels": 8, "num_layers": 2, "sample_size": 8, "cross_attention_dim": 36, "caption_channels": 14,
                   "use_additional_conditions": False}, {"hidden_states": noise(2, 4, 8, 8), "encoder_hidden_states":
                   noise(2, 5, 14), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}} | at),
        "SD3": ("SD3Transformer2DModel", {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2,
                "attention_head_dim": 12, "num_attention_heads": 3, "joint_attention_dim": 14, "caption_projection_dim": 36,
                "pooled_projection_dim": 12, "out_channels": 4}, {"hidden_states": noise(2, 4, 8, 8), "encoder_hidden_states":
                noise(2, 5, 14), "pooled_projections": noise(2, 12)} | flow),
        "Flux": ("FluxTransformer2DModel", {"patch_size": 1, "in_channels": 6, "num_layers": 1, "num_single_layers": 1,
                 "attention_head_dim": 12, "num_attention_heads": 3, "joint_attention_dim": 14, "pooled_projection_dim": 12,
                 "axes_dims_rope": [4, 4, 4]}, {"hidden_states": noise(2, 16, 6), "encoder_hidden_states": noise(2, 5, 14),
                 "pooled_projections": noise(2, 12), "img_ids": noise(16, 3), "txt_ids": noise(5, 3)} | flow),
        "Sana": ("SanaTransformer2DModel", {"in_channels": 4, "out_channels": 4, "num_attention_heads": 3, "attention_head_dim": 10,
                 "num_layers": 2, "num_cross_attention_heads": 3, "cross_attention_head_dim": 10, "cross_attention_dim": 30,
                 "caption_channels": 14, "sample_size": 8, "patch_size": 1}, {"hidden_states": noise(2, 4, 8, 8),
                 "encoder_hidden_states": noise(2, 5, 14)} | at),
        "AuraFlow": ("AuraFlowTransformer2DModel", {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_mmdit_layers": 1,
                     "num_single_dit_layers": 1, "attention_head_dim": 10, "num_attention_heads": 3, "joint_attention_dim": 14,
                     "caption_projection_dim": 30, "out_channels": 4, "pos_embed_max_size": 64},
                     {"hidden_states": noise(2, 4, 8, 8), "encoder_hidden_states": noise(2, 5, 14)} | flow),
        "LTX": ("LTXVideoTransformer3DModel", {"in_channels": 6, "out_channels": 6, "num_attention_heads": 3,
                "attention_head_dim": 10, "cross_attention_dim": 30, "num_layers": 2, "caption_channels": 14},
                {"hidden_states": noise(2, 12, 6), "encoder_hidden_states": noise(2, 5, 14), "encoder_attention_mask":
                 torch.ones(2, 5), "num_frames": 3, "height": 2, "width": 2} | at),
        "CogVideoX": ("CogVideoXTransformer3DModel", {"num_attention_heads": 4, "attention_head_dim": 12, "in_channels": 4,
                      "out_channels": 4, "time_embed_dim": 8, "text_embed_dim": 14, "num_layers": 2, "sample_width": 8,
                      "sample_height": 8, "sample_frames": 5, "max_text_seq_length": 5},
                      {"hidden_states": noise(1, 2, 4, 8, 8), "encoder_hidden_states": noise(1, 5, 14),
                       "timestep": torch.tensor([3])}),
        "Wan": ("WanTransformer3DModel", {"num_attention_heads": 3, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
                "text_dim": 14, "freq_dim": 16, "ffn_dim": 46, "num_layers": 2, "rope_max_seq_len": 32},
                {"hidden_states": noise(1, 4, 2, 8, 8), "encoder_hidden_states": noise(1, 5, 14), "timestep": torch.tensor([3])}),
        "Prior": ("PriorTransformer", {"num_attention_heads": 3, "attention_head_dim": 10, "num_layers": 2, "embedding_dim": 14,
                  "num_embeddings": 5, "additional_embeddings": 4}, {"hidden_states": noise(2, 14), "proj_embedding":
                  noise(2, 14), "encoder_hidden_states": noise(2, 5, 14)} | at),
        "UVit": ("UVit2DModel", {"hidden_size": 36, "cond_embed_dim": 36, "micro_cond_encode_dim": 4, "micro_cond_embed_dim": 20,
                 "encoder_hidden_size": 14, "vocab_size": 19, "codebook_size": 16, "num_hidden_layers": 2, "num_attention_heads": 3,
                 "intermediate_size": 46, "block_out_channels": 36, "in_channels": 36, "block_num_heads": 3},
                 {"input_ids": words(2, 4, 4, high=16), "encoder_hidden_states": noise(2, 5, 14), "pooled_text_emb": noise(2, 36),
                  "micro_conds": noise(2, 5)}),
        "StableCascade": ("StableCascadeUNet", {"block_out_channels": (20, 36), "num_attention_heads": (0, 4), "conditioning_dim": 36,
                          "down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1), "down_blocks_repeat_mappers":
                          (1, 1), "up_blocks_repeat_mappers": (1, 1), "clip_text_pooled_in_channels": 14, "in_channels": 4,
                          "out_channels": 4, "block_types_per_layer": (("SDCascadeResBlock", "SDCascadeTimestepBlock"),
                          ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")), "timestep_ratio_embedding_dim": 8,
                          "self_attn": True, "kernel_size": 3, "switch_level": [False], "patch_size": 1, "timestep_conditioning_type":
                          ["sca"]}, {"sample": noise(2, 4, 8, 8), "timestep_ratio": torch.tensor([0.3, 0.8]), "clip_text_pooled":
                          noise(2, 1, 14)}),
    }  # fmt: skip
    for name, (kind, options, example) in table.items():
        if hasattr(diffusers, kind):
            yield f"diffusion/{name}", (lambda k=kind, o=options: getattr(diffusers, k)(**o), example)


# -- transformers ----------------------------------------------------------------------------------------------------


def built(kind: str, config: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
    """Make a model of transformers from the name of its class, its config and what the config says."""
    import transformers

    def make() -> nn.Module:
        model: nn.Module = getattr(transformers, kind)(getattr(transformers, config)(**options))
        return model

    return make


def listed(family: str, table: dict[str, tuple[str, dict[str, Any], Any]]) -> Cases:
    """Cases of a table from class names to config names, options and examples."""
    if not has("transformers"):
        return
    import transformers

    for kind, (config, options, example) in table.items():
        if hasattr(transformers, kind.partition("#")[0]):
            yield f"{family}/{kind}", (built(kind.partition("#")[0], config, options), example)


def expert_cases() -> Cases:
    """Mixtures of experts, called as they come: experts stacked, multiplied in groups, caches on."""
    few = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 28}
    deep = {"num_key_value_heads": 6, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 10,
            "v_head_dim": 10, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 28, "n_group": 1,
            "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}  # fmt: skip
    ids = {"input_ids": words(2, 12)}
    table: dict[str, tuple[str, dict[str, Any], Any]] = {
        "MixtralForCausalLM": ("MixtralConfig", TEXT | {"num_local_experts": 5}, ids),
        "Qwen2MoeForCausalLM": ("Qwen2MoeConfig", TEXT | few | {"shared_expert_intermediate_size": 36}, ids),
        "Qwen3MoeForCausalLM": ("Qwen3MoeConfig", TEXT | few | {"head_dim": 10}, ids),
        "DeepseekV2ForCausalLM": ("DeepseekV2Config", TEXT | deep, ids),
        "DeepseekV3ForCausalLM": ("DeepseekV3Config", TEXT | deep, ids),
        "GptOssForCausalLM": ("GptOssConfig", TEXT | {"num_local_experts": 5, "head_dim": 10}, ids),
        "OlmoeForCausalLM": ("OlmoeConfig", TEXT | {"num_experts": 5, "num_experts_per_tok": 2}, ids),
        "PhimoeForCausalLM": ("PhimoeConfig", TEXT | {"num_local_experts": 5}, ids),
        "GraniteMoeForCausalLM": ("GraniteMoeConfig", TEXT | {"num_local_experts": 5, "num_experts_per_tok": 2}, ids),
        "GraniteMoeSharedForCausalLM": ("GraniteMoeSharedConfig", TEXT | {"num_local_experts": 5, "num_experts_per_tok": 2,
                                        "shared_intermediate_size": 20}, ids),
        "Glm4MoeForCausalLM": ("Glm4MoeConfig", TEXT | {"head_dim": 10, "n_routed_experts": 4, "num_experts_per_tok": 2,
                               "moe_intermediate_size": 28, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}, ids),
        "Ernie4_5_MoeForCausalLM": ("Ernie4_5_MoeConfig", TEXT | {"moe_num_experts": 5, "moe_k": 2, "moe_intermediate_size": 28,
                                    "moe_num_shared_experts": 1, "moe_layer_start_index": 1}, ids),
        "JambaForCausalLM": ("JambaConfig", TEXT | {"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
                             "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4, "mamba_d_conv": 3,
                             "mamba_dt_rank": 5, "use_mamba_kernels": False}, ids),
        "DbrxForCausalLM": ("DbrxConfig", {"d_model": 60, "n_heads": 6, "n_layers": 2, "vocab_size": 99, "max_seq_len": 64,
                            "attn_config": {"kv_n_heads": 3, "clip_qkv": 8.0, "rope_theta": 1000.0}, "ffn_config": {"ffn_hidden_size": 46,
                            "moe_num_experts": 4, "moe_top_k": 2}}, ids),
        "SwitchTransformersForConditionalGeneration": ("SwitchTransformersConfig", {"d_model": 60, "d_kv": 10, "d_ff": 92,
                            "num_layers": 2, "num_heads": 6, "vocab_size": 99, "num_experts": 4, "num_sparse_encoder_layers": 1,
                            "num_sparse_decoder_layers": 1, "num_decoder_layers": 2},
                            ids | {"decoder_input_ids": words(2, 7)}),
        "NllbMoeForConditionalGeneration": ("NllbMoeConfig", {"d_model": 60, "encoder_layers": 2, "decoder_layers": 2,
                            "encoder_attention_heads": 6, "decoder_attention_heads": 6, "encoder_ffn_dim": 92, "decoder_ffn_dim": 92,
                            "vocab_size": 99, "num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2,
                            "max_position_embeddings": 64}, ids | {"decoder_input_ids": words(2, 7)}),
        "Llama4ForCausalLM": ("Llama4TextConfig", TEXT | {"head_dim": 10, "num_local_experts": 4, "intermediate_size_mlp": 44,
                              "attention_chunk_size": 16}, ids),
        "FlexOlmoForCausalLM": ("FlexOlmoConfig", TEXT | {"num_experts": 5, "num_experts_per_tok": 2}, ids),
        "Lfm2MoeForCausalLM": ("Lfm2MoeConfig", TEXT | few | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}, ids),
        "Dots1ForCausalLM": ("Dots1Config", TEXT | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 28,
                             "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "head_dim": 10}, ids),
        "Qwen3NextForCausalLM": ("Qwen3NextConfig", TEXT | few | {"head_dim": 12, "layer_types": ["linear_attention",
                                 "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6,
                                 "linear_value_head_dim": 6, "shared_expert_intermediate_size": 20}, ids),
        "MiniMaxForCausalLM": ("MiniMaxConfig", TEXT | {"num_local_experts": 4, "head_dim": 10}, ids),
        "JetMoeForCausalLM": ("JetMoeConfig", WIDTHS | {"vocab_size": 99, "num_key_value_heads": 3, "kv_channels": 10,
                              "num_local_experts": 4, "max_position_embeddings": 64}, ids),
        "HunYuanMoEV1ForCausalLM": ("HunYuanMoEV1Config", TEXT | {"num_experts": 4, "moe_topk": 2, "head_dim": 10}, ids),
    }  # fmt: skip
    yield from listed("experts", table)


def _image_and_text(image: int, tokens: int, size: int = 32, **more: Any) -> dict[str, Any]:
    """Two samples: a text with places for so many tokens of an image, and the image."""
    text = words(2, tokens + 6)
    text[:, 1 : 1 + tokens] = image
    return {"input_ids": text, "pixel_values": noise(2, 3, size, size)} | more


def vision_language_cases() -> Cases:
    """Images and text in one model: encoders side by side, and decoders that read images."""
    seen = VISION | {"projection_dim": 22}
    text = TEXT | {"vocab_size": 120}
    clip_text = ENCODER | {"projection_dim": 22, "eos_token_id": 2}
    llama = text | {"model_type": "llama"}
    clip = seen | {"model_type": "clip_vision_model"}
    siglip = VISION | {"model_type": "siglip_vision_model"}
    both = {
        "input_ids": words(2, 9),
        "pixel_values": noise(2, 3, 32, 32),
        "attention_mask": torch.ones(2, 9, dtype=torch.long),
    }
    patches = {"pixel_values": noise(32, 3 * 2 * 4 * 4), "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]])}
    qwen_text = words(2, 10)
    qwen_text[:, 1:5] = 111
    qwen = {"image_token_id": 111, "video_token_id": 112, "vision_start_token_id": 113, "vision_end_token_id": 114}
    rope = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 1], "rope_theta": 1000.0}}
    table: dict[str, tuple[str, dict[str, Any], Any]] = {
        "CLIPModel": ("CLIPConfig", {"text_config": clip_text, "vision_config": seen, "projection_dim": 22}, both),
        "SiglipModel": ("SiglipConfig", {"text_config": ENCODER, "vision_config": VISION}, both),
        "ChineseCLIPModel": ("ChineseCLIPConfig", {"text_config": ENCODER, "vision_config": seen, "projection_dim": 22}, both),
        "BlipModel": ("BlipConfig", {"text_config": ENCODER | {"projection_dim": 22}, "vision_config": seen, "projection_dim": 22}, both),
        "BlipForConditionalGeneration": ("BlipConfig", {"text_config": ENCODER | {"bos_token_id": 1, "sep_token_id": 2,
                                         "encoder_hidden_size": 60}, "vision_config": seen}, both),
        "Blip2ForConditionalGeneration": ("Blip2Config", {"vision_config": VISION, "qformer_config": ENCODER | {
            "encoder_hidden_size": 60}, "text_config": {"model_type": "opt", "hidden_size": 60, "num_hidden_layers": 2,
            "num_attention_heads": 6, "ffn_dim": 92, "vocab_size": 120, "max_position_embeddings": 64, "word_embed_proj_dim": 60},
            "num_query_tokens": 4, "image_token_index": 111}, _image_and_text(111, 4)),
        "GitForCausalLM": ("GitConfig", ENCODER | {"vision_config": VISION}, both),
        "ViltModel": ("ViltConfig", ENCODER | {"image_size": 32, "patch_size": 8}, both),
        "LlavaForConditionalGeneration": ("LlavaConfig", {"vision_config": clip, "text_config": llama, "image_token_index": 111,
                                          "vision_feature_layer": -1}, _image_and_text(111, 16)),
        "PaliGemmaForConditionalGeneration": ("PaliGemmaConfig", {"vision_config": siglip | {"projection_dim": 60}, "text_config":
            text | {"model_type": "gemma", "head_dim": 10}, "image_token_index": 111, "projection_dim": 60},
            _image_and_text(111, 16)),
        "Gemma3ForConditionalGeneration": ("Gemma3Config", {"vision_config": siglip, "text_config": text | {"model_type":
            "gemma3_text", "head_dim": 10}, "image_token_index": 111, "mm_tokens_per_image": 4},
            _image_and_text(111, 4, token_type_ids=torch.zeros(2, 10, dtype=torch.long))),
        "InternVLForConditionalGeneration": ("InternVLConfig", {"vision_config": VISION | {"image_size": [32, 32], "patch_size": [4, 4]},
            "text_config": text | {"model_type": "qwen2"}, "image_token_id": 111, "image_seq_length": 16},
            _image_and_text(111, 16)),
        "Qwen2VLForConditionalGeneration": ("Qwen2VLConfig", {"vision_config": {"depth": 2, "embed_dim": 36, "hidden_size": 60,
            "num_heads": 3, "patch_size": 4, "mlp_ratio": 2}, "text_config": text | rope} | qwen,
            {"input_ids": qwen_text, "mm_token_type_ids": (qwen_text == 111).long()} | patches),
        "Qwen2_5_VLForConditionalGeneration": ("Qwen2_5_VLConfig", {"vision_config": {"depth": 2, "hidden_size": 36,
            "out_hidden_size": 60, "intermediate_size": 46, "num_heads": 3, "patch_size": 4, "window_size": 16,
            "fullatt_block_indexes": [1]}, "text_config": text | rope} | qwen, {"input_ids": qwen_text,
            "mm_token_type_ids": (qwen_text == 111).long()} | patches),
        "Qwen3VLForConditionalGeneration": ("Qwen3VLConfig", {"vision_config": {"depth": 2, "hidden_size": 36, "out_hidden_size": 60,
            "intermediate_size": 46, "num_heads": 3, "patch_size": 4, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
            "text_config": text | {"head_dim": 10} | rope} | qwen, {"input_ids": qwen_text,
            "mm_token_type_ids": (qwen_text == 111).long()} | patches),
        "IdeficsForVisionText2Text": ("IdeficsConfig", {"hidden_size": 60, "num_hidden_layers": 2, "num_attention_heads": 6,
            "intermediate_size": 92, "vocab_size": 120, "additional_vocab_size": 0, "cross_layer_interval": 1, "use_resampler": False,
            "vision_config": {"embed_dim": 36, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 46,
            "image_size": 32, "patch_size": 8}}, {"input_ids": words(2, 9), "pixel_values": noise(2, 1, 3, 32, 32),
            "attention_mask": torch.ones(2, 9, dtype=torch.long), "image_attention_mask": torch.ones(2, 9, 1, dtype=torch.long)}),
        "Idefics2ForConditionalGeneration": ("Idefics2Config", {"vision_config": VISION, "text_config": text | {"model_type": "mistral"},
            "perceiver_config": {"hidden_size": 60, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 6,
            "resampler_head_dim": 10, "num_key_value_heads": 3}, "image_token_id": 111}, _image_and_text(111, 4) |
            {"pixel_values": noise(2, 1, 3, 32, 32)}),
        "Idefics3ForConditionalGeneration": ("Idefics3Config", {"vision_config": VISION, "text_config": llama, "scale_factor": 2,
            "image_token_id": 111}, _image_and_text(111, 4) | {"pixel_values": noise(2, 1, 3, 32, 32)}),
        "SmolVLMForConditionalGeneration": ("SmolVLMConfig", {"vision_config": VISION, "text_config": llama, "scale_factor": 2,
            "image_token_id": 111}, _image_and_text(111, 4) | {"pixel_values": noise(2, 1, 3, 32, 32)}),
        "MllamaForCausalLM": ("MllamaTextConfig", text | {"cross_attention_layers": [1], "num_hidden_layers": 2},
                              {"input_ids": words(2, 9)}),
        "CLIPSegForImageSegmentation": ("CLIPSegConfig", {"text_config": clip_text, "vision_config": VISION, "projection_dim": 22,
            "extract_layers": [0, 1], "reduce_dim": 12, "decoder_num_attention_heads": 3, "decoder_intermediate_size": 30}, both),
        "OwlViTForObjectDetection": ("OwlViTConfig", {"text_config": clip_text, "vision_config": VISION, "projection_dim": 60}, both),
        "FlavaModel": ("FlavaConfig", {"text_config": ENCODER, "image_config": VISION, "multimodal_config": WIDTHS,
            "hidden_size": 60, "projection_dim": 22}, both),
    }  # fmt: skip
    yield from listed("vision-language", table)


def speech_cases() -> Cases:
    """Speech to text, text to speech, audio codecs and classifiers."""
    d = {"d_model": 60, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 6, "decoder_attention_heads": 6,
         "encoder_ffn_dim": 92, "decoder_ffn_dim": 92, "vocab_size": 99}  # fmt: skip
    convs = {"conv_dim": (18, 18, 18), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2), "num_feat_extract_layers": 3,
             "num_conv_pos_embeddings": 15, "num_conv_pos_embedding_groups": 3}  # fmt: skip
    wave = {"input_values": noise(1, 2000)}
    t5 = WIDTHS | convs | {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 6, "decoder_attention_heads": 6,
                           "encoder_ffn_dim": 92, "decoder_ffn_dim": 92, "vocab_size": 99, "num_mel_bins": 10,
                           "speech_decoder_prenet_units": 14, "speech_decoder_postnet_units": 14, "speaker_embedding_dim": 8,
                           "speech_decoder_postnet_layers": 2, "max_text_positions": 40, "max_speech_positions": 60,
                           "encoder_max_relative_position": 8}  # fmt: skip
    table: dict[str, tuple[str, dict[str, Any], Any]] = {
        "WhisperForConditionalGeneration": ("WhisperConfig", d | {"max_source_positions": 50, "max_target_positions": 32,
            "num_mel_bins": 20, "pad_token_id": 0, "decoder_start_token_id": 1}, {"input_features": noise(1, 20, 100),
            "decoder_input_ids": words(1, 7)}),
        "Speech2TextForConditionalGeneration": ("Speech2TextConfig", d | {"max_source_positions": 100, "max_target_positions": 32,
            "input_feat_per_channel": 20, "conv_channels": 30, "num_conv_layers": 2}, {"input_features": noise(1, 60, 20),
            "decoder_input_ids": words(1, 7)}),
        "MoonshineForConditionalGeneration": ("MoonshineConfig", TEXT | {"encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2,
            "encoder_num_attention_heads": 6, "decoder_num_attention_heads": 6, "num_key_value_heads": None}, {"input_values":
            noise(1, 2000), "decoder_input_ids": words(1, 7)}),
        "Wav2Vec2ForCTC": ("Wav2Vec2Config", WIDTHS | convs | {"vocab_size": 99}, wave),
        "Wav2Vec2ForSequenceClassification": ("Wav2Vec2Config", WIDTHS | convs | {"use_weighted_layer_sum": True,
                                              "classifier_proj_size": 14}, wave),
        "Wav2Vec2BertForCTC": ("Wav2Vec2BertConfig", WIDTHS | {"vocab_size": 99, "feature_projection_input_dim": 20,
                               "left_max_position_embeddings": 8, "right_max_position_embeddings": 4}, {"input_features": noise(1, 30, 20)}),
        "HubertForCTC": ("HubertConfig", WIDTHS | convs | {"vocab_size": 99}, wave),
        "SEWDForCTC": ("SEWDConfig", WIDTHS | convs | {"vocab_size": 99, "squeeze_factor": 2}, wave),
        "SpeechT5ForSpeechToText": ("SpeechT5Config", t5, wave | {"decoder_input_ids": words(1, 7)}),
        "SpeechT5ForTextToSpeech": ("SpeechT5Config", t5, {"input_ids": words(1, 9), "decoder_input_values": noise(1, 12, 10),
                                    "speaker_embeddings": noise(1, 8)}),
        "SpeechT5HifiGan": ("SpeechT5HifiGanConfig", {"model_in_dim": 10, "upsample_initial_channel": 24, "upsample_rates": [4, 4],
                            "upsample_kernel_sizes": [8, 8]}, {"spectrogram": noise(1, 12, 10)}),
        "VitsModel": ("VitsConfig", {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "ffn_dim": 46,
                      "flow_size": 24, "spectrogram_bins": 33, "upsample_initial_channel": 32, "upsample_rates": [4, 4],
                      "upsample_kernel_sizes": [8, 8], "posterior_encoder_num_wavenet_layers": 2, "prior_encoder_num_wavenet_layers": 2,
                      "duration_predictor_num_flows": 2, "depth_separable_num_layers": 2, "wavenet_dilation_rate": 1,
                      "duration_predictor_filter_channels": 20}, {"input_ids": words(1, 9, high=38)}),
        "ASTForAudioClassification": ("ASTConfig", WIDTHS | {"patch_size": 8, "max_length": 40, "num_mel_bins": 24, "frequency_stride": 8,
                                      "time_stride": 8}, {"input_values": noise(2, 40, 24)}),
        "EncodecModel": ("EncodecConfig", {"num_filters": 6, "hidden_size": 22, "codebook_size": 16, "codebook_dim": 22,
                         "num_lstm_layers": 1, "upsampling_ratios": [4, 2], "target_bandwidths": [1.5, 3.0], "sampling_rate": 2000,
                         "num_residual_layers": 1}, {"input_values": noise(1, 1, 400)}),
        "DacModel": ("DacConfig", {"encoder_hidden_size": 6, "downsampling_ratios": [2, 4], "decoder_hidden_size": 24, "n_codebooks": 2,
                     "codebook_size": 16, "codebook_dim": 5}, {"input_values": noise(1, 1, 400)}),
        "MimiModel": ("MimiConfig", {"num_filters": 6, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3,
                      "num_key_value_heads": 3, "head_dim": 8, "intermediate_size": 46, "codebook_size": 16, "codebook_dim": 12,
                      "vector_quantization_hidden_dimension": 12, "num_quantizers": 3, "upsampling_ratios": [4, 2],
                      "upsample_groups": 24, "num_semantic_quantizers": 1, "sampling_rate": 2000, "frame_rate": 125},
                      {"input_values": noise(1, 1, 400)}),
        "ClapAudioModel": ("ClapAudioConfig", {"spec_size": 64, "num_mel_bins": 16, "patch_size": 4, "patch_stride": [4, 4],
            "enable_fusion": False, "patch_embeds_hidden_size": 18, "hidden_size": 36, "depths": [1, 1], "num_attention_heads": [3, 6], "window_size": 4,
            "projection_dim": 12, "num_classes": 5},
            {"input_features": noise(1, 1, 256, 16), "is_longer": torch.tensor([[False]])}),
        "FastSpeech2ConformerModel": ("FastSpeech2ConformerConfig", {"hidden_size": 36, "vocab_size": 40, "num_mel_bins": 10,
            "encoder_num_attention_heads": 3, "encoder_layers": 1, "encoder_linear_units": 46, "decoder_layers": 1,
            "decoder_num_attention_heads": 3, "decoder_linear_units": 46, "speech_decoder_postnet_layers": 1,
            "speech_decoder_postnet_units": 14, "duration_predictor_channels": 14, "energy_predictor_channels": 14,
            "pitch_predictor_channels": 14}, {"input_ids": words(1, 9, high=38)}),
        "UnivNetModel": ("UnivNetConfig", {"model_in_channels": 6, "model_hidden_channels": 6, "num_mel_bins": 10,
            "kernel_predictor_hidden_channels": 6, "resblock_stride_sizes": [4, 2], "resblock_kernel_sizes": [3, 3],
            "resblock_dilation_sizes": [[1, 3], [1, 3]]}, {"input_features": noise(1, 12, 10), "noise_sequence": noise(1, 12, 6)}),
        "SeamlessM4TForSpeechToText": ("SeamlessM4TConfig", WIDTHS | {"vocab_size": 99, "encoder_layers": 2, "decoder_layers": 2,
            "encoder_attention_heads": 6, "decoder_attention_heads": 6, "encoder_ffn_dim": 92, "decoder_ffn_dim": 92,
            "speech_encoder_layers": 2, "speech_encoder_attention_heads": 6, "speech_encoder_intermediate_size": 92,
            "feature_projection_input_dim": 20, "num_conv_pos_embeddings": 15, "num_conv_pos_embedding_groups": 3,
            "max_position_embeddings": 64, "max_source_positions": 64},
            {"input_features": noise(1, 30, 20), "decoder_input_ids": words(1, 7)}),
        "MusicgenForCausalLM": ("MusicgenDecoderConfig", WIDTHS | {"vocab_size": 99, "ffn_dim": 92, "num_codebooks": 2,
            "max_position_embeddings": 64}, {"input_ids": words(4, 9)}),
        "ParakeetForCTC": ("ParakeetCTCConfig", {"vocab_size": 99, "encoder_config": WIDTHS | {"num_mel_bins": 24,
            "subsampling_conv_channels": 12, "max_position_embeddings": 100}}, {"input_features": noise(1, 60, 24)}),
    }  # fmt: skip
    yield from listed("speech", table)


def detector_cases() -> Cases:
    """Detectors and segmentation of transformers: queries, deformable attention, masks."""
    conv = {"embedding_size": 10, "hidden_sizes": [12, 20, 28, 36], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    backbone = {"model_type": "resnet", "out_features": ["stage2", "stage3", "stage4"]} | conv
    last = {"model_type": "resnet", "out_features": ["stage4"]} | conv
    d = {"d_model": 36, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 3, "decoder_attention_heads": 3,
         "encoder_ffn_dim": 46, "decoder_ffn_dim": 46, "num_queries": 7, "num_labels": 4}  # fmt: skip
    rt = {"backbone_config": {"model_type": "rt_detr_resnet", "out_features": ["stage2", "stage3", "stage4"]} | conv | {"layer_type": "bottleneck"},
          "encoder_hidden_dim": 36, "encoder_in_channels": [20, 28, 36], "feat_strides": [8, 16, 32], "encoder_layers": 1,
          "encoder_ffn_dim": 46, "encoder_attention_heads": 3, "d_model": 36, "num_queries": 7, "decoder_in_channels": [36, 36, 36],
          "decoder_ffn_dim": 46, "decoder_layers": 2, "decoder_attention_heads": 3, "num_labels": 4, "hidden_expansion": 1.0}  # fmt: skip
    swin = {"model_type": "swin", "embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 3, 3], "image_size": 64, "patch_size": 2,
            "window_size": 4, "out_features": ["stage1", "stage2", "stage3", "stage4"]}  # fmt: skip
    image = {"pixel_values": noise(1, 3, 64, 64)}
    masked = image | {"pixel_mask": torch.ones(1, 64, 64, dtype=torch.long)}
    table: dict[str, tuple[str, dict[str, Any], Any]] = {
        "RTDetrForObjectDetection": ("RTDetrConfig", rt, image),
        "RTDetrV2ForObjectDetection": ("RTDetrV2Config", rt, image),
        "DFineForObjectDetection": ("DFineConfig", rt | {"backbone_config": {"model_type": "hgnet_v2", "stem_channels": [3, 8, 12],
            "stage_in_channels": [12, 16, 20, 28], "stage_mid_channels": [6, 8, 10, 12], "stage_out_channels": [16, 20, 28, 36],
            "stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [2, 2, 2, 2], "stage_downsample": [False, True, True, True],
            "stage_light_block": [False, False, True, True], "stage_kernel_size": [3, 3, 5, 5],
            "hidden_sizes": [16, 20, 28, 36], "depths": [1, 1, 1, 1],
            "out_features": ["stage2", "stage3", "stage4"]}}, image),
        "DetrForObjectDetection": ("DetrConfig", d | {"backbone_config": last, "use_timm_backbone": False}, image),
        "DetrForSegmentation": ("DetrConfig", d | {"d_model": 128, "encoder_attention_heads": 8, "decoder_attention_heads": 8, "backbone_config": backbone | {"out_features": ["stage1", "stage2", "stage3",
                                "stage4"]}, "use_timm_backbone": False}, image),
        "ConditionalDetrForObjectDetection": ("ConditionalDetrConfig", d | {"backbone_config": last, "use_timm_backbone": False}, image),
        "DeformableDetrForObjectDetection": ("DeformableDetrConfig", d | {"d_model": 96,"backbone_config": backbone, "use_timm_backbone": False,
                                             "num_feature_levels": 3}, masked),
        "DabDetrForObjectDetection": ("DabDetrConfig", {k: v for k, v in d.items() if k != "d_model"} | {"hidden_size": 36,
                                      "backbone_config": last, "use_timm_backbone": False}, image),
        "TableTransformerForObjectDetection": ("TableTransformerConfig", d | {"backbone_config": last, "use_timm_backbone": False}, image),
        "YolosForObjectDetection": ("YolosConfig", VISION | {"image_size": [64, 64], "num_detection_tokens": 6}, image),
        "MaskFormerForInstanceSegmentation": ("MaskFormerConfig", {"backbone_config": swin, "fpn_feature_size": 64,
            "mask_feature_size": 64, "decoder_config": {"model_type": "detr"} | d}, image),
        "Mask2FormerForUniversalSegmentation": ("Mask2FormerConfig", {"backbone_config": swin, "feature_size": 64, "mask_feature_size": 64,
            "hidden_dim": 64, "encoder_feedforward_dim": 46, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2,
            "dim_feedforward": 46, "num_queries": 7, "num_labels": 4}, image),
        "UperNetForSemanticSegmentation": ("UperNetConfig", {"backbone_config": swin, "hidden_size": 20, "auxiliary_in_channels": 48,
            "auxiliary_channels": 12, "pool_scales": [1, 2], "num_labels": 4}, image),
        "SegformerForSemanticSegmentation": ("SegformerConfig", {"hidden_sizes": [12, 20, 30, 36], "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 3], "decoder_hidden_size": 26, "num_labels": 4}, image),
        "BeitForSemanticSegmentation": ("BeitConfig", VISION | {"image_size": 64, "num_hidden_layers": 4, "out_indices": [0, 1, 2, 3],
                                        "auxiliary_channels": 12, "pool_scales": [1, 2]}, image),
        "DPTForDepthEstimation": ("DPTConfig", VISION | {"image_size": 64, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [12, 20, 28, 36], "fusion_hidden_size": 18, "reassemble_factors": [4, 2, 1, 0.5]}, image),
        "SamModel": ("SamConfig", {"vision_config": VISION | {"image_size": 64, "output_channels": 18, "num_pos_feats": 9, "window_size": 2,
            "global_attn_indexes": [1], "mlp_dim": 92}, "prompt_encoder_config": {"hidden_size": 18, "image_size": 64, "patch_size": 8,
            "mask_input_channels": 6}, "mask_decoder_config": {"hidden_size": 18, "num_attention_heads": 3, "mlp_dim": 30,
            "iou_head_hidden_dim": 14, "num_hidden_layers": 2, "attention_downsample_rate": 1}},
            image | {"input_points": torch.rand(1, 1, 2, 2) * 60}),
        "VitMatteForImageMatting": ("VitMatteConfig", {"backbone_config": {"model_type": "vitdet", "hidden_size": 36,
            "num_attention_heads": 3, "num_hidden_layers": 2, "image_size": 64, "num_channels": 4, "out_features": ["stage2"]},
            "hidden_size": 36, "convstream_hidden_sizes": [8, 12, 16], "fusion_hidden_sizes": [20, 16, 12, 8]},
            {"pixel_values": noise(1, 4, 64, 64)}),
    }  # fmt: skip
    yield from listed("detectors", table)
