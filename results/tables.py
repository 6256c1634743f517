"""Tables of slimming, magnitude, soft mask, reweighted L1, of DeepHoyer on CIFAR-10, and of the front page."""
import csv
from pathlib import Path

from common import compute_flops, models
from results.comparison.public import questions
from results.ledger import compared, left, one_a_seed, recipe, spread

# file in chkpt/: (method, the paper's or the original README's figure for its own network)
BUNDLED = {
    "chkpt/slimming-vgg13-cifar10-finetuned.pth.tar": ("slimming", "VGG-13: 89.82 -> 90.08, 9.41M -> 2.64M parameters"),
    "chkpt/hoyer-lenet300-mnist-hs.pth.tar": ("hoyer", "98.4 with 1.74 % of the weights (from memory)"),
    "chkpt/magnitude-resnet20-cifar10-90.pth.tar": (
        "magnitude", "ResNet-56: 93.46 -> 93.56 with 10.7 % of the weights (Renda et al.)"),
    "chkpt/pruned_model.pth.tar": ("softmask", "WRN-34-9: 80.46 with 23.18M of 37.45M parameters"),
    "chkpt/cifar100_mobilenetv2.pt": (
        "reweighted", "width 1.3: 81.92 -> 80.12 with 23 % of the weights at 8 and 6 bits")}
VGG13 = {  # of slimming's original README: accuracy, parameters, FLOPs as thop counts them
    "baseline": ("89.82", "9.41M", "0.46G"), "sparsity, s = 0.0001": ("89.71", "9.41M", "0.46G"),
    "pruned 40 %": ("17.60", "2.64M", "0.35G"), "pruned 40 %, fine-tuned": ("90.08", "2.64M", "0.35G")}
RENDA = {  # Renda et al.'s accuracy by percent of the weights that are left, pruned by magnitude
    "resnet56": {"dense": {100: 93.46}, "small": {21: 92.94, 10.7: 92.20, 4.4: 90.54},
                 "lr-rewind": {21: 93.50, 10.7: 93.56, 4.4: 92.58}},
    "resnet20": {"dense": {100: 91.71}}}
THEIRS = ("", "magnitude", "magnitude, iterative")           # the rules of which they have results
WRN = {  # WideResNet-34-9 of the original README; its score counts FLOPs as that README does, see softmask/README.md
    "pruned": "80.46 %, 23.18M", "quantized": "80.28 %, 23.18M of 8 bits"}
MOBILENET = {  # of reweighted's original README; the second is in a file name of its repository
    "dense": "81.92 %", "finetuned": "80.51 %", "quantized": "80.12 %, 8 and 6 bits, 76.95 % zeros"}


def bundled(ledger):
    """A row for each method: its network in chkpt/, measured here, beside the published figure."""
    with open(Path(__file__).with_name("speed.csv"), newline="") as file:
        speed = {row["checkpoint"]: row for row in csv.DictReader(file)}
    cells = []
    for file, (method, published) in BUNDLED.items():
        row, = (row for row in ledger if row["checkpoint"] == file)
        dense, times = dense_of(row, ledger), speed[file]
        ratios = [float(times[f"dense_{batch}"]) / float(times[f"pruned_{batch}"]) for batch in (1, 128)]
        cells.append([f"[{method}](../{method}/README.md)", f"{row['arch']}, {row['dataset']}",
                      f"{dense['accuracy']} -> {row['accuracy']}", left(row, dense, "nonzeros"),
                      left(row, dense, "macs"), f"{int(row['bytes']) // 1024:,}",
                      " / ".join(f"{ratio:.1f}x" for ratio in ratios), published])
    return ["method", "network", "top-1, %, dense -> pruned", "non-zero parameters (left)", "MACs (left)",
            "KiB on disk", "faster at batch 1 / 128", "published"], cells


def papers_networks(ledger):
    """The front page's lines of the two papers whose own network was trained here."""
    _, cells = bundled(ledger)
    return ["network", "top-1, %, dense -> pruned", "non-zero parameters (left)", "published"], [
        [f"[{network}]({file})", accuracy, weights, published]
        for file, (_, network, accuracy, weights, *_, published) in zip(BUNDLED, cells, strict=True)
        if network.endswith("cifar100")]


def dense_of(row, ledger):
    """The ledger's row of the dense network that the bundled one comes from: of several the one that is bundled, else
    the nearest in seed, precision and epochs."""
    same = [other for other in ledger if other["stage"] == "dense" and not other["args"].get("subset")
            and all(other[name] == row[name] for name in ("method", "arch", "dataset"))]
    return min(same, key=lambda other: (not other["checkpoint"], other["seed"] != row["seed"],
                                        other["precision"] != row["precision"],
                                        abs(int(other["epochs"]) - int(row["epochs"]))))


