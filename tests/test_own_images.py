"""A folder of images of any size trains, prunes and is evaluated; what is odd in it is passed over or named."""
import csv
import os
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from by_hand import CLASSES, METHODS, call, save
from by_hand import write_images as write
from mutations import chunk, png
from PIL import Image

from common import UserError, compute_flops, data, evaluate, models
from common.data.images import decode, decode_all
from common.files import checkpoint
from common.models.narrow import narrow
from results import add_run
from slimming.networks import network


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "PNG", "gif", "tif", "tiff", "ppm", "jfif", "tga"])
def test_formats(suffix, tmp_path):
    d = data.load(str(write(tmp_path / "set", suffix=suffix)))
    assert d.classes == CLASSES and d.shape == (3, 20, 20) and len(d.y_train) == 15
    assert d.x_train[d.y_train == 1].double().mean((0, 1, 2)).argmax() == 1


def test_the_middle_square_is_resized(tmp_path):
    """Left third red, the rest blue and green halves: a wide image keeps its middle, a tall one too."""
    write(tmp_path / "set", size=(32, 32))
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, :40, 0], wide[:, 40:80, 1], wide[:, 80:, 2] = 255, 255, 255
    Image.fromarray(wide).save(tmp_path / "set/train/cat/a-wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "set/train/cat/a-tall.png")
    turned = Image.fromarray(wide[:, 20:60])                 # red, then green; a camera held upright, says EXIF
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "set/train/cat/a-turned.png", exif=exif)
    d = data.load(str(tmp_path / "set"), image_size=16)
    assert d.shape == (3, 16, 16) and len(d.y_train) == 18
    greens = [x for x in d.x_train if x[..., 1].min() > 200]
    assert len(greens) == 2 and all(x[..., 0].max() < 60 and x[..., 2].max() < 60 for x in greens)
    assert sum(bool(x[0, :, 0].min() > 200 and x[-1, :, 1].min() > 200) for x in d.x_train) == 1     # red is on top


@pytest.mark.parametrize("sizes, side, text", [
    ([(48, 48)] * 2, 48, "48 x 48\n"), ([(500, 500)] * 2, 500, "500 x 500\n"),
    ([(48, 48), (50, 48)], 32, "32 x 32, resized from 48 x 48 to 50 x 48 (--image-size changes that)\n"),
    ([(60, 40)] * 2, 32, "32 x 32, resized from 60 x 40 (--image-size changes that)\n")])
def test_without_a_size_it_is_that_of_all_or_the_networks(sizes, side, text, tmp_path, capsys):
    for i, size in enumerate(sizes):
        write(tmp_path / "set", size=size, parts=(("train", "test")[i],), count=1)
    assert data.load(str(tmp_path / "set")).shape == (3, side, side)
    assert capsys.readouterr().out.endswith(f"3 classes, {text}")
    assert data.load(str(tmp_path / "set"), image_size=24).shape == (3, 24, 24)
    assert capsys.readouterr().out.endswith("3 classes, 24 x 24\n")


def test_large_images_need_a_size(tmp_path):
    write(tmp_path / "set", size=(600, 600), count=1)
    with pytest.raises(UserError, match="train0.png, are 600 x 600; give the --image-size"):
        data.load(str(tmp_path / "set"))
    assert data.load(str(tmp_path / "set"), image_size=16).shape == (3, 16, 16)


def test_no_image_is_left_out_and_other_files_are_counted(tmp_path, capsys):
    """8 .png beside 4 .tif, 3 images in folders of the class folder, and what is no image or hidden."""
    path = write(tmp_path / "set", count=8)
    write(path / "train/cat", parts=("2023",), count=1)
    for i in range(4):
        Image.new("RGB", (20, 20)).save(path / f"train/cow/{i}.tif")
    for folder in (".ipynb_checkpoints", "__MACOSX"):
        (path / "train" / folder).mkdir()
    for file in ("train/cat/notes.txt", "train/cat/2023/raw.heic", "test/cow/LICENSE", "test/dog/.DS_Store",
                 "train/cat/._train0.png"):
        (path / file).write_bytes(b"")
    Image.new("RGB", (20, 20)).save(path / "train/stray.png")
    (path / "train/dog/again").symlink_to(path / "train")
    d = data.load(str(path))
    assert d.classes == CLASSES and d.y_train.bincount().tolist() == [11, 12, 8] and len(d.y_test) == 24
    assert ("set: 31 training and 24 test images (test/), 3 classes, 20 x 20; passed over: 1 .heic (not read), 1 .txt "
            "(not read), 1 linked folder, 1 outside the class folders, 1 without suffix (not read)\n"
            ) in capsys.readouterr().out


