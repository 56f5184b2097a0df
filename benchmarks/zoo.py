"""The wide zoo: every model traced, every group cut, blocks dropped, verified, saved, trained one step.

Run ``python benchmarks/zoo.py`` in an environment that has torchvision, timm, transformers, diffusers, ultralytics and
segmentation_models_pytorch beside nervure (none of them is required: what is not installed is left out). Every case
runs in a forked process of its own with a time limit. Writes ``docs/results/zoo.*``.
"""

import importlib.util
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import runner, zoo_families
from benchmarks.runner import Benchmark, Row, Rows, fields, main, peak

KEEP = 0.37
"""The share of every group that stays; which units, is drawn by lot."""
SUBSTANTIAL = 0.1
"""The share of the parameters that the cut of every group must take along for a case to be right."""
SIDE = 128
"""The side of images for models that take any: what is connected with what does not depend on it, the time does."""
DROPS = 4
_LIBRARIES: list[Any] = []
Case = tuple[Callable[[], nn.Module], Any]


@cache
def allow_torchvision() -> None:
    """A torchvision built for CUDA imports beside a CPU torch once the operators it expects are declared."""
    is_declared = hasattr(torch.ops.torchvision, "nms")
    if is_declared or importlib.util.find_spec("torchvision") is None or torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)


# -- cases -------------------------------------------------------------------------------------------------------


GIANTS = (
    "regnet_y_128gf", "regnet_y_32gf", "regnet_y_16gf", "regnet_x_32gf", "vgg", "efficientnet_b7", "wide_",
    "convnext_large",
)  # fmt: skip


def torchvision_cases() -> Iterator[tuple[str, Case]]:
    """Every classification, segmentation, video and detection-backbone model that builds without a download."""
    if importlib.util.find_spec("torchvision") is None:
        return
    allow_torchvision()
    from torchvision import models

    def case(name: str, *shape: int, **options: Any) -> tuple[str, Case]:
        return f"torchvision/{name}", (
            lambda: models.get_model(name, weights=None, **options),
            torch.randn(1, 3, *shape),
        )

    own = {"inception_v3": 299, "swin_v2_t": 256, "swin_v2_s": 256, "swin_v2_b": 256, "maxvit_t": 224}
    patches = {"vit_b_16": 64, "vit_b_32": 128, "vit_l_16": 64, "vit_l_32": 128, "vit_h_14": 56}
    for name in models.list_models(module=models):
        if name in patches:
            yield case(name, patches[name], patches[name], image_size=patches[name])
        else:
            size = 96 if name.startswith(GIANTS) else own.get(name, SIDE)
            yield case(name, size, size)
    for name in models.list_models(module=models.segmentation):
        yield case(name, 96, 96, weights_backbone=None)
    for name in models.list_models(module=models.video):
        size = {"mvit_v1_b": 224, "mvit_v2_s": 224, "s3d": 224}.get(name, 112)
        yield case(name, 16, size, size)
    for name in models.list_models(module=models.detection):
        build = lambda n=name: models.get_model(n, weights=None, weights_backbone=None).backbone  # noqa: E731
        size = 300 if name.startswith("ssd300") else 128
        yield f"torchvision/{name}.backbone", (build, torch.randn(1, 3, size, size))