def softmask_bits(ledger):
    """The public ResNet-20 with weights of few bits, and how they were trained if they were."""
    rows = [row for row in ledger if row["method"] == "softmask" and row["args"].get("wbit") and not compared(row)
            and row["dataset"] == "cifar10"]
    tuned = {Path(row["args"]["save"]): row for row in rows if row["stage"] == "finetuned"}
    cells = []
    for row in rows:
        if row["stage"] == "quantized":
            how = tuned.get(Path(row["args"]["pruned"]).parent)
            training = "{schedule}, learning rate {lr:g}, ".format_map(how["args"]) + recipe(how) if how else ""
            cells.append([row["args"]["wbit"], row["accuracy"], f"{int(row['bytes']) / 1024:,.0f}", training])
    return ["bits", "top-1, %", "KiB", "training"], cells


def slimming_cifar10(ledger):
    """VGG-13 on CIFAR-10, our stages beside the original README's; of a stage that was run twice the later one."""
    runs, prunings = {}, {}                                  # prunings: {folder: what was done there}
    for row in ledger:
        if (row["method"], row["arch"], row["dataset"]) != ("slimming", "vgg13", "cifar10"):
            continue
        args = row["args"]
        if row["stage"] == "dense":
            name = "baseline"
        elif row["stage"] == "sparse":
            name = f"sparsity, s = {args['s']:g}"
        elif row["stage"] == "pruned":
            name = f"pruned {100 * args['percent']:g} %{' at random' * (args['criterion'] == 'random')}"
            prunings[Path(args["save"])] = name
        else:
            name = f"{prunings[Path(args['refine']).parent]}, fine-tuned"
        runs[name, row["precision"]] = row
    rows = []
    for (name, _), row in runs.items():
        accuracy, params, flops = (f" ({theirs})" for theirs in VGG13.get(name, ("-",) * 3))
        widths = [w if w == "M" else int(w) for w in row["widths"].split("-")]
        thop = compute_flops.count(models.build("vgg", depth=13, widths=widths)).total.thop_flops
        rows.append([name, row["accuracy"] + accuracy, f"{int(row['params']) / 1e6:.2f}M{params}",
                     f"{thop / 1e9:.3f}G{flops}", f"{2 * int(row['macs']) / 1e9:.3f}G", recipe(row)])
    return ["stage", "last epoch's accuracy, % (original)", "parameters (original)",
            "FLOPs as thop counts (original)", "FLOPs = 2 x MACs", "recipe"], rows


def magnitude_groups(ledger):
    """{(network, -percent of weights left, rule, training, recipe): rows of all seeds} on all of CIFAR-10, without
    those of ratios_and_teacher."""
    found, others = {}, [row for _, row in questions(ledger)]
    for row in ledger:
        args = row["args"]
        if ((row["method"], row["dataset"]) != ("magnitude", "cifar10") or row["stage"] == "pruned" or args["subset"]
                or compared(row) or row in others):
            continue
        training = "dense" if row["stage"] == "dense" else args["retrain"]
        if training == "weight-rewind":
            training += f" to {Path(args['rewind_to']).name.removesuffix('.pth.tar')}"
        kept = round(100 * int(row["nonzeros"]) / int(row["params"]), 1)
        key = (row["arch"], -kept, args.get("rule", ""), training, recipe(row, minutes=False))
        found.setdefault(key, []).append(row)
    return dict(sorted(one_a_seed(found).items()))


def published(arch, training, kept):
    """Renda et al.'s accuracy at the fraction of weights nearest to `kept` percent, if they have any."""
    theirs = RENDA.get(arch, {}).get(training, {})
    nearest = min(theirs, key=lambda left: abs(left / kept - 1), default=None)
    return f"{theirs[nearest]:.2f} at {nearest:g} %" if theirs else ""


def magnitude_cifar10(ledger):
    """Weight pruning on CIFAR-10: seeds together, and the two ways to fine-tune compared seed by seed."""
    found = {key: {row["seed"]: float(row["accuracy"]) for row in rows}
             for key, rows in magnitude_groups(ledger).items()}
    lines = [[arch, f"{-kept:.1f} %", rule, training, spread(seeds.values()),
              published(arch, training, -kept) if rule in THEIRS else "", how]
             for (arch, kept, rule, training, how), seeds in found.items()]
    for (arch, kept, rule, training, how), rewound in found.items():
        small = found.get((arch, kept, rule, "small", how), {})
        both = sorted(rewound.keys() & small.keys())
        if training == "lr-rewind" and both:
            lines.append([arch, f"{-kept:.1f} %", rule, "lr-rewind minus small, points",
                          f"+{spread([rewound[s] - small[s] for s in both])}".replace("+-", "-"), "", how])
    return ["network", "weights left", "rule", "training", "last epoch's accuracy, % (seeds)",
            "published (Renda et al.)", "recipe"], lines


