"""Tables of network slimming."""
from pathlib import Path

from common import compute_flops, models
from results.ledger import recipe

README_VGG13 = {  # of the original README: accuracy, parameters, FLOPs as thop counts them
    "baseline": ("89.82", "9.41M", "0.46G"), "sparsity, s = 0.0001": ("89.71", "9.41M", "0.46G"),
    "pruned 40 %": ("17.60", "2.64M", "0.35G"), "pruned 40 %, fine-tuned": ("90.08", "2.64M", "0.35G")}


def pruned(row):
    """'pruned 40 %', of a pruned network's row."""
    return f"pruned {100 * row['args']['percent']:g} %{' at random' * (row['args']['criterion'] == 'random')}"


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
            name = prunings[Path(args["save"])] = pruned(row)
        else:
            name = f"{prunings[Path(args['refine']).parent]}, fine-tuned"
        runs[name, row["precision"]] = row
    rows = []
    for (name, _), row in runs.items():
        accuracy, params, flops = (f" ({theirs})" for theirs in README_VGG13.get(name, ("-",) * 3))
        widths = [w if w == "M" else int(w) for w in row["widths"].split("-")]
        thop = compute_flops.count(models.build("vgg", depth=13, widths=widths)).total.thop_flops
        rows.append([name, row["accuracy"] + accuracy, f"{int(row['params']) / 1e6:.2f}M{params}",
                     f"{thop / 1e9:.3f}G{flops}", f"{2 * int(row['macs']) / 1e9:.3f}G", recipe(row)])
    return ["stage", "last epoch's accuracy, % (original)", "parameters (original)",
            "FLOPs as thop counts (original)", "FLOPs = 2 x MACs", "recipe"], rows
