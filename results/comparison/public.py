"""Tables of the public ResNets, beside the comparison of all methods: right after pruning, ratios, costs, ResNet-56."""
import statistics
from pathlib import Path

from common import compute_flops, models
from results.ledger import by_cost, compared, recipe, spread

COST = {"data": "public", "hs": "after Hoyer-Square", "reweighted": "after reweighted L1"}       # by the file's folder


def one_shot(ledger):
    """The public ResNet-20 right after pruning, without training."""
    found, tuned = {}, {row["args"]["save"] for row, _ in questions(ledger)}
    for row in ledger:
        args = row["args"]
        if row["stage"] != "pruned" or not public(args) or args["save"] in tuned or by_cost(row):
            continue
        random = ", at random" if args.get("criterion") == "random" else ""
        images = f"{args['recalibrate']:,} images" if args.get("recalibrate") else ""
        found.setdefault((row["method"] + random, kept(args), images), []).append(row)
    return ["method", "kept", "recalibrated on", "top-1, %", "KiB"], [
        [*key, spread([float(row["accuracy"]) for row in rows]).removesuffix(" (1)"),
         f"{statistics.mean(int(row['bytes']) for row in rows) / 1024:,.0f}"] for key, rows in found.items()]


def public(args):
    """Whether a prune.py with these settings read the public ResNet-20."""
    return "data/resnet20-12fca82f.th" in (args.get("model"), args.get("resume"))


def kept(args):
    """'10 % of the weights', of the settings of a prune.py."""
    weights, macs = args.get("keep_weights"), args.get("keep_macs")
    return f"{100 * weights:g} % of the weights" if weights else f"{100 * macs:g} % of the MACs" if macs else ""


def questions(ledger):
    """(pruned row, fine-tuned row) of the public ResNet-20, without the comparison of all methods."""
    pruned = {f"{row['args']['save']}/pruned.pth.tar": row for row in ledger
              if row["stage"] == "pruned" and public(row["args"])}
    pairs = [(pruned.get(row["args"].get("model") or row["args"].get("refine")), row) for row in ledger
             if row["stage"] == "finetuned" and not compared(row)]
    return [(before, row) for before, row in pairs if before]


def ratios_and_teacher(ledger):
    """Fractions of each layer, and a teacher: the public ResNet-20 right after pruning and fine-tuned."""
    cells = []
    for before, row in questions(ledger):
        ratios = before["args"]["ratios"] or ""
        fractions = "of sensitivity.py" if "sensitivity" in ratios else "equal" if ratios else "one threshold"
        cells.append([row["method"], kept(before["args"]), fractions, "dense" if row["args"]["teacher"] else "",
                      before["accuracy"], row["accuracy"], row["epochs"]])
    return ["method", "kept", "fractions of the layers", "teacher", "top-1, %, pruned", "fine-tuned", "epochs"], cells


def cost_exponent(ledger):
    """Weights chosen by |w| / P^A at equal MACs: ResNet-20 right after pruning and fine-tuned."""
    mine = [row for row in ledger if by_cost(row)]
    pruned = {f"{row['args']['save']}/pruned.pth.tar": row["args"] for row in mine if row["stage"] == "pruned"}
    found = {}
    for row in mine:
        args = pruned[row["args"]["model"]] if row["stage"] == "finetuned" else row["args"]
        column = "random" if args["criterion"] == "random" else args["cost_exponent"]
        network = COST[Path(args.get("model") or args["resume"]).parent.name]
        tuned = f"{row['epochs']}, {row['args']['lr']:g}" if row["stage"] == "finetuned" else ""
        found.setdefault((network, tuned, kept(args)), {}).setdefault(column, []).append(float(row["accuracy"]))
    cells = [[network, macs, tuned, *(spread(runs[column]).removesuffix(" (1)") if column in runs else ""
                                      for column in (0, 0.25, 0.5, "random"))]
             for (network, tuned, macs), runs in sorted(found.items(), reverse=True)]
    return ["network", "kept", "epochs, peak learning rate", "A = 0", "A = 1/4", "A = 1/2", "random masks"], cells


def runs_of_resnet56(ledger):
    """[(name, pruned row, fine-tuned row)] of the public ResNet-56."""
    pruned = {f"{row['args']['save']}/pruned.pth.tar": row for row in ledger if row["stage"] == "pruned"}
    found = []
    for row in ledger:
        if row["stage"] == "finetuned" and Path(row["args"].get("save") or "").parts[:2] == ("logs", "resnet56"):
            before = pruned[row["args"].get("model") or row["args"].get("refine")]
            names = {"gamma": "network slimming", "random": "random channels"}
            found.append((names.get(before["args"]["criterion"], "magnitude"), before, row))
    return found


def resnet56(ledger):
    """The public ResNet-56: pruned and fine-tuned."""
    cells = [[name, kept(before["args"]), before["accuracy"], row["accuracy"], f"{int(row['nonzeros']):,}",
              f"{int(row['macs']) / 1e6:.1f}M",
              f"{'5 + ' * (name == 'network slimming')}{row['epochs']}, {row['args']['lr']:g}",
              recipe(row).partition(", ")[2]] for name, before, row in runs_of_resnet56(ledger)]
    return ["method", "kept", "top-1, %, pruned", "fine-tuned", "non-zero", "MACs without zeros",
            "further epochs, peak learning rate", "last stage"], cells


def points_of_resnet56(ledger):
    """These rows for the comparison's plot."""
    dense = compute_flops.count(models.build("resnet", depth=56, shortcut="slice")).total
    return [(*(("weights", 100 * int(row["weights"]) / dense.weights) if name == "magnitude" else
               ("MACs", 100 * int(row["macs"]) / dense.macs)), float(row["accuracy"]), name, "ResNet-56")
            for name, _, row in runs_of_resnet56(ledger)]
