"""Every command of the READMEs and of docs/ runs as printed, in a small setting, and every link leads somewhere."""
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from by_hand import write_images
from conftest import EXPORTS, run_script

from common import models
from common.files import checkpoint

ROOT = Path(__file__).resolve().parent.parent
SMALL = {  # what makes a printed command small: its value there -> its value here
    "--dataset": {"cifar10": "shapes10", "cifar100": "shapes100", "mnist": "shapes10"},
    "--depth": {"13": "11", "164": "20", "40": "10", "110": "8", "28": "10", "29": "11", "34": "10",
                "100": "10", "190": "10"},
    "--arch": {"vgg16": "vgg11", "resnet20": "resnet8", "resnet56": "resnet8", "preresnet110": "preresnet8",
               "wrn_28_10": "wrn_10_1", "densenet40": "densenet10"},
    "--epochs": dict.fromkeys("5 8 9 20 30 38 60 99 100 160 164 200 250 300".split(), "1"),
    "--warmup-epochs": {"1": "0", "2": "0"},
    "--holdout": {"5000": "5"},
    "--least-bits": {"4": "7"},
    "--batch-size": {"512": "10", "256": "10"},
    "--train-batch": {"64": "10"},
    "--wf": {"9": "1"},
    "--widen-factor": {"10": "1", "4": "1"},
    "--cardinality": {"8": "1", "16": "2"},
    "--growthRate": {"40": "12"},
    "--width": {"1.3": "0.5"},
}
MNIST = ["--dataset", "shapes10", "--epochs", "1"]
MORE = {  # and what is added to a script's flags, which win over those before
    "element.py": MNIST, "structure.py": MNIST,
    "prun_tune_T.py": ["--epochs", "1"], "prun_tune_V.py": ["--epochs", "1"],
    "training/main.py": ["--dataset", "shapes100", "--epochs", "1", "--width", "0.5", "--warmup-epochs", "0"],
    "testers.py": ["--dataset", "shapes100"], "iterative.py": ["--percent", "0.3"],
    "sweep.py": [*MNIST, "--tune-epochs", "1", "--decays", "0.001", "--sensitivities", "0.01", "--holdout", "5"],
}


def commands(page):
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```shell\n(.*?)^```", text, re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line.startswith("python ")]


def small(command):
    words = [word for word in shlex.split(command, comments=True)[1:] if word != "-u"]
    for i, word in enumerate(words[:-1]):
        words[i + 1] = SMALL.get(word, {}).get(words[i + 1], words[i + 1])
    words = [re.sub(r"^(?!chkpt/)(.*)cifar(10+)-([a-z]+\d+)",
                    lambda m: f"{m[1]}shapes{m[2]}-{SMALL['--arch'].get(m[3], m[3])}", word) for word in words]
    words += MORE.get(words[0], [])
    if words[0] == "common/compute_flops.py":                            # it only counts
        return words
    for file in [word for word in words if word.startswith("chkpt/")]:   # without the data it was trained on
        words += ["--dataset", f"shapes{checkpoint.load(ROOT / file, quantized=True)['cfg']['num_classes']}"]
    script = Path(words[0]).name
    if script not in ("compact.py", "check_model_operations.py"):         # they only read a file
        words += ["--subset", "20", "--device", "cpu"]
    trains = ("main.py", "finetune.py", "iterative.py", "cifar.py", "cifar_finetune.py")
    if script in trains and "--epochs" not in words:
        words += ["--epochs", "2" if script == "main.py" else "1"]        # of a dense run rewinding leaves something
    return words


METHODS = sorted(path.parent.name for path in ROOT.glob("*/README.md") if (path.parent / "main.py").exists())


