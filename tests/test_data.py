"""Data sets from every source, and batches that hold what they should."""
import hashlib
import os
import shutil
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from common import UserError, data, models

DIGESTS = {
    ("shapes10", False): "5d67489d6729cc52d5a3f062eb7129adb9bac8592e11f2304587451467fb3c6e",
    ("shapes10", True): "b3ea42d94cd005b532788d46aa40f9d10542138e8dca89366402314672382426",
    ("shapes100", False): "bdc1c24e86c0f1c04326a99444f651a12d5659dbbadb56b53851651e43bc4e37",
    ("shapes100", True): "fd5fc28aecd24206237e44263f5e9ffa590596503e9dbb21a4b079cd47b77a8a",
}


def arrays(n=12, classes=3, side=8, colours=3, value=None):
    rng = np.random.default_rng(0)
    shape = (n, side, side, colours) if colours else (n, side, side)
    x = rng.integers(0, 256, shape).astype(np.uint8) if value is None else np.full(shape, value, np.uint8)
    return {"x_train": x, "y_train": np.arange(n) % classes, "x_test": x[:6], "y_test": np.arange(6) % classes}


def write_npz(path, **kwargs):
    np.savez(path, **arrays(**kwargs))
    return path


def write_folder(path, mode="RGB", value=7, suffix="png", side=8):
    for split, count in (("train", 3), ("test", 2)):
        for label, cls in enumerate(("cat", "dog")):
            (path / split / cls).mkdir(parents=True)
            for i in range(count):
                colour = value + 100 * label + i
                image = Image.new(mode, (side, side), colour if mode == "L" else (colour, 0, 255))
                image.save(path / split / cls / f"{i}.{suffix}")
    return path


def made_images(n=24, side=8, classes=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, side, side, 3), generator=g, dtype=torch.uint8)
    y = torch.arange(n) % classes
    return data.Dataset("made", x, y, x[:6], y[:6], classes, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def loader(d, batch_size=8, **kwargs):
    return data.Loader(d, "train", batch_size, **{"shuffle": False, **kwargs})


def numbered(n, **kwargs):
    """A loader whose labels are the images' numbers."""
    d = replace(made_images(n), y_train=torch.arange(n))
    return data.Loader(d, "train", **{"shuffle": False, **kwargs})


def seen(loader, epoch=0):
    return torch.cat([labels for _, labels in loader.epoch(epoch)]).tolist()


# Where the images come from


@pytest.mark.parametrize("name, grey", DIGESTS)
def test_synthetic_sets_are_the_same_bytes_everywhere(name, grey, data_folder):
    d = data.load(name, channels=1 if grey else 3)
    digest = hashlib.sha256()
    with np.load(data_folder / f"{name}{'-grey' if grey else ''}.npz") as file:
        for key in ("x_train", "y_train", "x_test", "y_test"):
            digest.update(file[key].tobytes())
    assert digest.hexdigest() == DIGESTS[name, grey]
    assert d.shape == ((1, 28, 28) if grey else (3, 32, 32))
    assert (len(d.y_train), len(d.y_test), d.num_classes) == (10000, 2000, int(name[6:]))
    pixels = d.x_train.double().flatten(0, 2) / 255
    assert d.mean == pytest.approx(pixels.mean(0).tolist()) and d.std == pytest.approx(pixels.std(0).tolist())


def test_sources_in_their_order(tmp_path, monkeypatch):
    calls = []

    def download(folder, train, download):
        calls.append(train)
        made = arrays(value=3)
        split = "train" if train else "test"
        return types.SimpleNamespace(data=made[f"x_{split}"], targets=list(made[f"y_{split}"]))

    monkeypatch.setitem(sys.modules, "torchvision",
                        types.SimpleNamespace(datasets=types.SimpleNamespace(CIFAR10=download)))
    assert int(data.load("cifar10", tmp_path).x_train[0, 0, 0, 0]) == 3     # 3. the download, kept as an .npz
    assert int(data.load("cifar10", tmp_path).x_train[0, 0, 0, 0]) == 3
    assert calls == [True, False]
    (tmp_path / "cifar10.npz").unlink()
    write_folder(tmp_path / "cifar10")
    assert 7 in data.load("cifar10", tmp_path).x_train[:, 0, 0, 0]          # 2. the folder comes before the download
    own = write_npz(tmp_path / "cifar10.npz", value=9).read_bytes()
    shutil.copy(tmp_path / "cifar10/train/cat/0.png", tmp_path / "cifar10/train/cat/more.png")
    assert int(data.load("cifar10", tmp_path).x_train[0, 0, 0, 0]) == 9     # 1. the .npz, changed folder or not
    assert calls == [True, False] and (tmp_path / "cifar10.npz").read_bytes() == own


def test_a_failed_download_names_the_way_on(tmp_path, monkeypatch):
    def download(folder, train, download):
        raise RuntimeError("no network")
    monkeypatch.setitem(sys.modules, "torchvision",
                        types.SimpleNamespace(datasets=types.SimpleNamespace(MNIST=download)))
    with pytest.raises(UserError, match="mnist.npz.*no network.*shapes10"):
        data.load("mnist", tmp_path)
    assert not list(tmp_path.glob("*.npz"))


@pytest.mark.parametrize("suffix, name", [("png", "pets"), ("jpg", "pets"), ("png", "own/pets"), ("png", "own/pets/"),
                                          ("png", "{}/own/pets")])
def test_a_folder_is_decoded_once(tmp_path, monkeypatch, suffix, name):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / name.format(tmp_path), suffix=suffix)
    name, folder = name.format(tmp_path), tmp_path if name == "pets" else None
    first, small = data.load(name, folder), data.load(name, folder, image_size=4)
    assert sorted(first.y_train.tolist()) == [0, 0, 0, 1, 1, 1] and sorted(first.y_test.tolist()) == [0, 0, 1, 1]
    assert first.y_train.tolist() != sorted(first.y_train.tolist())       # not class by class: --holdout takes the last
    if suffix == "png":
        pairs = zip(first.y_train.tolist(), first.x_train[:, 0, 0].tolist(), strict=True)
        assert sorted(pairs) == [(c > 100, [c, 0, 255]) for c in (7, 8, 9, 107, 108, 109)]
    monkeypatch.setattr("common.data.folder.decode_all", lambda *_: pytest.fail("decoded again"))
    again = data.load(name, folder)
    assert torch.equal(data.load(name, folder, image_size=4).x_train, small.x_train) and small.shape == (3, 4, 4)
    assert torch.equal(first.x_train, again.x_train) and torch.equal(first.y_test, again.y_test)
    assert first.mean == again.mean