TIMM = [
    "bat_resnext26ts", "beit_base_patch16_224", "botnet26t_256", "caformer_s18", "cait_xxs24_224", "coat_tiny",
    "coatnet_nano_rw_224", "convit_tiny", "convformer_s18", "convmixer_768_32", "convnext_atto", "convnextv2_atto",
    "crossvit_9_240", "cspdarknet53", "cspresnet50", "darknet53", "davit_tiny", "deit_tiny_patch16_224",
    "deit3_small_patch16_224", "densenet121", "dla34", "dm_nfnet_f0", "dpn48b", "eca_halonext26ts",
    "eca_resnet33ts", "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0", "efficientnet_b0",
    "efficientnetv2_rw_t", "efficientvit_b0", "efficientvit_m0", "eva02_tiny_patch14_224", "fastvit_t8",
    "fbnetc_100", "focalnet_tiny_srf", "gcresnet33ts", "gcvit_xxtiny", "gernet_s", "ghostnet_100", "ghostnetv2_100",
    "gmixer_24_224", "gmlp_ti16_224", "halonet26t", "hardcorenas_a", "hgnetv2_b0", "hiera_tiny_224",
    "hrnet_w18_small", "inception_next_tiny", "inception_v3", "inception_v4", "inception_resnet_v2",
    "lambda_resnet26t", "lcnet_050", "levit_128s", "maxvit_nano_rw_256", "mixer_s16_224", "mixnet_s",
    "mnasnet_small", "mobilenetv3_small_050", "mobilenetv4_conv_small", "mobileone_s0", "mobilevit_xxs",
    "mobilevitv2_050", "mvitv2_tiny", "nest_tiny", "nextvit_small", "nf_regnet_b0", "pit_ti_224", "poolformer_s12",
    "pvt_v2_b0", "rdnet_tiny", "regnetx_002", "regnety_002", "repghostnet_050", "repvgg_a0", "repvit_m0_9",
    "res2net50_14w_8s", "resmlp_12_224", "resnest14d", "resnet18", "resnetv2_50", "resnext50_32x4d", "rexnet_100",
    "samvit_base_patch16_224", "selecsls42", "sequencer2d_s", "seresnet18", "shvit_s1", "skresnet18", "starnet_s1",
    "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_224", "swinv2_tiny_window8_256", "tiny_vit_5m_224", "tinynet_e",
    "tnt_s_patch16_224", "tresnet_m", "twins_svt_small", "visformer_tiny", "vit_tiny_patch16_224",
    "vit_relpos_small_patch16_224", "volo_d1_224", "vovnet39a", "xception41", "xcit_nano_12_p16_224",
]  # fmt: skip


def timm_cases() -> Iterator[tuple[str, Case]]:
    """One small member of each of many families."""
    if importlib.util.find_spec("timm") is None:
        return
    allow_torchvision()
    import timm

    known = set(timm.list_models())
    for name in TIMM:
        if name in known:
            yield f"timm/{name}", (lambda n=name: timm.create_model(n, pretrained=False), None)


BLOCKWISE = ("bat_resnext26ts", "eca_halonext26ts", "halonet26t")
"""Attention within blocks of eight: their last maps must not be smaller."""


def _timm_example(model: nn.Module) -> Tensor:
    about: Any = model.pretrained_cfg
    channels, height, width = about["input_size"]
    if not about.get("fixed_input_size") and about["architecture"] not in BLOCKWISE:
        height = width = SIDE
    return torch.randn(1, channels, height, width)


HEADS = ("ForConditionalGeneration", "ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForImageClassification", "ForCTC",
         "ForSemanticSegmentation", "ForSequenceClassification")  # fmt: skip
