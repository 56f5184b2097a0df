"""Files made to do harm, or damaged by a disk: a DataError, or what the files hold, and nothing else."""

import gzip
import os
import pickle
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nervure import zoo
from nervure.errors import DataError
from nervure.zoo import load
from nervure.zoo.data import fake
from nervure.zoo.readers.cifar import PICKLED_10
from nervure.zoo.readers.idx import read_idx, write_idx
from nervure.zoo.readers.pickled import read_arrays
from nervure.zoo.readers.raw import require_room

PIXELS = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
BATCH = {b"data": PIXELS, b"labels": [3, 7], b"filenames": [b"a.png", b"b.png"], b"batch_label": b"one"}


def saved(folder: Path, content: bytes, name: str = "batch") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def by_python_2(
    data: bytes = PIXELS.tobytes(), shape: bytes = b"K\x02M\x00\x0c\x86", dtype: bytes = b"U\x02u1"
) -> bytes:
    """As the published batches are written."""
    return (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b"
        b"\x87Rq\x05(K\x01" + shape + b"cnumpy\ndtype\nq\x06" + dtype + b"K\x00K\x01\x87Rq\x07(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<I", len(data)) + data + b"tb"
        b"U\x06labelsq\x08]q\x09(K\x03K\x07eU\x09filenamesq\x0a]q\x0b(U\x05a.pngq\x0cU\x05b.pngq\x0deu."
    )


def test_a_batch_as_python_2_wrote_it_is_read(tmp_path):
    found = read_arrays(saved(tmp_path, by_python_2()))
    assert np.array_equal(found[b"data"], PIXELS)
    assert found[b"labels"] == [3, 7]
    assert found[b"filenames"] == [b"a.png", b"b.png"]


@pytest.mark.parametrize("writer", [pickle.dumps, lambda *given, **options: pickle._dumps(*given, **options)])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("is_old", [True, False])
def test_a_batch_that_was_pickled_again_is_read_whatever_the_protocol_and_numpy(tmp_path, writer, protocol, is_old):
    more = (1.5, None, True, -(2**70))
    arrays = {"fine_labels": np.array([1, 2], dtype=">i4"), "rows": np.asfortranarray(PIXELS), "more": more}
    content = writer(BATCH | arrays, protocol=protocol)
    if is_old:
        for part in (b"multiarray", b"numeric"):
            old, new = b"numpy.core." + part, b"numpy._core." + part
            content = content.replace(bytes([len(new)]) + new, bytes([len(old)]) + old).replace(new, old)
    found = read_arrays(saved(tmp_path, content))
    assert list(found) == [*BATCH, b"fine_labels", b"rows", b"more"]
    for name in (b"data", b"rows"):
        assert found[name].dtype == np.uint8
        assert np.array_equal(found[name], PIXELS)
    assert found[b"fine_labels"].tolist() == [1, 2]
    assert found[b"labels"] == [3, 7]
    assert found[b"more"] == more


def shape_of(*sizes: int) -> bytes:
    return pickle.dumps(tuple(sizes), protocol=2)[2:-1]