def test_a_folder_that_changed_is_decoded_again(tmp_path):
    write_folder(tmp_path / "set")
    before = len(data.load(str(tmp_path / "set")).x_train)
    cls = next((tmp_path / "set" / "train").iterdir())
    shutil.copy(next(cls.iterdir()), cls / "new.png")
    assert len(data.load(str(tmp_path / "set")).x_train) == before + 1
    Image.new("RGB", (8, 8), (1, 2, 3)).save(cls / "new.png")             # in place: the class folder does not change
    assert [1, 2, 3] in data.load(str(tmp_path / "set")).x_train[:, 0, 0].tolist()
    for split in ("train", "test"):
        (tmp_path / split / "dog").parent.mkdir()
        (tmp_path / "set" / split / "dog").rename(tmp_path / split / "dog")
        shutil.copytree(tmp_path / "set" / split / "cat", tmp_path / "set" / split / "cow")
        shutil.copytree(tmp_path / "set" / split / "cat", tmp_path / "set" / split / "eel")
    assert data.load(str(tmp_path / "set")).num_classes == 3


def test_a_grey_folder_is_coloured_for_a_network_that_reads_colours(tmp_path):
    write_folder(tmp_path / "grey", mode="L", value=20, side=32)
    d = data.load(str(tmp_path / "grey"))
    assert d.shape == (1, 32, 32) and d.x_train[d.y_train == 1].unique().tolist() == [120, 121, 122]
    model = models.build("resnet", depth=8, num_classes=2)
    assert data.for_network(model, "f.pth", str(tmp_path / "grey")).shape == (3, 32, 32)


