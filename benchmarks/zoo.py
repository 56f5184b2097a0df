"""The wide zoo: every model traced, half of every group cut, blocks dropped, verified, trained one step.

Run ``python benchmarks/zoo.py`` in an environment that has torchvision, timm and transformers beside nervure (none of
them is required: what is not installed is left out). Every case runs in its own process with a time limit; results are
appended to ``docs/results/zoo.jsonl`` and a run that was stopped goes on where it was. ``--table`` writes
``docs/results/zoo.md`` from them.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "docs" / "results" / "zoo.jsonl"
_LIBRARIES: list[Any] = []
Case = tuple[Callable[[], nn.Module], Any]


@cache
def allow_torchvision() -> None:
    """A torchvision built for CUDA imports beside a CPU torch once the operators it expects are declared."""
    if importlib.util.find_spec("torchvision") is None or torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)


# -- cases -------------------------------------------------------------------------------------------------------


def torchvision_cases() -> Iterator[tuple[str, Case]]:
    """Every classification, segmentation and detection-backbone model that builds without a download."""
    if importlib.util.find_spec("torchvision") is None:
        return
    allow_torchvision()
    from torchvision import models

    sizes = {"inception_v3": 299, "alexnet": 224, "vit_h_14": 224, "swin_v2_t": 256, "swin_v2_s": 256, "swin_v2_b": 256}
    for name in models.list_models(module=models):
        size = sizes.get(name, 224)
        yield f"torchvision/{name}", (lambda n=name: models.get_model(n, weights=None), torch.randn(1, 3, size, size))
    for name in models.list_models(module=models.segmentation):
        build = lambda n=name: models.get_model(n, weights=None, weights_backbone=None)  # noqa: E731
        yield f"torchvision/{name}", (build, torch.randn(1, 3, 96, 96))
    for name in models.list_models(module=models.video):
        size = {"mvit_v1_b": 224, "mvit_v2_s": 224}.get(name, 112)
        yield (
            f"torchvision/{name}",
            (lambda n=name: models.get_model(n, weights=None), torch.randn(1, 3, 16, size, size)),
        )
    for name in models.list_models(module=models.detection):
        yield (
            f"torchvision/{name}.backbone",
            (lambda n=name: _detection_backbone(models, n), torch.randn(1, 3, 128, 128)),
        )


def _detection_backbone(models: Any, name: str) -> nn.Module:
    model: nn.Module = models.get_model(name, weights=None, weights_backbone=None).backbone
    return model


TIMM = [
    "bat_resnext26ts",
    "beit_base_patch16_224",
    "botnet26t_256",
    "caformer_s18",
    "cait_xxs24_224",
    "coat_tiny",
    "coatnet_nano_rw_224",
    "convit_tiny",
    "convformer_s18",
    "convmixer_768_32",
    "convnext_atto",
    "convnextv2_atto",
    "crossvit_9_240",
    "cspdarknet53",
    "cspresnet50",
    "darknet53",
    "davit_tiny",
    "deit_tiny_patch16_224",
    "deit3_small_patch16_224",
    "densenet121",
    "dla34",
    "dm_nfnet_f0",
    "dpn48b",
    "eca_halonext26ts",
    "eca_resnet33ts",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientnet_b0",
    "efficientnetv2_rw_t",
    "efficientvit_b0",
    "efficientvit_m0",
    "eva02_tiny_patch14_224",
    "fastvit_t8",
    "fbnetc_100",
    "focalnet_tiny_srf",
    "gcresnet33ts",
    "gcvit_xxtiny",
    "gernet_s",
    "ghostnet_100",
    "ghostnetv2_100",
    "gmixer_24_224",
    "gmlp_ti16_224",
    "halonet26t",
    "hardcorenas_a",
    "hgnetv2_b0",
    "hiera_tiny_224",
    "hrnet_w18_small",
    "inception_next_tiny",
    "inception_v3",
    "inception_v4",
    "inception_resnet_v2",
    "lambda_resnet26t",
    "lcnet_050",
    "levit_128s",
    "maxvit_nano_rw_256",
    "mixer_s16_224",
    "mixnet_s",
    "mnasnet_small",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "mobileone_s0",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "mvitv2_tiny",
    "nest_tiny",
    "nextvit_small",
    "nf_regnet_b0",
    "pit_ti_224",
    "poolformer_s12",
    "pvt_v2_b0",
    "rdnet_tiny",
    "regnetx_002",
    "regnety_002",
    "repghostnet_050",
    "repvgg_a0",
    "repvit_m0_9",
    "res2net50_14w_8s",
    "resmlp_12_224",
    "resnest14d",
    "resnet18",
    "resnetv2_50",
    "resnext50_32x4d",
    "rexnet_100",
    "samvit_base_patch16",
    "selecsls42",
    "sequencer2d_s",
    "seresnet18",
    "shvit_s1",
    "skresnet18",
    "starnet_s1",
    "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_224",
    "swinv2_tiny_window8_256",
    "tiny_vit_5m_224",
    "tinynet_e",
    "tnt_s_patch16_224",
    "tresnet_m",
    "twins_svt_small",
    "visformer_tiny",
    "vit_tiny_patch16_224",
    "vit_relpos_small_patch16_224",
    "volo_d1_224",
    "vovnet39a",
    "xception41",
    "xcit_nano_12_p16_224",
]


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


def _timm_example(model: nn.Module) -> Tensor:
    return torch.randn(1, *model.pretrained_cfg["input_size"])  # type: ignore[union-attr,misc]


SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 99}
GQA = SMALL | {"num_key_value_heads": 2, "max_position_embeddings": 64}
ENCODER = SMALL | {"max_position_embeddings": 64}
VISION = {k: v for k, v in SMALL.items() if k != "vocab_size"} | {"image_size": 32, "patch_size": 8}
TEXT_MODELS: dict[str, dict[str, Any]] = {
    "Bert": ENCODER, "Roberta": ENCODER, "Electra": ENCODER | {"embedding_size": 32}, "Albert": ENCODER | {"embedding_size": 32},
    "DistilBert": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "vocab_size": 99, "max_position_embeddings": 64},
    "Deberta": ENCODER, "DebertaV2": ENCODER, "MPNet": ENCODER, "XLMRoberta": ENCODER, "Camembert": ENCODER, "Ernie": ENCODER,
    "RoFormer": ENCODER | {"embedding_size": 64}, "SqueezeBert": ENCODER | {"embedding_size": 64, "q_groups": 1, "k_groups": 1,
    "v_groups": 1, "post_attention_groups": 1, "intermediate_groups": 1, "output_groups": 1}, "ConvBert": ENCODER | {"embedding_size": 64},
    "MobileBert": ENCODER | {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}, "FNet": ENCODER,
    "ModernBert": SMALL | {"max_position_embeddings": 64, "pad_token_id": 0}, "Nystromformer": ENCODER,
    "GPT2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 99, "n_positions": 64},
    "GPTNeo": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 99, "attention_types": [[["global", "local"], 1]],
               "max_position_embeddings": 64},
    "GPTNeoX": ENCODER, "GPTJ": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 99, "n_positions": 64, "rotary_dim": 8},
    "OPT": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 96, "vocab_size": 99,
            "max_position_embeddings": 64, "word_embed_proj_dim": 64}, "Bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 99},
    "Llama": GQA, "Mistral": GQA, "Qwen2": GQA, "Qwen3": GQA | {"head_dim": 16}, "Gemma": GQA | {"head_dim": 16}, "Gemma2": GQA | {"head_dim": 16},
    "Phi": GQA, "Phi3": GQA | {"pad_token_id": 0}, "StableLm": GQA, "Olmo2": GQA, "Cohere": GQA, "Granite": GQA, "Falcon": {"hidden_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}, "Mixtral": GQA | {"num_local_experts": 4},
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
    "PoolFormer": {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]},
}  # fmt: skip


def transformers_cases() -> Iterator[tuple[str, Case]]:
    """Architectures in tiny configurations with random weights."""
    if importlib.util.find_spec("transformers") is None:
        return
    allow_torchvision()
    import transformers

    words = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))

    def build(name: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            config = getattr(transformers, f"{name}Config")(**options)
            config.use_cache = False
            model: nn.Module = getattr(transformers, f"{name}Model")(config)
            return model

        return make

    for name, options in TEXT_MODELS.items():
        yield f"transformers/{name}", (build(name, options), {"input_ids": words})
    for name, options in ENCODER_DECODERS.items():
        yield f"transformers/{name}", (build(name, options), {"input_ids": words, "decoder_input_ids": words[:, :7]})
    for name, options in VISION_MODELS.items():
        size = 32 if "image_size" in options else 64
        yield f"transformers/{name}", (build(name, options), {"pixel_values": torch.randn(2, 3, size, size)})
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    audio = small | {"conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2), "num_feat_extract_layers": 3,
                     "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}  # fmt: skip
    for name in ("Wav2Vec2", "Hubert", "WavLM"):
        yield f"transformers/{name}", (build(name, audio), {"input_values": torch.randn(1, 2000)})
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


SOURCES = {"hand": hand_cases, "torchvision": torchvision_cases, "timm": timm_cases, "transformers": transformers_cases}


# -- one case ----------------------------------------------------------------------------------------------------


def try_case(build: Callable[[], nn.Module], example: Any) -> dict[str, Any]:
    """Trace, halve every group, verify, drop every block, train a step."""
    from nervure import Cut, Drop, Keep, Plan, apply, count, trace, verify

    torch.manual_seed(0)
    model = build().eval()
    example = _timm_example(model) if example is None else example
    _wake(model)
    row: dict[str, Any] = {}
    start = time.perf_counter()
    graph = trace(model, example)
    row["trace_s"] = round(time.perf_counter() - start, 3)
    row |= {"groups": len(graph.groups), "prunable": len(graph.prunable), "units": sum(g.size for g in graph.prunable)}
    row["pins"] = sorted(
        {g.pinned.split(" at ")[0][:90] for g in graph.groups if g.is_pinned and g.pinned != "model output"}
    )
    start = time.perf_counter()
    plan = Plan(tuple(Cut(g.name, Keep.of(torch.arange(g.size) % 2 == 0)) for g in graph.prunable), graph.fingerprint)
    smaller = apply(model, graph, plan)
    row["cut_s"] = round(time.perf_counter() - start, 3)
    row["error"] = verify(model, SimpleNamespace(model=smaller, graph=graph, plan=plan), example).error
    row["params"] = [sum(p.numel() for p in m.parameters()) for m in (model, smaller)]
    row["macs"] = [count(m.eval(), example).macs for m in (model, smaller)]
    row["blocks"] = [sum(not b.pinned for b in graph.blocks), len(graph.blocks)]
    row["drops"] = _drop_each(model, graph, example, Plan, Drop, apply, verify)
    row["trains"] = _trains(smaller, example)
    row["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


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


def _drop_each(model: nn.Module, graph: Any, example: Any, Plan: Any, Drop: Any, apply: Any, verify: Any) -> list[Any]:
    good, bad = 0, []
    for block in [b for b in graph.blocks if not b.pinned][:6]:
        plan = Plan((Drop(block.name),), graph.fingerprint)
        try:
            verify(model, SimpleNamespace(model=apply(model, graph, plan), graph=graph, plan=plan), example)
            good += 1
        except Exception as error:
            bad.append(f"{block.name}: {str(error)[:100]}")
    return [good, bad]


def _trains(model: nn.Module, example: Any) -> str:
    from nervure.graph.example import as_inputs, tensors_in

    args, kwargs = as_inputs(example)
    double = [torch.cat([t, t]) if isinstance(t, Tensor) and t.dim() > 1 else t for t in args]
    doubled = {k: torch.cat([t, t]) if isinstance(t, Tensor) else t for k, t in kwargs.items()}
    model.train()
    try:
        outputs = [t for t in tensors_in(model(*double, **doubled)) if t.is_floating_point() and t.requires_grad]
        sum(t.float().pow(2).mean() for t in outputs).backward()  # type: ignore[union-attr]
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:100]}"
    return "yes"


# -- running and reporting ---------------------------------------------------------------------------------------


def run_one(name: str) -> None:
    """Run one case in this process and print its row as JSON."""
    torch.set_num_threads(1)
    source = SOURCES[name.partition("/")[0]]
    build, example = next(case for key, case in source() if key == name)
    try:
        row = try_case(build, example)
        row["ok"] = row["trains"] == "yes" and not row["drops"][1]
    except Exception as error:
        row = {"ok": False, "failed": f"{type(error).__name__}: {str(error)[:300]}"}
    print("ROW " + json.dumps({"name": name} | row))


def main() -> None:
    """Run what is asked and not done yet, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="sources or case prefixes; all where none is given")
    parser.add_argument("--one", help="run one case in this process")
    parser.add_argument("--limit", type=int, default=240, help="seconds a case may take")
    parser.add_argument("--again", action="store_true", help="run cases anew that failed")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time")
    parser.add_argument("--table", action="store_true", help="only write the table from the results so far")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.one:
        run_one(options.one)
        return
    options.results.parent.mkdir(parents=True, exist_ok=True)
    done = {row["name"]: row for row in read(options.results)}
    todo = [] if options.table else [n for n in _names(options.names) if _is_due(done.get(n), options.again)]
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(lambda name: _in_process(name, options.limit), todo):
            with options.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{row['name']:45s} {'ok' if row['ok'] else 'MISS'} {why(row)[:150]}", flush=True)
    if options.results == RESULTS:
        RESULTS.with_suffix(".md").write_text(table(read(RESULTS)))


