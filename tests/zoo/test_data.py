"""Every published format, as small files of the same form."""

import os
import pickle
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nervure.zoo.data
from nervure.errors import ArgumentError, DataError, MissingExtraError
from nervure.zoo import DATASETS, load
from nervure.zoo.readers.embedded import SHA256, read_verified
from nervure.zoo.readers.idx import read_idx, write_idx
from nervure.zoo.subset import main, make_subset

EMBEDDED = Path(nervure.zoo.data.__file__).parent / "assets" / "fashion-mnist-subset"


def random_pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def write_pickled(folder: Path, files: dict[str, int], key: bytes, labels: int, per_file: int = 40) -> np.ndarray:
    folder.mkdir(parents=True)
    for name, seed in files.items():
        batch = {b"data": random_pixels(per_file, seed), key: [i % labels for i in range(per_file)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return random_pixels(per_file, next(iter(files.values())))


def write_cifar10(root: Path) -> np.ndarray:
    folder = root / "cifar-10-batches-py"
    files = {f"data_batch_{i}": i for i in range(1, 6)} | {"test_batch": 6}
    pixels = write_pickled(folder, files, b"labels", 10)
    names = {b"label_names": [f"thing {i}".encode() for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))
    return pixels


def write_images(folder: Path, count: int, value: int, side: int = 12, suffix: str = "png") -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (side, side), (value, i, 0)).save(folder / f"{value}_{i}.{suffix}")


def test_the_embedded_subset_is_balanced_and_as_made():
    data = load("fashion-mnist-subset")
    assert data.train.labels.bincount().tolist() == [900] * 10
    assert data.validation.labels.bincount().tolist() == [100] * 10
    assert data.test.labels.bincount().tolist() == [200] * 10
    assert data.shape == (1, 28, 28)
    assert data.classes[9] == "Ankle boot"


def test_no_image_of_the_embedded_subset_is_in_two_splits():
    data = load("fashion-mnist-subset")
    seen = [{image.numpy().tobytes() for image in split.images} for split in (data.train, data.validation, data.test)]
    assert seen[0] & seen[1] == seen[0] & seen[2] == seen[1] & seen[2] == set()


def test_an_altered_subset_is_refused(tmp_path):
    for file in SHA256:
        (tmp_path / file).write_bytes((EMBEDDED / file).read_bytes())
    assert len(read_verified(tmp_path).train[1]) == 10_000
    content = bytearray((tmp_path / "train-labels-idx1-ubyte.gz").read_bytes())
    content[-20] ^= 1
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match="altered"):
        read_verified(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="missing"):
        read_verified(tmp_path)


def test_the_subset_is_the_first_of_every_class_and_made_the_same_every_time(tmp_path):
    made = [make_subset(EMBEDDED, tmp_path / name, {"train": 5, "t10k": 2}) for name in ("one", "two")]
    assert made[0] == made[1]
    full, labels = (read_idx(EMBEDDED / f"train-{part}-ubyte.gz") for part in ("images-idx3", "labels-idx1"))
    chosen = read_idx(tmp_path / "one" / "train-images-idx3-ubyte.gz")
    assert len(chosen) == 50
    assert np.array_equal(chosen[0], full[0])
    assert {image.tobytes() for image in chosen} == {
        image.tobytes() for c in range(10) for image in full[labels == c][:5]
    }


@pytest.mark.skipif("ng" in zlib.ZLIB_RUNTIME_VERSION, reason="another deflate packs the same images into other bytes")
def test_the_embedded_files_can_be_made_again_byte_for_byte(tmp_path, capsys):
    # The subset of the subset is the subset, so this needs no full data set.
    assert main([str(EMBEDDED), str(tmp_path)]) == 0
    assert "differs" not in capsys.readouterr().out
    assert all((tmp_path / file).read_bytes() == (EMBEDDED / file).read_bytes() for file in SHA256)


def test_without_the_full_set_the_subset_takes_its_place_under_its_own_name(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(nervure.zoo.data, "FASHION_PLACE", tmp_path)
    assert load("fashion-mnist").name == "fashion-mnist-subset"
    assert "embedded subset" in caplog.text


def test_fashion_mnist_is_read_from_root_packed_or_not(tmp_path):
    make_subset(EMBEDDED, tmp_path, {"train": 20, "t10k": 3})
    packed = tmp_path / "train-images-idx3-ubyte.gz"
    before = load("fashion-mnist", tmp_path)
    images = read_idx(packed)
    header = bytes((0, 0, 8, 3)) + np.array(images.shape, dtype=">u4").tobytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + images.tobytes())
    packed.unlink()
    assert torch.equal(load("fashion-mnist", str(tmp_path)).train.images, before.train.images)
    assert before.name == "fashion-mnist"
    assert before.test.images.shape == (30, 1, 28, 28)