def test_of_a_moving_image_the_first_frame_is_read(tmp_path):
    path = write(tmp_path / "set")
    frames = [Image.new("RGB", (20, 20), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(path / "train/cat/a.gif", save_all=True, append_images=frames[1:])
    d = data.load(str(path))
    assert [255, 0, 0] in d.x_train[:, 0, 0].tolist() and [0, 0, 255] not in d.x_train[:, 0, 0].tolist()


@pytest.mark.parametrize("names, order", [
    (["__background__", "cat"], ["__background__", "cat"]),
    ([str(i) for i in range(12)], [str(i) for i in range(12)]), (["01", "1", "10", "2"], ["01", "1", "2", "10"]),
    (["1", "10", "2", "b"], ["1", "10", "2", "b"])])
def test_classes_whose_names_are_numbers_are_in_their_order(names, order, tmp_path):
    path = write(tmp_path / "set", classes=names, count=1)
    for cls in names:
        Image.new("RGB", (20, 20), (order.index(cls),) * 3).save(path / "test" / cls / "test0.png")
    d = data.load(str(path))
    assert d.classes == tuple(order) and all(d.x_test[i].eq(label).all() for i, label in enumerate(d.y_test))


@pytest.mark.parametrize("theirs", [["cow", "cat", "dog"], ["cat", "cow", "fox"]])
def test_other_class_names_than_the_file_s_are_refused(theirs, tmp_path, capsys):
    path = str(write(tmp_path / "set", size=(32, 32)))
    model = models.build("resnet", depth=8, num_classes=3)
    model.images = {"classes": theirs, "mean": [0.5] * 3, "std": [0.2] * 3}
    with pytest.raises(UserError, match=f"f.pth was trained on the classes {', '.join(theirs)}; .*set has cat, cow, d"):
        data.for_network(model, "f.pth", path)
    model.images["classes"] = list(CLASSES)
    data.for_network(model, "f.pth", path)
    assert "note" not in capsys.readouterr().out


def test_training_on_other_classes_begins_with_a_new_last_layer(tmp_path, capsys):
    model = models.build("resnet", depth=8, num_classes=3)
    model.images = {"classes": ["bus", "car", "van"], "mean": [0.5] * 3, "std": [0.2] * 3}
    ckpt = checkpoint.of(model, "slimming", "dense", "set") | {"path": "f.pth"}
    d = data.for_arch("resnet", model.cfg, str(write(tmp_path / "set", size=(32, 32))), start=ckpt)
    new = checkpoint.to_classes(ckpt, d)
    assert "f.pth has 3 classes" in (out := capsys.readouterr().out) and "has 3 others: fc.weight and fc.bias" in out
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, new["state_dict"][name])]
    assert changed == ["fc.weight", "fc.bias"]
    data.adapt(checkpoint.to_model(new), d, "f.pth")         # is not refused for its class names
    assert "note" not in capsys.readouterr().out
    assert checkpoint.to_classes(new, d) is new


def test_class_names_that_one_side_does_not_know_are_said(tmp_path, capsys):
    write(tmp_path / "set", size=(32, 32))
    np.savez(tmp_path / "arrays.npz", **{f"{k}_{part}": v for part in ("train", "test") for k, v in (
        ("x", np.zeros((6, 32, 32, 3), np.uint8)), ("y", np.arange(6) % 3))})
    for name, file_knows, without in (("set", None, "f.pth"), ("arrays.npz", list(CLASSES), tmp_path / "arrays.npz")):
        model = models.build("resnet", depth=8, num_classes=3)
        model.images = file_knows and {"classes": file_knows, "mean": [0.5] * 3, "std": [0.2] * 3}
        data.for_network(model, "f.pth", str(tmp_path / name))
        assert f"note: {without} has no class names; its labels are taken as 0 cat, 1 cow, 2 dog\n" in (
            capsys.readouterr().out)
        assert model.images["classes"] == list(CLASSES)


@pytest.mark.parametrize("train, test, unused", [
    ("Train", "Test", ()), ("training", "testing", ()), ("train", "validation", ()), ("TRAIN", "VAL", ()),
    ("train", "valid", ()), ("train", "test", ("val/", "extra/")), ("train", "val", ("test/", "more/")),
    ("train", "val", ("test/ (it has no class folders)",))])
