import numpy as np
import pytest
import torch

from nervure import evaluate, zoo
from nervure.errors import ArgumentError, DataError
from nervure.zoo.data import fake

SIDE, COUNT = 8, 6


@pytest.fixture(scope="module")
def clean():
    return fake(samples=24, side=SIDE).test


def pictures(seed, count=5 * COUNT):
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def arrays(tmp_path):
    """A folder of the form of CIFAR-10-C."""
    for seed, name in enumerate(("fog", "contrast")):
        np.save(tmp_path / f"{name}.npy", pictures(seed))
    np.save(tmp_path / "labels.npy", np.tile(np.arange(COUNT) % 4, 5).astype(np.uint8))
    return tmp_path


@pytest.fixture
def folders(tmp_path):
    """A folder of the form of Tiny-ImageNet-C, with PNG files, which keep every bit."""
    image = pytest.importorskip("PIL.Image")
    for severity in (1, 2):
        for label, name in enumerate(("n01", "n02", "n03", "n04")):
            place = tmp_path / "fog" / str(severity) / name
            place.mkdir(parents=True)
            for number in range(2):
                image.fromarray(pictures(100 * severity + 10 * label + number, 1)[0]).save(place / f"{number}.png")
    return tmp_path


def test_severities_lie_one_after_the_other(arrays, clean):
    found = zoo.load_corrupted(arrays, clean, batch_size=4)
    assert list(found) == [(name, s) for name in ("contrast", "fog") for s in (1, 2, 3, 4, 5)]
    (first, first_labels), (second, second_labels) = found["fog", 3]
    expected = clean.normalise(torch.from_numpy(pictures(0)[2 * COUNT : 3 * COUNT]).permute(0, 3, 1, 2))
    assert torch.equal(torch.cat([first, second]), expected)
    assert torch.cat([first_labels, second_labels]).tolist() == [0, 1, 2, 3, 0, 1]


def test_labels_may_be_those_of_one_severity(arrays, clean):
    np.save(arrays / "labels.npy", np.array([3, 2, 1, 0, 1, 2]))
    ((_, labels),) = zoo.load_corrupted(arrays, clean)["fog", 4]
    assert labels.tolist() == [3, 2, 1, 0, 1, 2]


def test_grey_pictures_have_a_channel_too(tmp_path):
    grey = fake(samples=24, side=SIDE, channels=1).test
    np.save(tmp_path / "fog.npy", pictures(0)[..., :1])
    np.save(tmp_path / "labels.npy", np.zeros(5 * COUNT, dtype=int))
    ((images, _),) = zoo.load_corrupted(tmp_path, grey)["fog", 1]
    assert images.shape == (COUNT, 1, SIDE, SIDE)


def test_only_the_rows_of_a_batch_are_read(arrays, clean, monkeypatch):
    mapped = []
    memmap = np.memmap

    def noting(path, *options):
        mapped.append((path.name, options[1]))
        return memmap(path, *options)

    monkeypatch.setattr(np, "memmap", noting)
    found = zoo.load_corrupted(arrays, clean, batch_size=2)
    assert mapped == []
    next(iter(found["fog", 2]))
    assert mapped == [("fog.npy", "r"), ("labels.npy", "r")]


def test_a_sample_is_the_same_for_every_corruption(arrays, clean):
    np.save(arrays / "labels.npy", np.array([0, 0, 0, 1, 1, 1]))
    found = zoo.load_corrupted(arrays, clean, samples=4, severities=[1, 5])
    seen = {}
    for (name, severity), batches in found.items():
        ((images, labels),) = batches
        assert sorted(labels.tolist()) == [0, 0, 1, 1]
        whole = pictures({"fog": 0, "contrast": 1}[name])[(severity - 1) * COUNT : severity * COUNT]
        every = clean.normalise(torch.from_numpy(whole).permute(0, 3, 1, 2))
        seen[name, severity] = [int((every == one).flatten(1).all(1).nonzero()) for one in images]
    assert len({tuple(places) for places in seen.values()}) == 1