def _names(wanted: list[str]) -> Iterator[str]:
    for kind, source in SOURCES.items():
        if not wanted or any(n.startswith(kind) for n in wanted):
            yield from (name for name, _ in source() if not wanted or any(name.startswith(n) for n in wanted))


def _is_due(row: dict[str, Any] | None, again: bool) -> bool:
    return row is None or (again and not row["ok"])


def why(row: dict[str, Any]) -> str:
    """What is wrong with a case; empty where it is right."""
    if row["ok"]:
        return ""
    told = [row.get("failed", ""), *row.get("drops", [0, []])[1]]
    if row.get("trains", "yes") != "yes":
        told.append(f"does not train: {row['trains']}")
    return "; ".join(t for t in told if t)


def table(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown: a summary, the misses with their reasons, and every case."""
    lines = [
        "# The wide zoo",
        "",
        "`python benchmarks/zoo.py`: each model traced without a hint, every other unit of every prunable group cut at once, the",
        "result verified against the original without these units, up to six blocks dropped one by one (verified too), and",
        "the cut model trained one step in training mode. A case is right where all of that holds.",
        "",
        "| source | right | of | groups prunable | parameters left (median) |",
        "|---|---|---|---|---|",
    ]
    for kind in SOURCES:
        mine = [r for r in rows if r["name"].startswith(f"{kind}/")]
        cut = sorted(r["params"][1] / max(r["params"][0], 1) for r in mine if "params" in r)
        prunable, groups = (sum(r.get(key, 0) for r in mine) for key in ("prunable", "groups"))
        if mine:
            left = f"{cut[len(cut) // 2]:.0%}" if cut else ""
            lines.append(f"| {kind} | {sum(r['ok'] for r in mine)} | {len(mine)} | {prunable} of {groups} | {left} |")
    misses = [r for r in rows if not r["ok"]]
    lines += ["", "## Misses", ""] + ([f"* `{r['name']}`: {why(r)}" for r in misses] or ["None."])
    lines += [
        "",
        "## Every case",
        "",
        "| model | trace (s) | cut (s) | prunable | parameters left | MACs left | error | blocks | MB |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for r in sorted(rows, key=lambda row: row["name"]):
        if "params" in r:
            params, macs = (r[key][1] / max(r[key][0], 1) for key in ("params", "macs"))
            lines.append(
                f"| {r['name']} | {r['trace_s']:.2f} | {r['cut_s']:.2f} | {r['prunable']} of {r['groups']} | {params:.0%} | {macs:.0%} "
                f"| {r['error']:.0e} | {r['blocks'][0]} of {r['blocks'][1]} | {r['memory_mb']} |"
            )
    return "\n".join(lines) + "\n"


def _in_process(name: str, limit: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"name": name, "ok": False, "failed": f"over {limit} s"}
    rows = [line[4:] for line in done.stdout.splitlines() if line.startswith("ROW ")]
    if not rows:
        return {"name": name, "ok": False, "failed": "process ended: " + done.stderr.strip()[-200:]}
    row: dict[str, Any] = json.loads(rows[-1])
    return row


def read(path: Path) -> list[dict[str, Any]]:
    """Rows so far, the last one of each name."""
    if not path.exists():
        return []
    rows = {row["name"]: row for row in map(json.loads, path.read_text().splitlines())}
    return list(rows.values())


if __name__ == "__main__":
    main()