def test_splits_by_other_names(train, test, unused, tmp_path, capsys):
    path = write(tmp_path / "set", parts=(train, test))
    for name in unused:                                      # with folders of other classes, or images right inside
        write(path, parts=(name.partition("/")[0],), classes=("",) if "(" in name else ("bird", "unknown"))
    d = data.load(str(path))
    assert (len(d.y_train), len(d.y_test), d.classes) == (15, 15, CLASSES)
    unused = f"; not used: {', '.join(sorted(unused))}" if unused else ""
    assert capsys.readouterr().out == (f"{path}: 15 training and 15 test images ({test}/), 3 classes, 20 x 20"
                                       f"{unused}\n")


@pytest.mark.parametrize("make, message", [
    (lambda p: write(p, parts=("",), classes=("",)), "set has 5 .png file(s); expected are {p}/train/<class>/ and "
     "{p}/test/<class>/ (or val/), or {p}/<class>/, with images in them"),
    (lambda p: write(p, parts=("train", "test"), classes=("",)), "set/train has 5 .png file(s); expected are"),
    (lambda p: write(p, parts=("val", "test")), "set has test/, val/; expected are {p}/train/<class>/"),
    (lambda p: write(p / "pets"), "set/pets has test/, train/ in it; give --dataset {p}/pets"),
    (lambda p: (p / "arrays").mkdir(parents=True), "set has arrays/; expected are"),
    (lambda p: p.mkdir(), "set has nothing in it; expected are"),
    (lambda p: write(p, parts=("",), count=1), "set has one image of each class; a test set needs more"),
    (lambda p: (write(p), [f.rename(f.with_suffix(".heic")) for f in (p / "train/cow").iterdir()]),
     "train/cow holds no images; passed over: 5 .heic (not read); read are .png"),
    (lambda p: p.write_bytes(b""), "set is neither an .npz nor a folder; unpack an archive")])
@pytest.mark.parametrize("name", ["set", "{}/set"])
def test_folders_of_another_form_are_described(make, message, name, tmp_path, monkeypatch):
    make(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        data.load(name.format(tmp_path), tmp_path)
    assert message.format(p=tmp_path / "set") in str(error.value) and "no such path" not in str(error.value)


def test_a_folder_without_images_does_not_hide_a_download(tmp_path):
    (tmp_path / "mnist" / "raw").mkdir(parents=True)
    assert data.find("mnist", tmp_path) == (None, "mnist")
    write(tmp_path / "mnist", parts=("",))
    assert data.find("mnist", tmp_path) == (tmp_path / "mnist", "mnist")


@pytest.mark.parametrize("parts, count", [(("train",), 10), (("",), 10), (("",), 2)])
def test_without_a_test_set_some_of_each_class_are_it(parts, count, tmp_path, capsys):
    path = write(tmp_path / "set", parts=parts, count=count)
    d = data.load(str(path))
    held = count // 5 or 1
    assert d.y_test.bincount().tolist() == [held] * 3 and d.y_train.bincount().tolist() == [count - held] * 3
    everything = torch.cat([d.x_train, d.x_test]).flatten(1).unique(dim=0)
    assert len(everything) == 3 * count                      # no image in both
    assert (f"{3 * (count - held)} training and {3 * held} test images (a fifth of each class, chosen by a fixed seed)"
            in capsys.readouterr().out)
    for file in path.glob("decoded*"):
        file.unlink()
    assert torch.equal(data.load(str(path)).x_test, d.x_test)


def test_a_path_is_kept_as_one_that_is_found_from_everywhere(tmp_path, ran):
    write(tmp_path / "here/pets", size=(32, 32))
    flags = ["--device", "cpu", "--epochs", "1", "--batch-size", "5", "--arch", "resnet8", "--save", tmp_path / "run"]
    ran("magnitude/main.py", "--dataset", "pets", *flags, cwd=tmp_path / "here")
    assert checkpoint.load(tmp_path / "run/checkpoint.pth.tar")["dataset"] == str(tmp_path / "here/pets")
    (tmp_path / "elsewhere").mkdir()
    for folder, script, words in (("elsewhere", "magnitude/eval.py", [tmp_path / "run/checkpoint.pth.tar"]),
                                  ("here", "magnitude/main.py", ["--dataset", "../here/pets", *flags, "--resume",
                                                                 "auto"])):
        ran(script, *words, cwd=tmp_path / folder)


@pytest.mark.parametrize("damage", [lambda b: b[:500], lambda b: b"", lambda b: b[:2000] + bytes(300) + b[2300:]])
def test_a_damaged_cache_is_made_anew(damage, tmp_path, capsys):
    path = str(write(tmp_path / "set"))
    first = data.load(path)
    kept = tmp_path / "set" / "decoded-20.npz"
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    again = data.load(path)
    assert torch.equal(first.x_train, again.x_train) and "the images are decoded again" in capsys.readouterr().out
    assert kept.read_bytes()[:2000] == whole[:2000] and len(kept.read_bytes()) == len(whole)


def text_bomb(path):
    """A PNG whose compressed comment is a hundred megabytes."""
    Image.new("RGB", (20, 20)).save(path)
    content = path.read_bytes()
    comment = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9))
    path.write_bytes(content[:33] + comment + content[33:])