SMALL = {"hidden_size": 60, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 92, "vocab_size": 99}
GQA = SMALL | {"num_key_value_heads": 3, "max_position_embeddings": 64}
ENCODER = SMALL | {"max_position_embeddings": 64}
VISION = {k: v for k, v in SMALL.items() if k != "vocab_size"} | {"image_size": 32, "patch_size": 8}
TEXT_MODELS: dict[str, dict[str, Any]] = {
    "Bert": ENCODER, "Roberta": ENCODER, "Electra": ENCODER | {"embedding_size": 32}, "Albert": ENCODER | {"embedding_size": 32},
    "DistilBert": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "vocab_size": 99, "max_position_embeddings": 64},
    "Deberta": ENCODER, "DebertaV2": ENCODER, "MPNet": ENCODER, "XLMRoberta": ENCODER, "Camembert": ENCODER, "Ernie": ENCODER,
    "RoFormer": ENCODER | {"embedding_size": 64}, "SqueezeBert": ENCODER | {"embedding_size": 60, "q_groups": 1, "k_groups": 1,
    "v_groups": 1, "post_attention_groups": 1, "intermediate_groups": 1, "output_groups": 1}, "ConvBert": ENCODER | {"embedding_size": 64},
    "MobileBert": ENCODER | {"num_attention_heads": 4, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}, "FNet": ENCODER,
    "ModernBert": SMALL | {"max_position_embeddings": 64, "pad_token_id": 0}, "Nystromformer": ENCODER,
    "GPT2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 99, "n_positions": 64},
    "GPTNeo": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 99, "attention_types": [[["global", "local"], 1]],
               "max_position_embeddings": 64},
    "GPTNeoX": ENCODER, "GPTJ": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 99, "n_positions": 64, "rotary_dim": 8},
    "OPT": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 96, "vocab_size": 99,
            "max_position_embeddings": 64, "word_embed_proj_dim": 64}, "Bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 99},
    "Llama": GQA, "Mistral": GQA, "Qwen2": GQA, "Qwen3": GQA | {"head_dim": 16}, "Gemma": GQA | {"head_dim": 16}, "Gemma2": GQA | {"head_dim": 16},
    "Phi": GQA | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.4}}, "Phi3": GQA | {"pad_token_id": 0}, "StableLm": GQA, "Olmo2": GQA, "Cohere": GQA, "Granite": GQA, "Falcon": {"hidden_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}, "Mixtral": GQA | {"num_local_experts": 4},
    "Qwen3Moe": GQA | {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "DeepseekV2": GQA | {"num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
                         "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1,
                         "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1},
    "GptOss": GQA | {"head_dim": 16, "num_local_experts": 4}, "Gemma3Text": GQA | {"head_dim": 16}, "SmolLM3": GQA | {"pad_token_id": 0},
    "Glm": GQA | {"head_dim": 16, "pad_token_id": 0}, "Starcoder2": GQA, "Nemotron": GQA, "BioGpt": ENCODER, "XGLM": {"d_model": 64,
    "num_layers": 2, "attention_heads": 4, "ffn_dim": 96, "vocab_size": 99, "max_position_embeddings": 64},
    "CodeGen": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 99, "n_positions": 64, "rotary_dim": 8},
    "XLNet": {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 96, "vocab_size": 99}, "Rwkv": {"hidden_size": 64, "num_hidden_layers": 2,
    "vocab_size": 99, "attention_hidden_size": 64}, "Mamba2": {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 99, "state_size": 8,
    "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 8}, "RecurrentGemma": GQA | {"lru_width": 60, "block_types": ["recurrent",
    "attention"], "attention_window_size": 16}, "BigBird": ENCODER | {"attention_type": "original_full"},
    "Longformer": ENCODER | {"attention_window": 4, "pad_token_id": 1}, "Funnel": {"d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 96,
    "block_sizes": [1, 1], "vocab_size": 99, "num_decoder_layers": 1}, "Flaubert": {"emb_dim": 64, "n_layers": 2, "n_heads": 4, "n_words": 99},
    "XLM": {"emb_dim": 64, "n_layers": 2, "n_heads": 4, "n_words": 99}, "MegatronBert": ENCODER, "LayoutLM": ENCODER | {"max_2d_position_embeddings": 64}, "Splinter": ENCODER,
    "Mamba": {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 99, "state_size": 8},
}  # fmt: skip
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "T5": {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "vocab_size": 99},
    "Bart": {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
             "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "vocab_size": 99, "max_position_embeddings": 64},
    "Marian": {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
               "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "vocab_size": 99, "max_position_embeddings": 64, "pad_token_id": 0},
    "Pegasus": {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "vocab_size": 99, "max_position_embeddings": 64},
}  # fmt: skip
VISION_MODELS: dict[str, dict[str, Any]] = {
    "ViT": VISION, "DeiT": VISION, "Beit": VISION, "Dinov2": VISION | {"mlp_ratio": 2}, "ViTMSN": VISION, "SiglipVision": VISION,
    "CLIPVision": VISION, "ConvNext": {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}, "ResNet": {"embedding_size": 16,
    "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}, "Segformer": {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]},
    "Swin": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "image_size": 32, "patch_size": 4, "window_size": 4},
    "PoolFormer": {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}, "Data2VecVision": VISION, "ViTMAE": VISION | {"mask_ratio": 0.0},
    "Dinov2WithRegisters": VISION | {"mlp_ratio": 2}, "ConvNextV2": {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]},
    "Swinv2": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "image_size": 32, "patch_size": 4, "window_size": 4},
    "RegNet": {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "groups_width": 8},
    "MobileNetV2": {"depth_multiplier": 0.35}, "MobileViT": {"hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 12, 16, 24, 32, 40, 64],
    "image_size": 64, "num_attention_heads": 4}, "Pvt": {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_attention_heads":
    [1, 2, 4, 4], "image_size": 64}, "Levit": {"hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1], "key_dim": [8, 8, 8], "image_size": 64},
}  # fmt: skip