def magnitude_precision(ledger):
    """The same trial run in each precision."""
    return ["network", "last epoch's accuracy, %", "recipe"], [
        [row["arch"], row["accuracy"], recipe(row)] for row in ledger
        if (row["method"], row["dataset"]) == ("magnitude", "cifar10") and row["args"]["subset"]]


def hoyer_cifar10(ledger):
    """ResNets on CIFAR-10 with sparse filters, stage by stage."""
    lines, whole = [], 0
    for row in ledger:
        if (row["method"], row["dataset"]) == ("hoyer", "cifar10") and not compared(row):
            whole, args = int(row["params"]) if row["stage"] == "dense" else whole, row["args"]
            what = "dense"
            if row["stage"] == "sparse":
                what = f"sparse, lambda {args['decay']:g}"
            elif row["stage"] == "finetuned":
                what = f"threshold {args['sensitivity']:g}, fine-tuned" if "sensitivity" in args else "fine-tuned"
                what += ", compacted" * (int(row["params"]) < whole)
            lines.append([row["arch"], what, row["accuracy"], f"{int(row['weights']):,}", f"{int(row['params']):,}",
                          f"{int(row['macs']):,}", recipe(row)])
    return ["network", "stage", "last epoch's accuracy, %", "weights left", "parameters", "MACs with non-zero weights",
            "recipe"], lines


def stage_by_stage(rows, stage, count, theirs):
    """Lines of networks on CIFAR-100, the largest first; what is left is compared with a network's last dense row."""
    lines, dense = [], {}
    sizes = {row["arch"]: int(row["params"]) for row in sorted(rows, key=lambda row: int(row["params"]))}
    for row in sorted(rows, key=lambda row: -sizes[row["arch"]]):
        if row["stage"] == "dense":
            dense[row["arch"]] = row
        whole = dense.get(row["arch"])
        lines.append([row["arch"], stage(row), row["accuracy"], left(row, whole, count), left(row, whole, "macs"),
                      f"{int(row['bytes']):,}", f"{row['args']['score']:.5f}", theirs(row), recipe(row)])
    return lines


def softmask_cifar100(ledger):
    """Networks on CIFAR-100, stage by stage."""
    def stage(row):
        made = {"sparse": "soft masks, target {target:g}", "quantized": "quantized, {wbit} bits",
                "finetuned": "fine-tuned"}
        return made.get(row["stage"], row["stage"]).format_map(row["args"])

    rows = [row for row in ledger if (row["method"], row["dataset"]) == ("softmask", "cifar100")]
    return ["network", "stage", "last epoch's accuracy, %", "parameters (left)", "MACs (left)", "bytes",
            "MicroNet score by the rules", "original README, WRN-34-9", "recipe"], stage_by_stage(
                rows, stage, "params", lambda row: WRN.get(row["stage"], ""))


def reweighted_cifar100(ledger):
    """MobileNetV2 on CIFAR-100, stage by stage, and magnitude pruning as the control: by magnitude's scripts, or by one
    threshold on the dense network."""
    rows = [row for row in ledger if row["dataset"] == "cifar100" and (
        row["method"] == "reweighted" or row["method"] == "magnitude" and row["arch"].startswith("mobilenetv2"))]
    made = {Path(row["args"]["save"]): row for row in rows} | {Path(row["checkpoint"]): row for row in rows}

    def control(row):
        if row["method"] == "magnitude" or row["stage"] in ("dense", "sparse"):
            return row["method"] == "magnitude"
        model = Path(row["args"]["model"])
        before = made.get(model) or made[model.parent]
        return before["stage"] == "dense" or control(before)

    def stage(row):
        args, name = row["args"], {"finetuned": "retrained"}.get(row["stage"], row["stage"])
        if row["stage"] == "sparse":
            return f"reweighted, lambda {args['lam']:g}"
        if row["method"] == "magnitude" and row["stage"] == "finetuned":
            name += f" ({args['retrain']})"
        if row["stage"] == "quantized":
            name += f", {' to '.join(map(str, sorted({min(args['bits']), max(args['bits'])})))} bits"
        return "magnitude, " * control(row) + name

    return ["network", "stage", "last epoch's accuracy, %", "non-zero parameters (left)", "MACs (left)", "bytes",
            "MicroNet score by the rules", "original README, width 1.3", "recipe"], stage_by_stage(
                rows, stage, "nonzeros", lambda row: "" if control(row) else MOBILENET.get(row["stage"], ""))