ODD = {
    "bomb": (lambda f: f.write_bytes(png(60_000, 60_000)), "has far too many pixels"),
    "large": (lambda f: f.write_bytes(png(11_000, 11_000)), "has 11000 x 11000 pixels, more than 100,000,000"),
    "text bomb": (text_bomb, "not a readable image"),
    "fifo": (lambda f: os.mkfifo(f), "is not a file that can be read; remove it"),
    "folder": (lambda f: f.mkdir(), "is not a file that can be read; remove it"),
    "device": (lambda f: f.symlink_to("/dev/zero"), "is not a file that can be read; remove it"),
    "nowhere": (lambda f: f.symlink_to(f.parent / "gone.png"), "is not a file that can be read; remove it"),
    "loop": (lambda f: f.symlink_to(f), "is not a file that can be read; remove it"),
    "junk": (lambda f: f.write_bytes(b"hello"), "not a readable image"),
    "empty": (lambda f: f.write_bytes(b""), "not a readable image"),
    "torn": (lambda f: (Image.new("RGB", (200, 200), (1, 2, 3)).save(f), f.write_bytes(f.read_bytes()[:90])),
             "not a readable image"),
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_odd_in_a_folder_ends_in_one_line(what, run, tmp_path):
    """As a script: status 2, within seconds and 2 GB more than there were, nothing written."""
    write(tmp_path / "set")
    make, message = ODD[what]
    make(tmp_path / "set" / "train" / "cow" / "odd.png")

    def limit():
        import resource
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + 2 * 10 ** 9,) * 2)
    done = run("slimming/main.py", "--dataset", tmp_path / "set", "--arch", "vgg11", "--epochs", 1, "--device", "cpu",
               "--save", tmp_path / "run", before=limit)
    assert done.returncode == 2 and "cow/odd.png" in done.stderr and message in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists() and not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_names_that_the_terminal_cannot_print_are_escaped(encoding, ran, tmp_path):
    folder = write(tmp_path / "set", classes=("猫", "cow", "dog"), count=2)
    file = save(tmp_path / "m.pth.tar", models.build("resnet", depth=8, num_classes=3))
    assert "\\u732b " in ran("slimming/eval.py", file, "--dataset", folder, "--per-class", "--device", "cpu",
                             before=lambda: sys.stdout.reconfigure(encoding=encoding))


def test_more_images_than_memory_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    with pytest.raises(UserError, match="30 images of 64 x 64 need .*give a smaller --image-size"):
        decode_all([tmp_path / "x.png"] * 30, 64, 3)
    monkeypatch.delattr("os.sysconf")                        # Windows
    assert decode_all([], 64, 3).shape == (0, 64, 64, 3)


# Networks and their image size


def test_a_network_reads_its_own_size_and_colours(tmp_path):
    path = write(tmp_path / "set", size=(50, 40))
    for arch, cfg, shape in (("vgg", dict(depth=11, num_classes=3), (3, 32, 32)),
                             ("vgg", dict(depth=11, num_classes=3, image_size=48), (3, 48, 48)),
                             ("lenet5", dict(num_classes=3), (1, 28, 28))):
        model = models.build(arch, **cfg)
        assert data.for_network(model, "f.pth", str(path)).shape == shape
        assert models.input_shape(model.arch, model.cfg) == shape
        assert model.images["classes"] == list(CLASSES)