def transformers_cases() -> Iterator[tuple[str, Case]]:
    """Architectures in tiny configurations with random weights."""
    if importlib.util.find_spec("transformers") is None:
        return
    allow_torchvision()
    import transformers

    words = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))

    def build(name: str, options: dict[str, Any], ends: Iterable[str] = ("Model",)) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            config = getattr(transformers, f"{name}Config")(**options)
            model: nn.Module = next(getattr(transformers, name + e) for e in ends if hasattr(transformers, name + e))(
                config
            )
            return model

        return make

    def both(name: str, options: dict[str, Any], example: Any) -> Iterator[tuple[str, Case]]:
        """The bare model, whose stream is its output, and the first of its heads, which leaves the stream free."""
        if hasattr(transformers, f"{name}Config"):
            yield f"transformers/{name}", (build(name, options), example)
            head = [end for end in HEADS if hasattr(transformers, name + end)]
            if head:
                yield f"transformers/{name}{head[0]}", (build(name, options, head), example)

    for name, options in TEXT_MODELS.items():
        yield from both(name, options, {"input_ids": words})
    for name, options in ENCODER_DECODERS.items():
        yield from both(name, options, {"input_ids": words, "decoder_input_ids": words[:, :7]})
    for name, options in VISION_MODELS.items():
        size = int(options.get("image_size", 64))
        # Patches are shuffled by noise, drawn in forward unless it is given.
        order = {"noise": torch.rand(2, 16)} if name == "ViTMAE" else {}
        yield from both(name, options, {"pixel_values": torch.randn(2, 3, size, size)} | order)
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    audio = small | {"vocab_size": 99} | {"conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2), "num_feat_extract_layers": 3,
                     "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}  # fmt: skip
    for name in (
        "Wav2Vec2",
        "Hubert",
        "WavLM",
        "UniSpeech",
        "UniSpeechSat",
        "Data2VecAudio",
        "SEW",
        "Wav2Vec2Conformer",
    ):
        yield from both(
            name, audio | ({"squeeze_factor": 2} if name == "SEW" else {}), {"input_values": torch.randn(1, 2000)}
        )
    whisper = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
               "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "vocab_size": 99, "max_source_positions": 50,
               "max_target_positions": 32, "num_mel_bins": 20, "pad_token_id": 0, "decoder_start_token_id": 1}  # fmt: skip
    yield (
        "transformers/Whisper",
        (
            build("Whisper", whisper),
            {"input_features": torch.randn(1, 20, 100), "decoder_input_ids": words[:1, :7]},
        ),
    )


def hand_cases() -> Iterator[tuple[str, Case]]:
    """The awkward hand-made modules of the tests."""
    from tests.networks import NETWORKS

    for name, network in NETWORKS.items():
        yield f"hand/{name}", (network.factory, network.example())


def family_cases() -> Iterator[tuple[str, Case]]:
    """Small members of families that the libraries lack."""
    from benchmarks.architectures import ARCHITECTURES

    for name, (build, example) in ARCHITECTURES.items():
        yield f"family/{name}", (build, example())