def test_a_damaged_idx_file_is_refused(tmp_path):
    path = tmp_path / "a.gz"
    write_idx(path, np.zeros((3, 4, 4)))
    assert read_idx(path).shape == (3, 4, 4)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(path)
    plain = tmp_path / "b"
    plain.write_bytes(bytes((0, 0, 8, 1, 0, 0, 0, 9)) + bytes(5))
    with pytest.raises(DataError, match="announces shape"):
        read_idx(plain)
    plain.write_bytes(b"what")
    with pytest.raises(DataError, match="does not start like"):
        read_idx(plain)


def test_digits_have_a_test_split_that_no_seed_moves():
    first, second = load("digits", seed=0), load("digits", seed=1)
    assert torch.equal(first.test.images, second.test.images)
    assert not torch.equal(first.validation.images, second.validation.images)
    assert len(first.train) + len(first.validation) + len(first.test) == 1797
    assert not first.train.flips


@pytest.mark.parametrize(("name", "module"), [("digits", "sklearn.datasets"), ("folder", "PIL.Image")])
def test_a_missing_package_names_the_extra(monkeypatch, tmp_path, name, module):
    write_images(tmp_path / "a", 1, 0)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[data\]'"):
        load(name, tmp_path)


@pytest.mark.parametrize("is_inside", [True, False])
def test_cifar10_is_read_from_its_python_version(tmp_path, is_inside):
    pixels = write_cifar10(tmp_path)
    data = load("cifar10", tmp_path / "cifar-10-batches-py" if is_inside else tmp_path, checksum=False)
    assert (len(data.train), len(data.validation), len(data.test)) == (180, 20, 40)
    assert data.classes[3] == "thing 3"
    stored = {image.numpy().tobytes() for split in (data.train, data.validation) for image in split.images}
    assert {row.tobytes() for row in pixels} <= stored


def test_cifar10_pixels_are_planes_of_red_green_and_blue(tmp_path):
    write_cifar10(tmp_path)
    test = load("cifar10", tmp_path, checksum=False).test.images
    assert np.array_equal(test[0].numpy().reshape(-1), random_pixels(40, 6)[0])


def test_cifar_files_that_are_not_the_published_ones_are_refused_unless_asked(tmp_path):
    write_cifar10(tmp_path)
    with pytest.raises(DataError, match=r"data_batch_1.*published.*checksum=False"):
        load("cifar10", tmp_path)


def test_cifar100_is_read_by_its_fine_labels(tmp_path):
    write_pickled(tmp_path / "cifar-100-python", {"train": 1, "test": 2}, b"fine_labels", 100, per_file=400)
    data = load("cifar100", tmp_path, checksum=False)
    assert len(data.classes) == 100
    assert data.validation.labels.bincount().tolist() == [1] * 100


def test_the_binary_versions_hold_the_same_as_the_python_ones(tmp_path):
    write_cifar10(tmp_path / "python")
    folder = tmp_path / "binary" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, seed in {f"data_batch_{i}.bin": i for i in range(1, 6)}.items() | {("test_batch.bin", 6)}:
        labels = np.arange(40, dtype=np.uint8)[:, None] % 10
        (folder / name).write_bytes(np.hstack([labels, random_pixels(40, seed)]).tobytes())
    python, binary = load("cifar10", tmp_path / "python", checksum=False), load("cifar10", tmp_path / "binary")
    assert torch.equal(python.train.images, binary.train.images)
    assert torch.equal(python.train.labels, binary.train.labels)


def test_binary_cifar100_skips_the_coarse_label(tmp_path):
    for name, seed in (("train.bin", 0), ("test.bin", 1)):
        fine = np.arange(200, dtype=np.uint8)[:, None] % 100
        (tmp_path / name).write_bytes(np.hstack([fine // 5, fine, random_pixels(200, seed)]).tobytes())
    assert load("cifar100", tmp_path).test.labels.tolist() == [i % 100 for i in range(200)]


def test_a_truncated_binary_batch_is_refused(tmp_path):
    for name in ("train.bin", "test.bin"):
        (tmp_path / name).write_bytes(bytes(3074 * 2 - 1))
    with pytest.raises(DataError, match="truncated"):
        load("cifar100", tmp_path)


class Malicious:
    def __reduce__(self):
        return os.mkdir, (str(self.target),)

    def __init__(self, target: Path) -> None:
        self.target = target


def test_a_pickle_that_would_run_code_is_refused_before_it_does(tmp_path):
    write_cifar10(tmp_path)
    evil = {b"data": random_pixels(2), b"labels": [0, 1], b"more": Malicious(tmp_path / "owned")}
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(evil, protocol=2))
    with pytest.raises(DataError, match=r"refused as a pickled batch: it names \w+\.mkdir"):
        load("cifar10", tmp_path, checksum=False)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps([1, 2]),
        b"not a pickle",
        pickle.dumps({b"labels": [1]}),
        pickle.dumps({b"data": random_pixels(2), b"labels": [0, [1]]}, protocol=2),
        pickle.dumps({b"data": random_pixels(2), b"labels": [0, 1, 2]}, protocol=2),
        pickle.dumps({b"data": random_pixels(2) / 255, b"labels": [0, 1]}, protocol=2),
        pickle.dumps({b"data": random_pixels(2), b"labels": [0, 10]}, protocol=2),
    ],
)
def test_a_batch_that_is_not_one_is_refused(tmp_path, content):
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError):
        load("cifar10", tmp_path, checksum=False)