HOSTILE: dict[str, tuple[bytes, str]] = {
    "a shape of 10^12": (by_python_2(shape=shape_of(10**6, 10**6)), "shape"),
    "a shape whose product wraps to the right one": (by_python_2(shape=shape_of(2**32, 2**32, 6144)), "shape"),
    "a negative shape": (by_python_2(shape=shape_of(-2, -3072)), "shape"),
    "a shape of nothing": (by_python_2(shape=shape_of()), "shape"),
    "a shape of ten thousand axes": (by_python_2(shape=shape_of(*[1] * 10_000)), "shape"),
    "a shape one too large": (by_python_2(shape=shape_of(3, 3072)), "6144 bytes, not 9216"),
    "objects": (by_python_2(dtype=b"U\x01O"), "not of numbers"),
    "objects by another name": (by_python_2(dtype=b"U\x02O8"), "not of numbers"),
    "a dtype of a billion bytes": (by_python_2(dtype=b"U\x0bV1000000000"), "not of numbers"),
    "a string of 4 GB": (b"\x80\x02T\xff\xff\xff\xffabc", "refused"),
    "bytes of 2^62": (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"abc", "refused"),
    "a number of 2 GB": (b"\x80\x02\x8b\xff\xff\xff\x7fabc", "refused"),
    "code": (b"\x80\x02cos\nsystem\nU\x04exitq\x00\x85R.", "names os.system"),
    "code by protocol 4": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "names os.system"),
    "a name with a line break": (b"\x80\x04\x8c\x04o\ns\n\x8c\x06system\x93.", r"names o\.s\.system"),
    "an instance": (b"\x80\x02(ios\nsystem\n.", "INST"),
    "an extension": (b"\x80\x02\x82\x01.", "EXT1"),
    "persistent things": (b"\x80\x02U\x01aQ.", "BINPERSID"),
    "a call of what is no function": (b"\x80\x02cnumpy\nndarray\n)R.", "calls what is no function"),
    "state for a list": (b"\x80\x02](K\x01tb.", "changes what is no"),
    "nothing": (b"", "refused"),
    "no value": (b"\x80\x02.", "none"),
    "two values": (b"\x80\x02NN.", "more than one"),
    "more taken than put": (b"\x80\x02N\x86.", "takes more"),
    "a mark that is not there": (b"\x80\x02e.", "takes more"),
    "what was not kept": (b"\x80\x02h\x07.", "recalls"),
    "an odd number of items": (b"\x80\x02}(U\x01au.", "refused"),
    "a key that hashes forever": (b"\x80\x02}" + b")" + b"\x85" * 9000 + b"Ns.", "keys of no use"),
    "a key of a thousand letters": (pickle.dumps({"a" * 1000: 1}), "keys of no use"),
    "a list in a list in a list": (b"\x80\x02]" + b"]" * 5000 + b"a" * 5000 + b".", "list, not the dictionary"),
    "a list of itself": (b"\x80\x02}U\x06labels]q\x01h\x01as.", "lacks b'data'"),
    "opcodes without end": (b"\x80\x02" + b"]" * 50_000 + b".", "more than the"),
    "memories without end": (b"\x80\x04]" + b"\x94" * 50_000 + b".", "more than the"),
    "one text copied again and again": (
        b"\x80\x02(X" + struct.pack("<I", 50_000) + b"a" * 50_000 + b"q\x00X\x06\x00\x00\x00latin1\x86q\x01"
        b"c_codecs\nencode\nq\x02h\x01R" + b"h\x02h\x01R" * 2000 + b"l.",
        "copies more than it holds",
    ),
    "a line without end": (b"\x80\x02S'" + b"a" * 50_000, "refused"),
    "another protocol": (pickle.dumps(BATCH, protocol=0), "refused"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_pickle_that_means_harm_is_refused_in_little_memory(tmp_path, name):
    content, words = HOSTILE[name]
    for file in (*PICKLED_10.train, *PICKLED_10.test):
        saved(tmp_path, content, file)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=words) as found:
            load("cifar10", tmp_path, checksum=False)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()
    assert "data_batch_1" in str(found.value)


def test_reading_a_batch_takes_about_twice_its_size(tmp_path):
    large = {b"data": np.zeros((5000, 3072), dtype=np.uint8), b"labels": [1] * 5000}
    path = saved(tmp_path, pickle.dumps(large, protocol=3))
    tracemalloc.start()
    try:
        read_arrays(path)
        assert tracemalloc.get_traced_memory()[1] < 1.2 * path.stat().st_size
    finally:
        tracemalloc.stop()


def test_labels_that_share_one_long_string_are_refused_before_they_are_unrolled(tmp_path):
    labels = ["x" * 100_000] * 3000
    for file in (*PICKLED_10.train, *PICKLED_10.test):
        saved(tmp_path, pickle.dumps({b"data": PIXELS, b"labels": labels}), file)
    with pytest.raises(DataError, match="other things than class numbers"):
        load("cifar10", tmp_path, checksum=False)