@pytest.mark.parametrize("folder", METHODS)
def test_every_command_of_the_readme_runs(folder, tmp_path, monkeypatch, capsys):
    for part in {folder, "magnitude", "common", "deploy"}:
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", "logs"))
    monkeypatch.chdir(tmp_path / folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    printed = commands(f"{folder}/README.md")
    assert len(printed) > 10
    for command in printed:
        words = small(command)
        monkeypatch.setattr(sys, "argv", words)
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, f"{command}\n{capsys.readouterr().err}"
        capsys.readouterr()


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """{word of a command: what it stands for}: a dense network, a masked one, a bare state_dict, folders of images."""
    folder = tmp_path_factory.mktemp("given")
    train = ["--arch", "resnet8", "--dataset", "shapes10", "--subset", "40", "--epochs", "1", "--batch-size", "20",
             "--device", "cpu"]
    for script, flags, save in (("magnitude", [], "dense"), ("softmask", ["--pflops", "--target", "0.5"], "masks")):
        done = run_script(f"{script}/main.py", *train, *flags, "--save", save, cwd=folder)
        assert done.returncode == 0, done.stderr
    torch.save(models.build("vgg", depth=11, num_classes=10).state_dict(), folder / "yours.pth")
    own = (ROOT / "docs/own-network.md").read_text().split("```python\n")[1].split("```")[0]
    (folder / "nets.py").write_text(own)
    trained = models.build(models.own.name(f"{folder}/nets.py:Net"))
    torch.save(trained.state_dict(), folder / "my.pth")
    write_images(folder / "images", (70, 66), count=10, classes="ab")
    return {"FILE": folder / "dense/checkpoint.pth.tar", "MASKS": folder / "masks/checkpoint.pth.tar",
            "YOURS.py:Net": f"{folder}/nets.py:Net", "YOURS.pth": folder / "yours.pth", "my.pth": folder / "my.pth",
            "PATH": folder / "images", "NEW_IMAGES": folder / "images/test"}


ELSEWHERE = ("new-method.md", "originals.md")                # tested below
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md") if path.name not in ELSEWHERE)]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_front_page_and_of_docs_runs(page, given, tmp_path):
    """Those in its first table as well."""
    text = (ROOT / page).read_text()
    table = re.findall(r"`(python [^`]* FILE)` \|", text)
    shutil.copy(given["YOURS.py:Net"].partition(":")[0], tmp_path)
    for command in [*commands(page), *table]:
        for variable, value in re.findall(r'^(\w)="(.*)"$', text, re.M):
            command = command.replace(f"${variable}", value)
        if "softmask/prune.py" in command:
            command = command.replace("FILE", "MASKS")
        for word, file in given.items():
            command = re.sub(rf"(?<= ){re.escape(word)}(?= |$)", str(file), command)
        script, *words = small(command)
        if script == "deploy/export.py" and "--network" in words and not EXPORTS:
            continue
        if "prune.py" in script and "--save" not in words:
            words += ["--save", "pruned", "--overwrite"]
        done = run_script(script, *words, cwd=tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_the_front_page_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= 12_000 and "bash run_all.sh" in "".join(text.splitlines()[:8])
    assert len(table_of(text, "front")) == 5 + 2 and len(table_of(text, "digest")) == 6 + 2


def table_of(text, name):
    return text.split(f"<!-- table {name} -->\n")[1].split("<!-- end -->")[0].splitlines()


def test_the_page_of_original_commands_names_scripts_and_commands_that_exist():
    text = (ROOT / "docs/originals.md").read_text()
    assert set(commands("docs/originals.md")) <= set(commands("slimming/README.md"))
    sections = text.split("\n## ")[1:]
    assert [section.split()[0] for section in sections] == ["slimming", "hoyer", "magnitude", "softmask", "reweighted"]
    for section in sections:
        rows = re.findall(r"^\| (.*) \| (.*) \|$", section, re.M)[1:]
        for scripts, where in ((" ".join(original for original, _ in rows), section.split()[0]),
                               (" ".join(here for _, here in rows), ".")):
            found = re.findall(r"`([\w/]+\.py)", scripts)
            assert found and all((ROOT / where / script).exists() for script in found)


def printed_originals():
    """(folder, regular expression of a command of the seeds, placeholders aside), which the README there has."""
    for name, depth, batch, s in (("vgg", 13, 512, "0.0001"), ("resnet", 164, 256, "0.00001")):
        net, folder, size = f"--arch {name} --depth {depth}", f"./{name}{depth}", f"--batch-size {batch} --epochs 99"
        for flags, stage in (("", "baseline"), (f"-sr --s {s} ", "sparsity")):
            yield "slimming", f"python main.py {flags}--dataset cifar10 {net} {size} --save {folder}/{stage}"
        yield "slimming", (f"python main.py --refine {folder}/0.4/pruned.pth.tar --dataset cifar10 {net} "
                           f"({size}|--epochs 99 --batch-size {batch}) --save {folder}/0.4/fine-tune-99")
    for flags in ("", "-sr --s 0.00001 "):
        yield "slimming", f"python main.py {flags}--dataset cifar10 --arch densenet --depth 40"
    for script, depth in (("vggprune", 13), ("resprune", 164), ("denseprune", 40)):
        yield "slimming", f"python {script}.py --dataset cifar10 --depth {depth} --percent 0.4 --model .*"
    yield "softmask", ("python -u main.py --dataset cifar100 --arch wideresnet --epochs 300 --seed 1 --batch-size 64 "
                       "--lr 1e-2 --wd 1e-4 --momentum 0.9 --test-batch-size 64 --depth 34 --wf 9 --d 0 --lseps 0.0 "
                       "--confp 0.0 --target 0.4 --wg 30 --tw 10 --wme 50 --mwd 5e-4 --save log-k7d1re1 "
                       "--swa-start 161")
    yield "softmask", "python quantize_model.py --pruned log-k7d1re1/pruned_model.pth.tar --wbit 8 --save log-k7d1re1"
    for file, flags in (("quantized", "--half --nbit 8"), ("pruned", "--freebie --half")):
        yield "softmask", f"python eval.py --pruned .*/{file}_model.pth.tar {flags}"
    for net in ("vgg16", "resnet56"):
        yield "magnitude", f"python cifar.py --dataset cifar10 --arch {net}"
    for net in ("vgg16", "preresnet110"):
        yield "magnitude", (rf"python cifar_prune.py --arch {net} --dataset cifar10 --percent 0.3 --resume \S+ "
                            r"--save_dir \S+")
        yield "magnitude", rf"python cifar_finetune.py --arch {net} --dataset cifar10 --resume \S+"
    yield "hoyer", "python element.py --reg 0 --decay 0.0"
    for script in ("element", "structure"):
        yield "hoyer", rf"python {script}.py --reg \d --decay [\d.]+ --pretrained"
    for script in ("prun_tune_T", "prun_tune_V"):
        yield "hoyer", rf"python {script}.py --model \S+ --sensitivity [\d.]+"


def test_the_original_commands_stand_in_the_readmes_as_printed_there():
    for folder, line in printed_originals():
        assert any(re.fullmatch(line, command) for command in commands(f"{folder}/README.md")), line


TEXTS = [ROOT / "README.md", *sorted(ROOT.glob("*/*.md")), *sorted(ROOT.glob("results/comparison/*.md"))]


def anchors(path):
    """The names that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title).lower()).replace(" ", "-")
            for title in titles}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(path):
    missing = []
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", path.read_text()):
        target = path.parent / link if link else path
        if not target.exists() or anchor and anchor not in anchors(target):
            missing.append(f"{link}#{anchor}")
    assert not missing


UNUSUAL = {"picture": "image", "strength": "lambda or penalty coefficient", "held.out": "validation set",
           "hold.out": "validation set", "drawn by": "made by", "share of": "fraction or ratio of",
           "deviation over": "standard deviation over", "goes on": "continues"}


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")),
                                  *sorted((ROOT / "results").rglob("[!s]*.py"))],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_words_are_the_field_s(path):
    found = {word: better for word, better in UNUSUAL.items() if re.search(word, path.read_text())}
    assert not found


def test_the_sixth_method_of_docs_runs(tmp_path, ran):
    """Saved beside the other folders, its file can be fine-tuned and evaluated by another method."""
    code = (ROOT / "docs/new-method.md").read_text().split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 66
    (tmp_path / "l1filters").mkdir()
    (tmp_path / "l1filters/prune.py").write_text(code)
    (tmp_path / "common").symlink_to(ROOT / "common")
    small = ["--dataset", "shapes10", "--subset", "40", "--device", "cpu"]
    train = [*small, "--epochs", "1", "--batch-size", "20"]
    ran("magnitude/main.py", "--arch", "resnet8", "--save", "dense", *train, cwd=tmp_path)
    printed = commands("docs/new-method.md")
    assert len(printed) == 3
    for command in printed:
        script, *words = shlex.split(command.replace("FILE", "dense/checkpoint.pth.tar"))[1:]
        script = tmp_path / script if script.startswith("l1filters") else script
        ran(script, *words, *(train if "finetune.py" in command else small), cwd=tmp_path)
    assert checkpoint.load(tmp_path / "logs/l1filters/pruned.pth.tar")["cfg"]["widths"] == [12, 23, 45]

    # single weights that are gone already stay gone, and other repositories' files will do, at the size of the images
    ran("magnitude/prune.py", "--model", "dense/checkpoint.pth.tar", "--percent", "0.5", "--save", "zeros", *small,
        cwd=tmp_path)
    torch.save(models.build("resnet_imagenet", depth=18, num_classes=10, stem="imagenet").state_dict(),
               tmp_path / "resnet18.pth")
    for file in ("zeros/pruned.pth.tar", "resnet18.pth"):
        ran(tmp_path / "l1filters/prune.py", "--model", file, "--save", "logs/l1filters", "--overwrite", *small,
            cwd=tmp_path)
        ckpt = checkpoint.load(tmp_path / "logs/l1filters/pruned.pth.tar")
        if file != "resnet18.pth":
            assert all(int((ckpt["state_dict"][name] != 0).sum()) == int(mask.sum()) < 0.8 * mask.numel()
                       for name, mask in ckpt["masks"].items()) and len(ckpt["masks"]) == 7
    side = ckpt["dense"]["cfg"]["image_size"], ckpt["cfg"]["image_size"]
    assert side == (32, 32)