def test_files_in_folders_of_classes(folders, clean):
    found = zoo.load_corrupted(folders, clean, severities=[2])
    ((images, labels),) = found["fog", 2]
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    expected = torch.from_numpy(pictures(200 + 10 * 2 + 1, 1)).permute(0, 3, 1, 2)
    assert torch.equal(images[5:6], clean.normalise(expected))


def test_classes_come_in_the_order_that_is_given_or_written(folders, clean):
    order = ("n03", "n01", "n04", "n02")
    ((given, labels),) = zoo.load_corrupted(folders, clean, severities=[1], order=order)["fog", 1]
    ((plain, _),) = zoo.load_corrupted(folders, clean, severities=[1])["fog", 1]
    assert torch.equal(given[:2], plain[4:6]) and labels[:2].tolist() == [0, 0]
    (folders / "wnids.txt").write_text("\n".join(order), encoding="utf-8")
    ((written, _),) = zoo.load_corrupted(folders, clean, severities=[1])["fog", 1]
    assert torch.equal(written, given)


def test_a_network_is_evaluated_on_them(arrays, clean):
    class Brightest(torch.nn.Module):
        def forward(self, x):
            return torch.stack([x.mean((1, 2, 3)) * k for k in (1, -1, 0, 0)], 1)

    found = evaluate(Brightest(), clean.batches(8), shift=zoo.load_corrupted(arrays, clean), progress=False)
    ((images, labels),) = zoo.load_corrupted(arrays, clean)["fog", 5]
    right = (Brightest()(images).argmax(1) == labels).float().mean()
    assert found.rows["fog", 5].accuracy == pytest.approx(float(right)) and len(found.rows) == 10
    assert set(found.by_group) == {"weather", "digital"}


def test_what_does_not_fit_is_refused(arrays, clean, tmp_path):
    with pytest.raises(DataError, match=r"no corruption 'fogg'.*Did you mean 'fog'"):
        zoo.load_corrupted(arrays, clean, names=["fogg"])
    with pytest.raises(ArgumentError, match="severity"):
        zoo.load_corrupted(arrays, clean, severities=[6])
    with pytest.raises(ArgumentError, match="samples"):
        zoo.load_corrupted(arrays, clean, samples=-1)
    with pytest.raises(DataError, match="not a folder"):
        zoo.load_corrupted(tmp_path / "none", clean)
    other = fake(samples=24, side=2 * SIDE).test
    with pytest.raises(DataError, match=r"3 x 8 x 8.*3 x 16 x 16"):
        next(iter(zoo.load_corrupted(arrays, other)["fog", 1]))
    np.save(arrays / "labels.npy", np.full(5 * COUNT, 4))
    with pytest.raises(DataError, match="run from 4 to 4; the clean data have 4 classes"):
        next(iter(zoo.load_corrupted(arrays, clean)["fog", 1]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no corruption"):
        zoo.load_corrupted(tmp_path / "empty", clean)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pictures(0, 29), "five severities"),
        (pictures(0, 25), "five severities"),
        (pictures(0).astype(np.float32), "uint8"),
        (pictures(0)[..., 0], "uint8"),
        (np.array([object()]), "cannot be read"),
        (b"\x93NUMPY truncated", "cannot be read"),
    ],
)
def test_damaged_arrays_are_refused_with_their_name(arrays, clean, array, message):
    if isinstance(array, bytes):
        (arrays / "fog.npy").write_bytes(array)
    else:
        np.save(arrays / "fog.npy", array)
    with pytest.raises(DataError, match=f"fog.npy.*{message}"):
        next(iter(zoo.load_corrupted(arrays, clean)["fog", 1]))


def test_damaged_folders_are_refused(folders, clean):
    with pytest.raises(DataError, match="no severity 3"):
        zoo.load_corrupted(folders, clean)
    with pytest.raises(DataError, match=r"other classes.*n04, n05"):
        zoo.load_corrupted(folders, clean, severities=[1], order=("n01", "n02", "n03", "n05"))
    (folders / "fog" / "1" / "n02" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read as an image"):
        next(iter(zoo.load_corrupted(folders, clean, severities=[1])["fog", 1]))