def idx(*shape: int, content: bytes = b"") -> bytes:
    return bytes((0, 0, 8, len(shape))) + np.array(shape, dtype=">u4").tobytes() + content


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (idx(4_000_000_000, 4_000_000_000, 4_000_000_000), "has .* bytes"),
        (idx(0, 4_000_000_000), "should hold something"),
        (idx(*[1] * 200, content=b"1"), "should hold something"),
        (idx(), "should hold something"),
        (idx(3)[:-2], "should hold something"),
        (idx(3, content=b"12"), "number of bytes|has 10 bytes"),
        (idx(3, content=b"1234"), "number of bytes|has 12 bytes"),
        (idx(3, content=bytes(50_000_000)), "number of bytes|has 50000008 bytes"),
    ],
)
def test_an_idx_file_is_what_its_header_announces_or_refused_in_little_memory(tmp_path, content, words, is_packed):
    path = saved(tmp_path, gzip.compress(content, 1) if is_packed else content, "a.gz" if is_packed else "a")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=words):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


def test_what_promises_far_more_than_its_file_holds_is_refused():
    require_room(1 << 28, 1, "it")
    require_room(64 << 30, 1 << 30, "it")
    with pytest.raises(DataError, match="1,000,000,000,000 bytes of memory, from 1,000,000 bytes"):
        require_room(10**12, 10**6, "it")


def npy(shape: str, descr: str = "'|u1'", content: bytes = b"", version: int = 1) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return (
        b"\x93NUMPY" + bytes((version, 0)) + struct.pack("<H" if version == 1 else "<I", len(header)) + header + content
    )


@pytest.mark.parametrize(
    "content",
    [
        npy("(1000000, 1000000, 32, 3)"),
        npy("(4294967296, 4294967296, 4, 3)"),
        npy("(-5, 4, 4, -3)", content=bytes(240)),
        npy("()", content=b"1"),
        npy("(5, 4, 4, 3)", content=bytes(239)),
        npy("(5, 4, 4, 3)", content=bytes(241)),
        npy("(5,)", "'|O'", bytes(40)),
        npy("(5,)", "'|V100'", bytes(500)),
        npy("(5,)", "[('a', '|u1')]", bytes(5)),
        npy("(5,)", "('|u1', (3,))", bytes(15)),
        npy("(5,)", "-" * 3000 + "1"),
        npy("(" * 1500 + ")" * 1500),
        npy("(5,)", version=3),
        npy("(5,)", version=2)[:10],
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
        b"PK\x03\x04" + bytes(100),
        pickle.dumps([1, 2]),
        b"",
    ],
)
def test_a_hostile_array_is_refused_before_memory_is_taken(tmp_path, content):
    clean = fake(samples=24, side=4).test
    saved(tmp_path, content, "fog.npy")
    np.save(tmp_path / "labels.npy", np.zeros(5, dtype=int))
    with pytest.raises(DataError, match=r"fog\.npy.*cannot be read|fog\.npy.* holds"):
        next(iter(zoo.load_corrupted(tmp_path, clean)["fog", 1]))


def test_a_corruption_whose_name_cannot_be_printed_is_refused(tmp_path):
    saved(tmp_path, b"", "fo\ng.npy")
    saved(tmp_path, b"", "labels.npy")
    with pytest.raises(DataError, match="cannot be printed"):
        zoo.load_corrupted(tmp_path, fake().test)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(4):
        for name in "ab":
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    return tmp_path


def png_of(width: int, height: int) -> bytes:
    """The head of an image of this size; its pixels are missing."""
    content = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", width, height) + b"\x08\x02\x00\x00\x00"
    return content + struct.pack(">II", zlib.crc32(content[12:]), 9) + b"IDAT"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (png_of(12_000, 12_000), "decompression bomb"),
        (png_of(60_000, 60_000), "decompression bomb"),
        (png_of(9, 9), "9 x 9 pixels"),
        (png_of(8, 8), "cannot be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "cannot identify"),
        (b"P3 8 8 255 1 2 3", "cannot be read"),
        (b"", "cannot identify"),
    ],
)
def test_a_hostile_image_is_refused_by_name(pictures, content, words):
    saved(pictures / "b", content, "1.png")
    with pytest.raises(DataError, match=rf"b/1\.png.*{words}"):
        load("folder", pictures)