def test_arrays_of_another_size_are_counted_so_and_one_size_is_refused(tmp_path):
    x = np.zeros((6, 64, 64, 3), np.uint8)
    y = np.arange(6) % 3
    np.savez(tmp_path / "big.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    model = models.build("resnet", depth=20, num_classes=3)
    before = compute_flops.count(model).total.macs
    data.for_network(model, "f.pth", str(tmp_path / "big.npz"))
    assert model.cfg["image_size"] == 64 and compute_flops.count(model).total.macs > 3.9 * before
    with pytest.raises(UserError, match="alexnet reads"):
        data.for_network(models.build("alexnet", num_classes=3), "f.pth", str(tmp_path / "big.npz"))
    with pytest.raises(UserError, match="--image-size 32 resizes the images of a folder"):
        data.for_network(models.build("vgg", depth=11), "f.pth", str(tmp_path / "big.npz"), image_size=32)
    small = {f"x_{part}": x[:, :8, :8] for part in ("train", "test")} | {f"y_{part}": y for part in ("train", "test")}
    np.savez(tmp_path / "small.npz", **small)
    with pytest.raises(UserError, match="images of 8 x 8, too small for a vgg"):
        data.for_network(models.build("vgg", depth=11, num_classes=3), "f.pth", str(tmp_path / "small.npz"))


@pytest.mark.parametrize("method", METHODS)
def test_a_dense_network_is_recorded_with_its_cost_at_the_size_it_is_trained_on(method, tmp_path):
    x, y = np.zeros((6, 40, 40, 3), np.uint8), np.arange(6) % 3
    np.savez(tmp_path / "set.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    call(f"{method}.main", "--dataset", tmp_path / "set.npz", "--arch", "resnet20", "--epochs", 1, "--batch-size", 3,
         "--device", "cpu", "--precision", "fp32", "--save", tmp_path / "run")
    ckpt = checkpoint.load(tmp_path / "run/checkpoint.pth.tar")
    assert ckpt["cfg"]["image_size"] == 40
    assert ckpt["dense"]["macs"] == compute_flops.count(checkpoint.to_model(ckpt)).total.macs


def test_the_size_survives_narrowing_and_the_file(tmp_path):
    model = models.build("vgg", depth=11, num_classes=3, image_size=48)
    model.images = {"classes": list(CLASSES), "mean": [0.5] * 3, "std": [0.2] * 3}
    small = narrow(model, {"feature.0": torch.arange(64) < 9})
    assert small.cfg["image_size"] == 48 and small.images == model.images
    again = checkpoint.to_model(checkpoint.load(save(tmp_path / "c.pth.tar", small)))
    assert again.cfg == small.cfg and again.images == model.images
    for images in ({"classes": ["a"], "mean": [1.0], "std": [0.0]}, {"classes": [], "mean": [], "std": []}):
        ckpt = checkpoint.of(small, "slimming", "pruned", "x") | {"images": images}
        with pytest.raises(UserError, match="odd.pth.tar: its classes, mean and std"):
            checkpoint.to_model(checkpoint.load(checkpoint.save(tmp_path / "odd.pth.tar", ckpt)))


def test_new_images_get_the_mean_and_std_that_the_network_was_trained_with(tmp_path):
    path = str(write(tmp_path / "set", size=(32, 32)))
    model = models.build("resnet", depth=8, num_classes=3)
    own = data.for_network(model, "f.pth", path)
    model.images = {"classes": list(CLASSES), "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    ckpt = checkpoint.of(model, "slimming", "dense", "set")
    for d in (data.for_network(model, "f.pth", path), data.for_arch("resnet", model.cfg, path, start=ckpt)):
        assert d.mean == (0.1, 0.2, 0.3) != own.mean and d.std == (0.4, 0.5, 0.6)
        images, _ = next(iter(data.Loader(d, "test", 4)))
        by_hand = (d.x_test[:4].permute(0, 3, 1, 2) / 255 - images.new_tensor(d.mean).view(1, 3, 1, 1))
        assert torch.allclose(images, by_hand / images.new_tensor(d.std).view(1, 3, 1, 1), atol=1e-5)


@pytest.mark.parametrize("flags", [["--std", "0,0,0"], ["--mean", "0.5"], ["--mean", "0.5,0.5"]])
def test_labelling_needs_a_mean_and_std_of_each_channel(flags, tmp_path, monkeypatch):
    model = models.build("resnet", depth=8, num_classes=3)
    model.images = {"classes": list(CLASSES), "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    save(tmp_path / "m.pth.tar", model)
    write(tmp_path / "set", size=(32, 32), parts=("new",), count=1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="reads images of 3 channels; --mean and --std have a number for each"):
        call("deploy.predict", "m.pth.tar", "set/new", *flags)
    assert not (tmp_path / "predictions.csv").exists()


# As a user does it


def test_from_a_folder_of_photos_to_labels(run, ran, tmp_path):
    """Mixed sizes at 40 x 40 through training, pruning and fine-tuning; then accuracy by class and new images."""
    write(tmp_path / "photos", size=(61, 47), parts=("train",), count=10)
    write(tmp_path / "photos", size=(44, 80), parts=("val",), count=3, seed=1)
    common = ("--device", "cpu")
    short = ("--epochs", 1, "--batch-size", 10)

    def step(script, *flags):
        return ran(script, *flags, *common, cwd=tmp_path)
    out = step("slimming/main.py", "--dataset", tmp_path / "photos", "--arch", "resnet11", "--image-size", 40, "-sr",
               "--save", "dense", "--epochs", 4, "--batch-size", 10, "--precision", "fp32")
    arch, cfg = network("resnet11")
    model = models.build(arch, **cfg, num_classes=3, image_size=40)
    assert f"{compute_flops.count(model).total.macs:,} MACs" in out
    step("slimming/prune.py", "--model", "dense/checkpoint.pth.tar", "--percent", 0.3, "--save", "pruned")
    step("slimming/finetune.py", "--refine", "pruned/pruned.pth.tar", "--save", "tuned", *short)
    kept = add_run.keep(checkpoint.load(tmp_path / "tuned" / "finetuned.pth.tar"), tmp_path / "kept.pth.tar")
    assert abs(kept["prec1"] - checkpoint.load(tmp_path / "tuned" / "finetuned.pth.tar")["prec1"]) < 100 / 9 + 0.01
    step("magnitude/prune.py", "--model", "tuned/finetuned.pth.tar", "--percent", 0.5, "--save", "sparse")
    ckpt = checkpoint.load(tmp_path / "sparse" / "pruned.pth.tar")
    assert ckpt["images"]["classes"] == list(CLASSES) and ckpt["cfg"]["image_size"] == 40
    out = step("slimming/eval.py", "tuned/finetuned.pth.tar", "--per-class")
    assert [line.split()[:2] for line in out.splitlines()[-3:]] == [[cls, "3"] for cls in CLASSES]

    write(tmp_path / "new", size=(70, 90), parts=("",), count=2, seed=2)
    (tmp_path / "new" / "notes.txt").write_text("not an image")
    step("deploy/predict.py", "dense/checkpoint.pth.tar", "new")
    rows = list(csv.reader((tmp_path / "predictions.csv").open()))
    assert rows[0] == ["file", "class", "probability"] and len(rows) == 7
    assert {row[0] for row in rows[1:]} == {f"{cls}/{i}.png" for cls in CLASSES for i in range(2)}
    assert all(row[1] in CLASSES and 1 / 3 - 1e-4 <= float(row[2]) <= 1 for row in rows[1:])
    # the same numbers as evaluating them does
    model = checkpoint.to_model(checkpoint.load(tmp_path / "dense" / "checkpoint.pth.tar"))
    image = torch.from_numpy(decode(tmp_path / "new" / rows[1][0], 40, 3)).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(model.images[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        p = model((image - mean) / std).softmax(1)
    assert (rows[1][1], float(rows[1][2])) == (CLASSES[p.argmax()], pytest.approx(float(p.max()), abs=2e-4))
    again = run("deploy/predict.py", "dense/checkpoint.pth.tar", "new", *common, cwd=tmp_path)
    assert again.returncode == 2 and "predictions.csv is there already; give another --csv" in again.stderr
    step("deploy/predict.py", "tuned/finetuned.pth.tar", "new", "--csv", "out/other.csv")
    assert (tmp_path / "out/other.csv").exists()


def test_per_class_counts_by_hand():
    model = torch.nn.Flatten()
    model.forward = lambda x: x.flatten(1)                   # an image is its logits
    logits = torch.eye(3)[torch.tensor([0, 0, 1, 2, 2, 2])]
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    lines = evaluate.per_class(model, [(logits[:4], labels[:4]), (logits[4:], labels[4:])], CLASSES).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["cat", "3", "66.67", "cow", "(1)"], ["cow", "1", "0.00", "dog", "(1)"], ["dog", "2", "100.00"]]