SOURCES = {
    "hand": hand_cases,
    "family": family_cases,
    "transformers": transformers_cases,
    "timm": timm_cases,
    "torchvision": torchvision_cases,
    "detectors": zoo_families.detector_cases,
    "ultralytics": zoo_families.ultralytics_cases,
    "segmentation": zoo_families.segmentation_cases,
    "diffusion": zoo_families.diffusion_cases,
    "speech": zoo_families.speech_cases,
    "vision-language": zoo_families.vision_language_cases,
    "experts": zoo_families.expert_cases,
}


# -- one case ----------------------------------------------------------------------------------------------------


def try_case(build: Callable[[], nn.Module], example: Any) -> dict[str, Any]:
    """Trace, cut every group, verify, save and load, drop blocks, train a step; what was found."""
    from nervure import Cut, Plan, Pruned, apply, count, trace

    torch.manual_seed(0)
    model = build().eval()
    example = _timm_example(model) if example is None else example
    _wake(model)
    before = round(peak())
    start = time.process_time()
    graph = trace(model, example)
    row: dict[str, Any] = {"trace_s": round(time.process_time() - start, 3)}
    row |= {"groups": len(graph.groups), "prunable": len(graph.prunable), "units": sum(g.size for g in graph.prunable)}
    row["pins"] = _pins(graph)
    start = time.process_time()
    lot = torch.Generator().manual_seed(0)
    plan = Plan(tuple(Cut(g.name, _drawn(g, lot)) for g in graph.prunable), graph.fingerprint)
    smaller = apply(model, graph, plan)
    row["cut_s"] = round(time.process_time() - start, 3)
    row["params"] = [sum(p.numel() for p in m.parameters()) for m in (model, smaller)]
    row |= _verified(model, smaller, graph, plan, example)
    costs = [count(m.eval(), example) for m in (model, smaller)]
    row["macs"] = [cost.macs for cost in costs]
    row["memory_mb"] = round(peak()) - before
    row["blocks"] = [sum(not b.pinned for b in graph.blocks), len(graph.blocks)]
    row["drops"] = _drop_some(model, graph, example)
    row["saved"] = _saved(model, Pruned(smaller, plan, graph, *costs), example)
    row["trains"] = _trains(smaller, example)
    return row


def _drawn(group: Any, lot: torch.Generator) -> Any:
    """Which units of a group stay, by lot."""
    from nervure import Keep

    keep = torch.zeros(group.size, dtype=torch.bool)
    keep[torch.randperm(group.size, generator=lot)[: group.round_up(max(1, round(KEEP * group.size)))]] = True
    return Keep.of(keep)


def _pins(graph: Any) -> list[str]:
    """Why groups stay, the widest reasons first, each with the number of its groups."""
    reasons: dict[str, int] = {}
    for group in graph.groups:
        if group.is_pinned and group.pinned != "model output":
            reason = group.pinned.split(" at ")[0][:120]
            reasons[reason] = reasons.get(reason, 0) + 1
    return [f"{n} x {reason}" for reason, n in sorted(reasons.items(), key=lambda item: -item[1])]