@pytest.mark.parametrize("name", ["mine.npz", "{}/mine.npz", "./mine.npz", "mine"])
def test_a_path_to_an_npz(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    np.savez_compressed(tmp_path / "mine.npz", **arrays(colours=0))
    d = data.load(name.format(tmp_path))
    assert d.shape == (1, 8, 8) and d.num_classes == 3 and d.x_train.dtype == torch.uint8
    assert d.y_train.dtype == torch.int64


def test_a_path_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").mkdir()
    for folder, value in ((tmp_path, 1), (tmp_path / "kept", 2)):
        np.savez_compressed(folder / "mine.npz", **arrays(value=value))
    for name, value, said in (("mine", 2, "mine"), ("mine.npz", 2, "mine.npz"), ("./mine", 1, f"{tmp_path}/mine.npz"),
                              ("kept/mine.npz", 2, f"{tmp_path}/kept/mine.npz")):
        d = data.load(name, tmp_path / "kept")
        assert (int(d.x_train[0, 0, 0, 0]), d.name) == (value, said)


def test_statistics(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_npz(tmp_path / "cifar10.npz")
    for name in ("cifar10", "cifar10.npz", str(path)):       # the same file has the same statistics however it is named
        d = data.load(name, tmp_path)
        assert d.mean == (0.4914, 0.4822, 0.4465) and d.std == (0.2023, 0.1994, 0.2010), name
    d = data.load(str(write_npz(tmp_path / "mnist.npz", side=28, colours=0)))            # its bytes over 255
    assert d.shape == (1, 28, 28) and d.mean == (0.0,) and d.std == (1.0,)
    d = data.load(str(write_npz(tmp_path / "other.npz")))
    x = arrays()["x_train"] / 255
    assert d.mean == pytest.approx(x.mean((0, 1, 2))) and d.std == pytest.approx(x.std((0, 1, 2), ddof=1))
    assert min(data.load(str(write_npz(tmp_path / "flat.npz", value=5))).std) > 0


BAD = {
    "float": (dict(x_train=np.zeros((12, 8, 8, 3))), "uint8"),
    "colours first": (dict(x_train=np.zeros((12, 3, 8, 8), np.uint8)), "N, H, W"),
    "labels too few": (dict(y_train=np.zeros(5, int)), "12 train images, 5 labels"),
    "negative label": (dict(y_train=np.arange(12) - 1), "class numbers from 0"),
    "float label": (dict(y_train=np.zeros(12)), "class numbers from 0"),
    "other size": (dict(x_test=np.zeros((6, 9, 9, 3), np.uint8)), "differ in size"),
    "one class": (dict(y_train=np.zeros(12, int), y_test=np.zeros(6, int)), "at least 2"),
    "unknown test label": (dict(y_test=np.array([0, 1, 9, 9, 7, 2])), "test images of class 7, 9, but no training"),
    "a gap in training alone": (dict(y_train=np.arange(12) % 2 * 2), "test images of class 1, but no training"),
    "empty": (dict(x_train=np.zeros((0, 8, 8, 3), np.uint8), y_train=np.zeros(0, int)), "0 train images"),
    "objects": (dict(y_train=np.array([{}] * 12)), "plain arrays"),
    "2^64": (dict(y_train=np.full(12, 2 ** 64 - 1, np.uint64)), "a label 18446744073709551615 in y_train, but 12 "),
    "10^9": (dict(y_train=np.arange(12) * 10 ** 9), "a label 11000000000 in y_train, but 12"),
    "-2^63": (dict(y_train=np.full(12, -2 ** 63)), "class numbers from 0"),
}


@pytest.mark.parametrize("what", BAD)
def test_unusable_arrays_are_named(what, tmp_path):
    change, message = BAD[what]
    np.savez(tmp_path / "bad.npz", **{**arrays(), **change})
    with pytest.raises(UserError, match=f"bad.*{message}"):
        data.load("bad", tmp_path)


@pytest.mark.parametrize("first, step, missing", [
    (1, 1, "0"), (0, 2, "1, 3"), (3, 20, "0, 1, 2, 4, 5, 6, 7, 8, 9, 10, ...")])
def test_labels_with_gaps_are_named(first, step, missing, tmp_path, capsys):
    y = np.arange(12) % 3 * step + first
    np.savez(tmp_path / "gaps.npz", **{**arrays(), "y_train": y, "y_test": y[:6]})
    count = data.load("gaps", tmp_path).num_classes
    assert f"gaps has no images of class {missing}; labels count from 0, so a network for it has {count}" in (
        capsys.readouterr().out)


def test_unusable_files_are_named(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "half.npz", x_train=np.zeros(3))
    (tmp_path / "cut.npz").write_bytes(write_npz(tmp_path / "whole.npz").read_bytes()[:500])
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "bare" / "train").mkdir(parents=True)
    write_folder(tmp_path / "more")
    (tmp_path / "more" / "test" / "fox").mkdir()
    write_folder(tmp_path / "deep")
    Image.new("I;16", (8, 8), 999).save(tmp_path / "deep" / "train" / "cat" / "0.png")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    np.savez_compressed(tmp_path / "damaged.npz", **arrays())
    damaged = bytearray((tmp_path / "damaged.npz").read_bytes())
    damaged[100:300] = bytes(200)
    (tmp_path / "damaged.npz").write_bytes(damaged)
    for name, message in (("deep", "deep/train/cat/0.png has more than 8 bits"), ("array", "array.npz is not a"),
                          ("damaged", "damaged.npz is not a readable"),
                          ("more", "more/test has fox without training images; the classes are"),
                          ("text", "text.npz"), ("half", "half.npz.*needed are"), ("cut", "cut.npz"),
                          ("notes.txt", "notes.txt is neither an .npz nor a folder"),
                          ("bare", "bare/train has nothing in it"), ("nowhere", "nowhere.npz")):
        with pytest.raises(UserError, match=message):
            data.load(name, tmp_path)


# Subsets


def test_a_subset_is_balanced_and_always_the_same():
    first, again = data.load("shapes10", subset=55), data.load("shapes10", subset=55)
    for split in ("train", "test"):
        counts = getattr(first, f"y_{split}").bincount(minlength=10)
        assert counts.sum() == 55 and counts.min() == 5 and counts.max() == 6
        assert torch.equal(getattr(first, f"x_{split}"), getattr(again, f"x_{split}"))
    whole = data.load("shapes10", subset=10**6)
    assert (len(whole.y_train), len(whole.y_test)) == (10000, 2000)
    assert first.mean == whole.mean


def test_a_subset_of_uneven_classes_holds_each_image_once():
    labels = torch.tensor([0] * 20 + [1] * 2 + [2] * 8)
    chosen = data.balanced(labels, 14, 3)
    assert len(set(chosen.tolist())) == 14
    assert labels[chosen].bincount().tolist() == [6, 2, 6]


# Batches


def test_test_batches_are_the_normalized_images_in_order():
    d = made_images(n=20)
    got = list(loader(d))
    expected = (d.x_train.double() / 255 - torch.tensor(d.mean).double()) / torch.tensor(d.std).double()
    torch.testing.assert_close(torch.cat([x for x, _ in got]).double(), expected.permute(0, 3, 1, 2),
                               rtol=0, atol=2e-6)
    assert torch.cat([y for _, y in got]).tolist() == d.y_train.tolist()
    assert [len(y) for _, y in got] == [8, 8, 4] and len(loader(d)) == 3
    assert got[0][0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("crop, flip", [(2, True), (2, False), (0, True)])
def test_crop_and_flip_are_windows_of_the_padded_image(crop, flip):
    """Each augmented image is one window of its zero-padded original, mirrored or not; all kinds occur."""
    d = made_images(n=200, side=6)
    padded = torch.nn.functional.pad((d.x_train.double() / 255).permute(0, 3, 1, 2), (crop,) * 4)
    mean, std = (torch.tensor(t).double()[:, None, None] for t in (d.mean, d.std))
    images, _ = next(iter(loader(d, 200, crop=crop, flip=flip).epoch(3)))
    found = []
    for i, image in enumerate(images.double() * std + mean):
        for top in range(2 * crop + 1):
            for left in range(2 * crop + 1):
                window = padded[i, :, top:top + 6, left:left + 6]
                for flipped in (False, True)[:1 + flip]:
                    if torch.allclose(image, window.flip(2) if flipped else window, atol=1e-5):
                        found.append((i, top, left, flipped))
    assert [i for i, *_ in found] == list(range(200))
    assert len({(top, left) for _, top, left, _ in found}) == (2 * crop + 1) ** 2
    assert 70 < sum(flipped for *_, flipped in found) < 130 or not flip


@pytest.mark.parametrize("side", [3, 4])
def test_cutout_blanks_one_square_to_the_mean_colour(side):
    d = made_images(n=100)
    images, _ = next(iter(loader(d, 100, cutout=side).epoch(0)))
    plain, _ = next(iter(loader(d, 100).epoch(0)))
    whole = 0
    for image, before in zip(images, plain, strict=True):
        blank = image.eq(0).all(0) & ~before.eq(0).all(0)
        assert torch.equal(image[:, ~blank], before[:, ~blank])
        rows, columns = blank.any(1).sum(), blank.any(0).sum()
        assert blank.sum() == rows * columns and 1 <= rows <= side and 1 <= columns <= side
        whole += int(rows == columns == side)
    assert 20 < whole < 80                                   # the others are cut by the border


def test_an_epoch_depends_on_its_number_and_the_seed_alone():
    def epoch(e, seed=1, before=()):
        batches = loader(made_images(), shuffle=True, seed=seed, crop=2, flip=True, cutout=3)
        for other in before:
            list(batches.epoch(other))
        return torch.cat([x.flatten() for x, _ in batches.epoch(e)])

    reference = epoch(5)
    torch.manual_seed(99)
    assert torch.equal(reference, epoch(5)) and torch.equal(reference, epoch(5, before=(0, 4)))
    assert not torch.equal(reference, epoch(6)) and not torch.equal(reference, epoch(5, seed=2))


def test_loading_leaves_the_global_random_state_alone():
    state = torch.get_rng_state()
    list(loader(made_images(), shuffle=True, crop=2, flip=True, cutout=3).epoch(1))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("world", [1, 3])
def test_every_image_comes_once_an_epoch_to_one_of_the_ranks(world):
    shares = [seen(numbered(24, batch_size=4, shuffle=True, rank=r, world=world), epoch=2) for r in range(world)]
    images = sum(shares, [])
    assert sorted(images) == list(range(24)) != images and {len(s) for s in shares} == {24 // world}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
@pytest.mark.parametrize("world", [2, 3])
def test_all_ranks_have_as_many_batches(batch_size, world):
    for n in range(9, 30):
        lengths = set()
        for rank in range(world):
            batches = numbered(n, batch_size=batch_size, shuffle=True, rank=rank, world=world)
            sizes = [len(y) for _, y in batches.epoch(0)]
            assert len(batches) == len(sizes)
            assert batch_size == 1 or 1 not in sizes
            lengths.add(len(sizes))
        assert len(lengths) == 1, f"{n} images: {lengths}"


def test_a_last_batch_of_one_image_is_left_out_in_training_only():
    for shuffle, sizes in ((True, [8, 8]), (False, [8, 8, 1])):
        batches = numbered(17, batch_size=8, shuffle=shuffle)
        assert [len(y) for _, y in batches] == sizes and len(batches) == len(sizes)
    assert [len(y) for _, y in numbered(18, batch_size=8, shuffle=True)] == [8, 8, 2]
    assert [len(y) for _, y in numbered(1, batch_size=8, shuffle=True)] == [1]


# Real data, where it is

REAL = {"cifar10": ((3, 32, 32), 50000, 10000, 10), "cifar100": ((3, 32, 32), 50000, 10000, 100),
        "mnist": ((1, 28, 28), 60000, 10000, 10)}


@pytest.mark.parametrize("name", REAL)
def test_real_data(name):
    folder = ROOT / "data"
    if not (folder / f"{name}.npz").is_file():
        pytest.skip(f"no data/{name}.npz")
    d = data.load(name, folder)
    assert (d.shape, len(d.x_train), len(d.x_test), d.num_classes) == REAL[name]
    assert d.y_train.bincount().min() > 0 and d.x_train.min() == 0 and d.x_train.max() == 255
    if name != "mnist":
        assert d.y_train.bincount().unique().tolist() == [50000 // d.num_classes]
        assert (d.x_train[:5000].double().mean((0, 1, 2)) / 255).tolist() == pytest.approx(d.mean, abs=0.03)


def test_an_unwritable_data_folder_is_named_and_done_without(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("common.data.synthetic.generate", lambda name, grey: arrays())
    (tmp_path / "file").write_text("")
    assert len(data.load("shapes10", tmp_path / "file" / "sub").x_train) == 12
    assert "note: cannot keep" in (out := capsys.readouterr().out) and "file/sub/shapes10.npz" in out
    assert os.listdir(tmp_path) == ["file"]
