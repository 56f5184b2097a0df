"""What people type into the search of the docs, and the page that must be among what it finds.

``docs/links.py`` asks the index of the built pages. Without building, ``page_words`` has what stands out on a page: its
title, its headings, and the words of its index.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

FOLDER = Path(__file__).parent
OUTSTANDING = re.compile(r"^#+ (.*)$|^```\{index\} (.*)$", re.MULTILINE)
BUILT = {"_build", "reference"}
SEARCHES: Mapping[str, str] = {
    "2:4": "methods/masks",
    "accelerate": "integrations/accelerate",
    "bert": "integrations/transformers",
    "checkpoint": "howto/resuming",
    "ctc": "integrations/speech",
    "cuda": "howto/gpu",
    "custom importance": "howto/own_method",
    "custom loss": "tasks",
    "ddp": "howto/processes",
    "deploy": "integrations/deploying",
    "detection": "integrations/ultralytics",
    "diffusion": "integrations/diffusers",
    "distillation": "howto/fine_tuning",
    "docker": "howto/engines",
    "executorch": "export",
    "fine-tune": "howto/fine_tuning",
    "glossary": "glossary",
    "gguf": "integrations/llama_cpp",
    "gpt": "integrations/transformers",
    "gpu": "howto/gpu",
    "huggingface": "integrations/transformers",
    "int8": "howto/engines",
    "latency": "latency",
    "lightning": "integrations/lightning",
    "llama": "integrations/transformers",
    "llm": "integrations/transformers",
    "memory": "concepts",
    "mixture of experts": "experts",
    "multi-gpu": "howto/processes",
    "onnx": "howto/engines",
    "openvino": "howto/engines",
    "out of memory": "howto/gpu",
    "quantization": "howto/engines",
    "regression": "integrations/plain_loop",
    "resume": "howto/resuming",
    "segmentation": "integrations/segmentation_models_pytorch",
    "sparsity": "glossary",
    "speech": "integrations/speech",
    "tensorboard": "trackers",
    "tensorrt": "howto/engines",
    "timm": "integrations/timm",
    "torchvision": "integrations/timm",
    "Torch-Pruning": "coming_from",
    "trainer": "integrations/transformers",
    "unet": "integrations/segmentation_models_pytorch",
    "vit": "integrations/transformers",
    "wandb": "trackers",
    "wav2vec2": "integrations/speech",
    "whisper": "integrations/speech",
    "yolo": "integrations/ultralytics",
}


def page_words(page: Path) -> list[str]:
    """What stands out on a page, in lower case: its headings, and the words of its index."""
    found = OUTSTANDING.findall(page.read_text(encoding="utf-8"))
    return [word.strip().lower() for heading, index in found for word in ([heading] if heading else index.split(","))]


def pages_for(query: str, folder: Path = FOLDER) -> Iterator[str]:
    """The pages on which a heading, or a word of the index, has all words of a query."""
    words = query.lower().split()
    pages = (page for page in folder.rglob("*.md") if page.relative_to(folder).parts[0] not in BUILT)
    for page in sorted(pages):
        if any(all(word in standing for word in words) for standing in page_words(page)):
            yield page.relative_to(folder).with_suffix("").as_posix()