def _wake(model: nn.Module) -> None:
    """Norms and scales away from their neutral start, so that a wrong cut cannot hide."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
            if isinstance(mean, Tensor) and isinstance(var, Tensor):
                mean.copy_(torch.randn(mean.shape, generator=generator) * 0.1)
                var.copy_(torch.rand(var.shape, generator=generator) + 0.5)
        for parameter in model.parameters():
            if parameter.dim() == 1 and parameter.is_floating_point():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def _verified(model: nn.Module, smaller: nn.Module, graph: Any, plan: Any, example: Any) -> dict[str, Any]:
    """The error, or why nothing could be compared; raises where the smaller model is wrong."""
    from nervure import verify

    found = verify(model, SimpleNamespace(model=smaller, graph=graph, plan=plan), example)
    return {"error": found.error} if found.error is not None else {"unverified": found.reason}


def _drop_some(model: nn.Module, graph: Any, example: Any) -> list[Any]:
    """Blocks of every kind, then from all over the depth, dropped one by one: how many were right, and what was not."""
    from nervure import Drop, Plan, apply

    free = [b for b in graph.blocks if not b.pinned]
    spread = [free[i * (len(free) - 1) // (DROPS - 1)] for i in range(DROPS)] if free else []
    chosen = list({b.name: b for b in [*{b.kind: b for b in free}.values(), *spread]}.values())[:DROPS]
    good, bad = 0, []
    for block in chosen:
        plan = Plan((Drop(block.name),), graph.fingerprint)
        try:
            _verified(model, apply(model, graph, plan), graph, plan, example)
            good += 1
        except Exception as error:
            bad.append(f"{block.name}: {str(error)[:100]}")
    return [good, bad]


def _saved(model: nn.Module, pruned: Any, example: Any) -> str:
    """Whether the cut model, saved and loaded into a new original, computes the same."""
    from nervure import load, save
    from nervure.core.inputs import Inputs
    from nervure.core.tensors import tensors_in

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        try:
            again = load(save(Path(folder) / "cut.safetensors", pruned), model).model
            outputs = []
            for each in (pruned.model, again):
                torch.manual_seed(0)
                outputs.append(tensors_in(Inputs.of(example).run(each.eval())))
            pairs = zip(*outputs, strict=True)
            # Kernels differ in the last digit by where tensors lie in memory.
            alike = all(torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-6, equal_nan=True) for a, b in pairs)
            return "yes" if alike else "another output"
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:150]}"


def _trains(model: nn.Module, example: Any) -> str:
    """One step of gradient descent in training mode, every output (of auxiliary heads too) in the loss."""
    from nervure.core.inputs import Inputs
    from nervure.core.tensors import tensors_in

    args, kwargs = Inputs.of(example).args, Inputs.of(example).kwargs
    # Batch norms do not train on one sample.
    if args and isinstance(args[0], Tensor) and args[0].shape[:1] == (1,):
        args = tuple(torch.cat([t, t]) for t in args)
    kwargs = {k: torch.cat([t, t]) if isinstance(t, Tensor) and t.shape[:1] == (1,) else t for k, t in kwargs.items()}
    model.train()
    try:
        outputs = [t for t in tensors_in(model(*args, **kwargs)) if t.requires_grad]
        losses = [torch.view_as_real(t) if t.is_complex() else t.float() for t in outputs]
        torch.stack([t.square().mean() for t in losses]).sum().backward()
        torch.optim.SGD(model.parameters(), lr=1e-3).step()
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:150]}"
    return "yes"


# -- running -----------------------------------------------------------------------------------------------------


def run_one(name: str, case: Case) -> Row:
    """Run one case in this process."""
    start = time.process_time()
    try:
        row = try_case(*case)
    except Exception as error:
        row = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    return {"name": name, "seconds": round(time.process_time() - start, 1)} | row


def _warm_up() -> None:
    """What is imported on first use is imported before the first fork: nobody's time, the same code for all."""
    run_one("warm/up", (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)))


def cases(options: Namespace) -> Iterator[runner.Case]:
    """All cases of the sources that are named: others need not be imported."""
    allow_torchvision()
    _warm_up()
    for kind, source in SOURCES.items():
        if not options.names or any(name.partition("/")[0] == kind for name in options.names):
            yield from (((name,), partial(run_one, name, case)) for name, case in source())


# -- reporting ---------------------------------------------------------------------------------------------------


def share_cut(row: Row) -> float:
    """Share of the parameters that left."""
    before, after = row["params"]
    return 1 - float(after) / max(before, 1)


def why(row: Row) -> str:
    """What is wrong with a case; empty where it is right."""
    told = [row.get("failed", ""), *row.get("drops", [0, []])[1]]
    if "unverified" in row:
        told.append(f"not verified: {row['unverified']}")
    for key, what in (("trains", "does not train"), ("saved", "does not come back")):
        if row.get(key, "yes") != "yes":
            told.append(f"{what}: {row[key]}")
    if "params" in row and share_cut(row) < SUBSTANTIAL:
        told.append(f"only {share_cut(row):.0%} of the parameters can be cut so: {'; '.join(row['pins'][:3])}")
    return "; ".join(t for t in told if t)