def test_many_images_that_unpack_to_far_more_than_their_files_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (3000, 3000)).save(tmp_path / "a" / "0.png")
    for number in range(1, 20):
        (tmp_path / "a" / f"{number}.png").symlink_to(tmp_path / "a" / "0.png")
    with pytest.raises(DataError, match="540,000,000 bytes of memory"):
        load("folder", tmp_path)


def test_names_that_cannot_be_printed_are_escaped_and_what_is_no_file_is_passed_over(pictures):
    odd = os.fsencode(pictures) + b"/b\xff\nc"
    os.rename(pictures / "b", odd)
    os.mkfifo(pictures / "a" / "4.png")
    (pictures / "a" / "5.png").symlink_to(pictures / "a" / "5.png")
    (pictures / "loop").symlink_to(pictures / "loop")
    (pictures / "a" / "up").symlink_to(pictures)
    data = load("folder", pictures, validation=0.5)
    assert data.classes == ("a", r"b\udcff\nc")
    assert len(data.describe().encode().splitlines()) == 6
    (Path(os.fsdecode(odd)) / "0.png").write_bytes(b"")
    with pytest.raises(DataError) as found:
        load("folder", pictures)
    assert "\n" not in str(found.value)
    assert str(found.value).encode()


def test_thousands_of_classes_are_read(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    for number in range(3000):
        (tmp_path / f"{number:04}").mkdir()
        for copy in "abc":
            os.link(tmp_path / "one.png", tmp_path / f"{number:04}" / f"{copy}.png")
    data = load("folder", tmp_path, validation=0.5)
    assert len(data.classes) == 3000


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    for wnid in ("n1", "n2"):
        (tmp_path / "train" / wnid / "images").mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8)).save(tmp_path / "train" / wnid / "images" / f"{number}.JPEG")
    (tmp_path / "val" / "images").mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / "val" / "images" / f"v{number}.JPEG")
    (tmp_path / "val" / "val_annotations.txt").write_text("v0.JPEG\tn1\t0\t0\t8\t8\nv1.JPEG\tn2\n")
    (tmp_path / "wnids.txt").write_text("n2\nn1\n")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("val/val_annotations.txt", b"../../wnids.txt\tn1\n", "line 1: '../../wnids.txt' is not in"),
        ("val/val_annotations.txt", b"v0.JPEG\tn1\n" * 2, "line 2: 'v0.JPEG' is not in .* or is named twice"),
        ("val/val_annotations.txt", b"v0.JPEG\tn1\nv\xff\tn1\n", "line 2: no text in UTF-8"),
        ("val/val_annotations.txt", b"v0.JPEG", "line 1: '' is not one of"),
        ("val/val_annotations.txt", b"a" * 3_000_000, "line 1: longer than"),
        ("wnids.txt", b"n1\nn2\nn1\n", "line 3: 'n1' stands there twice"),
        ("wnids.txt", b"n1\nn\xff\n", "line 2: no text"),
        ("wnids.txt", b"n1\nn2/../../val\n", "line 2: .* is no name of a folder"),
        ("wnids.txt", "\n".join(map(str, range(100_001))).encode(), "one more than 100000 classes"),
        ("words.txt", b"\xff\n", "line 1: no text"),
    ],
)
def test_hostile_lists_of_names_are_refused_with_their_line(tiny, file, content, words):
    (tiny / file).write_bytes(content)
    with pytest.raises(DataError, match=words):
        load("tiny-imagenet", tiny, size=8)