def write_tiny_imagenet(root: Path) -> None:
    for value, wnid in ((10, "n02"), (20, "n01")):
        write_images(root / "train" / wnid / "images", 4, value, side=64, suffix="JPEG")
    write_images(root / "val" / "images", 3, 20, side=64, suffix="JPEG")
    lines = [f"20_{i}.JPEG\t{wnid}\t0\t0\t62\t62" for i, wnid in enumerate(("n01", "n01", "n02"))]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (root / "wnids.txt").write_text("n02\nn01\n")
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn99\tother\n")


def test_tiny_imagenet_takes_labels_from_folders_and_annotations(tmp_path):
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    data = load("tiny-imagenet", tmp_path, validation=0.25)
    assert data.classes == ("n02", "goldfish, Carassius auratus")
    assert data.test.labels.tolist() == [1, 1, 0]
    assert data.train.images.shape == (6, 3, 64, 64)
    assert (data.train.images[data.train.labels == 0][:, 0] < 15).all()


def test_an_annotation_of_an_unknown_class_names_its_line(tmp_path):
    write_tiny_imagenet(tmp_path)
    with (tmp_path / "val" / "val_annotations.txt").open("a") as file:
        file.write("x.JPEG\tn77\t0\t0\t1\t1\n")
    with pytest.raises(DataError, match="line 4: 'n77'"):
        load("tiny-imagenet", tmp_path)


def test_a_folder_of_classes_gets_a_test_split_drawn(tmp_path):
    write_images(tmp_path / "cat", 20, 1)
    write_images(tmp_path / "dog", 10, 2)
    data = load("folder", tmp_path, validation=0.25)
    assert data.classes == ("cat", "dog")
    assert data.test.labels.bincount().tolist() == [4, 2]
    assert data.validation.labels.bincount().tolist() == [4, 2]
    assert (data.train.images[:, 0, 0, 0] == data.train.labels + 1).all()


@pytest.mark.parametrize("held", ["test", "val"])
def test_a_folder_that_has_a_test_split_keeps_it(tmp_path, held):
    for part, count in (("train", 6), (held, 3)):
        write_images(tmp_path / part / "cat", count, 1)
        write_images(tmp_path / part / "dog", count, 2)
    data = load("folder", tmp_path, validation=0.5)
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 6, 6)


def test_images_of_several_sizes_need_a_size(tmp_path):
    write_images(tmp_path / "cat", 5, 1, side=12)
    write_images(tmp_path / "dog", 5, 2, side=20)
    with pytest.raises(DataError, match="size=SIDE"):
        load("folder", tmp_path)
    assert load("folder", tmp_path, size=8).shape == (3, 8, 8)


def test_a_file_that_is_no_image_is_named(tmp_path):
    write_images(tmp_path / "cat", 5, 1)
    (tmp_path / "cat" / "z.png").write_text("hello")
    with pytest.raises(DataError, match=r"z\.png.*cannot be read as an image"):
        load("folder", tmp_path)


def test_a_class_without_images_is_named(tmp_path):
    write_images(tmp_path / "cat", 5, 1)
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match=r"dog.*holds no image"):
        load("folder", tmp_path)


def test_images_are_resized_to_the_side_asked_for():
    assert load("digits", size=16).shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("fashion-mnist", "train-images-idx3-ubyte.gz"),
        ("cifar10", "data_batch_1"),
        ("cifar100", "fine_label_names.txt"),
        ("tiny-imagenet", "val_annotations.txt"),
        ("folder", "CLASS/IMAGE"),
    ],
)
def test_a_missing_data_set_says_which_files_to_put_where(tmp_path, name, file):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError) as caught:
            load(name, root)
        assert file in str(caught.value)
        assert str(root) in str(caught.value)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny-imagenet", "folder"])
def test_a_data_set_that_is_not_installed_asks_for_its_root(name):
    with pytest.raises(DataError, match="Pass root=FOLDER"):
        load(name)


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(ArgumentError, match="Did you mean 'cifar10'"):
        load("cifar-10")


@pytest.mark.parametrize("options", [{"size": 2}, {"size": "big"}, {"validation": 0.0}, {"seed": -1}])
def test_load_refuses_arguments_out_of_range(options):
    with pytest.raises(ArgumentError, match=next(iter(options))):
        load("digits", **options)


def test_the_registry_names_every_documented_data_set():
    assert all(f'"{name}"' in (load.__doc__ or "") for name in DATASETS)