def page(rows: Rows) -> str:
    """The results as Markdown: a summary, the misses with their reasons, what stays pinned, and every case."""
    lines = [
        "# The wide zoo",
        "",
        f"`python benchmarks/zoo.py`: each model traced without a hint and called as it comes, {KEEP:.0%} of the units of every",
        "prunable group kept by lot, the result verified against the original without the rest, saved and loaded, up to",
        f"{DROPS} blocks dropped one by one (verified too), and the cut model trained one step in training mode. A case is",
        f"right where all of that holds and at least {SUBSTANTIAL:.0%} of the parameters left.",
        "",
        "Times are processor time of one thread. A case without a row has not been run: `of` counts rows, not the",
        "cases of `zoo.py`. `--fresh` runs the rows of other trees anew, and what was never run.",
        "",
        "| source | right | of | groups prunable | parameters cut (median) | trace s (median) | trace s (worst) "
        "| memory MB (median) | memory MB (worst) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_summary(kind, [r for r in rows if r["name"].startswith(f"{kind}/")]) for kind in SOURCES]
    misses = sorted((r for r in rows if why(r)), key=lambda r: str(r["name"]))
    lines += ["", "## Misses", ""] + ([f"* `{r['name']}`: {why(r)}" for r in misses] or ["None."])
    lines += ["", "## Slowest to trace", ""]
    slowest = sorted((r for r in rows if "trace_s" in r), key=lambda r: -float(r["trace_s"]))[:10]
    lines += [
        f"* `{r['name']}`: {r['trace_s']:.1f} s, {r['params'][0] / 1e6:.1f} M parameters"
        for r in slowest
        if "params" in r
    ]
    lines += ["", "## Every case", ""]
    lines += [
        "Parameters and MACs cut are shares of the whole; memory is the peak above what was there before tracing.",
        "",
        "| model | tree | trace s | cut s | groups prunable | parameters cut | MACs cut | error | blocks droppable | MB "
        "| pinned |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(r) for r in sorted(rows, key=lambda r: str(r["name"])) if "macs" in r]
    return "\n".join(lines) + "\n"


def _summary(kind: str, mine: Rows) -> str:
    right, whole = sum(not why(r) for r in mine), [r for r in mine if "macs" in r]
    if not whole:
        return f"| {kind} | {right} | {len(mine)} | | | | | | |"
    prunable, groups = (sum(r[key] for r in whole) for key in ("prunable", "groups"))
    times, memory = ([float(r[key]) for r in whole] for key in ("trace_s", "memory_mb"))
    return (
        f"| {kind} | {right} | {len(mine)} | {prunable} of {groups} | {median(map(share_cut, whole)):.0%} "
        f"| {median(times):.1f} | {max(times):.1f} | {median(memory):.0f} | {max(memory):.0f} |"
    )


def _line(r: Row) -> str:
    macs = 1 - r["macs"][1] / max(r["macs"][0], 1)
    error = f"{r['error']:.0e}" if "error" in r else "-"
    return (
        f"| {r['name']} | {r['commit']} | {r['trace_s']:.2f} | {r['cut_s']:.2f} | {r['prunable']} of {r['groups']} | {share_cut(r):.0%} "
        f"| {macs:.0%} | {error} | {r['blocks'][0]} of {r['blocks'][1]} | {r['memory_mb']} "
        f"| {'; '.join(r['pins'][:3])} |"
    )


BENCHMARK = Benchmark(
    "zoo",
    page,
    fields("name"),
    cases,
    apart=True,
    seconds=300,
    failed=lambda key, reason: {"name": key[0], "failed": reason},
    goes_wrong=lambda row: bool(why(row)),
    tell=lambda row: f"{row['name']:45s} {why(row)[:250] or 'ok'}",
    packages=("torchvision", "timm", "transformers", "diffusers", "ultralytics", "segmentation_models_pytorch"),
)

if __name__ == "__main__":
    main(BENCHMARK)