def test_a_home_of_nobody_is_refused():
    with pytest.raises(DataError, match="'~no-such-user/x' cannot be resolved"):
        load("folder", "~no-such-user/x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(pictures):
    (pictures / "a").chmod(0)
    with pytest.raises(DataError, match="Permission denied"):
        load("folder", pictures)


def mutations(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Bits flipped, bytes set, pieces cut, doubled, moved, zeroed and appended, numbers made extreme."""
    draw = random.Random(seed)
    for _ in range(count):
        data = bytearray(content)
        for _ in range(draw.choice((1, 1, 2, 5))):
            at = draw.choice((draw.randrange(len(data) + 1), draw.randrange(min(len(data), 300) + 1)))
            size = draw.choice((1, 2, 4, 8, 100))
            piece = bytes(data[at : at + size])
            data[at : at + size] = draw.choice(
                (
                    b"",
                    piece * 2,
                    bytes(size),
                    b"\xff" * size,
                    draw.randbytes(size),
                    bytes(b ^ (1 << draw.randrange(8)) for b in piece),
                )
            )
        yield bytes(data[: draw.randrange(len(data) + 1)] if draw.random() < 0.1 else data)


def cifar_file(folder: Path) -> tuple[Path, Callable[[], Any]]:
    for file in (*PICKLED_10.train, *PICKLED_10.test):
        saved(folder, by_python_2(), file)
    return folder / "data_batch_1", lambda: load("cifar10", folder, checksum=False)


def pickled_again(folder: Path) -> tuple[Path, Callable[[], Any]]:
    cifar_file(folder)
    saved(folder, pickle.dumps({b"label_names": [b"a%d" % i for i in range(10)]}, protocol=5), "batches.meta")
    return saved(folder, pickle.dumps(BATCH, protocol=5), "data_batch_1"), lambda: load(
        "cifar10", folder, checksum=False
    )


def names_file(folder: Path) -> tuple[Path, Callable[[], Any]]:
    pickled_again(folder)
    return folder / "batches.meta", lambda: load("cifar10", folder, checksum=False)


def packed_idx(folder: Path) -> tuple[Path, Callable[[], Any]]:
    write_idx(folder / "a.gz", np.arange(60).reshape(5, 4, 3))
    return folder / "a.gz", lambda: read_idx(folder / "a.gz")


def plain_idx(folder: Path) -> tuple[Path, Callable[[], Any]]:
    return saved(folder, idx(5, 4, 3, content=bytes(60)), "a"), lambda: read_idx(folder / "a")


def array_file(folder: Path) -> tuple[Path, Callable[[], Any]]:
    np.save(folder / "fog.npy", np.zeros((10, 4, 4, 3), dtype=np.uint8))
    np.save(folder / "labels.npy", np.arange(10) % 4)
    clean = fake(samples=24, side=4).test
    return folder / "fog.npy", lambda: list(zoo.load_corrupted(folder, clean)["fog", 2])


def labels_file(folder: Path) -> tuple[Path, Callable[[], Any]]:
    return folder / "labels.npy", array_file(folder)[1]


def image_file(suffix: str) -> Callable[[Path], tuple[Path, Callable[[], Any]]]:
    def made(folder: Path) -> tuple[Path, Callable[[], Any]]:
        picture = Image.effect_noise((8, 8), 50).convert("RGB")
        (folder / "a").mkdir()
        for number in range(4):
            picture.save(folder / "a" / f"{number}.{suffix}")
        return folder / "a" / f"1.{suffix}", lambda: load("folder", folder)

    made.__name__ = suffix
    return made


def annotations(folder: Path) -> tuple[Path, Callable[[], Any]]:
    for wnid in ("n1", "n2"):
        (folder / "train" / wnid / "images").mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8)).save(folder / "train" / wnid / "images" / f"{number}.png")
    (folder / "val" / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "val" / "images" / "v.png")
    return saved(folder / "val", b"v.png\tn1\t0\n", "val_annotations.txt"), lambda: load(
        "tiny-imagenet", folder, size=8
    )


FORMATS = [
    *(cifar_file, pickled_again, names_file, packed_idx, plain_idx, array_file, labels_file, annotations),
    *map(image_file, ("png", "jpg", "gif", "bmp", "webp", "ppm")),
]
MUTATIONS = int(os.environ.get("NERVURE_MUTATIONS", "60"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("made", FORMATS, ids=lambda made: made.__name__)
def test_a_mutated_file_is_read_or_refused_with_a_data_error(tmp_path, made):
    path, read = made(tmp_path)
    read()
    refused = 0
    for content in mutations(path.read_bytes(), MUTATIONS, seed=len(made.__name__)):
        path.write_bytes(content)
        try:
            read()
        except DataError as error:
            refused += 1
            assert str(error).isprintable()
    assert refused > 0
