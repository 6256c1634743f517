"""Tables of magnitude pruning."""
from pathlib import Path

from results.ledger import one_a_seed, recipe, spread

RENDA = {  # Renda et al.'s accuracy by percent of the weights that are left, pruned by magnitude
    "resnet56": {"dense": {100: 93.46}, "small": {21: 92.94, 10.7: 92.20, 4.4: 90.54},
                 "lr-rewind": {21: 93.50, 10.7: 93.56, 4.4: 92.58}},
    "resnet20": {"dense": {100: 91.71}}}
THEIRS = ("", "magnitude", "magnitude, iterative")           # the rules of which they have results
HEADER = ["network", "weights left", "rule", "training", "last epoch's accuracy, % (seeds)",
          "published (Renda et al.)", "recipe"]


def groups(ledger):
    """{(network, -percent of weights left, rule, training, recipe): rows of all seeds} on all of CIFAR-10."""
    found = {}
    for row in ledger:
        args = row["args"]
        if (row["method"], row["dataset"]) != ("magnitude", "cifar10") or row["stage"] == "pruned" or args["subset"]:
            continue
        if args.get("schedule") == ["onecycle"]:             # of the comparison of all methods, on the front page
            continue
        training = "dense" if row["stage"] == "dense" else args["retrain"]
        if training == "weight-rewind":
            training += f" to {Path(args['rewind_to']).name.removesuffix('.pth.tar')}"
        kept = round(100 * int(row["nonzeros"]) / int(row["params"]), 1)
        key = (row["arch"], -kept, args.get("rule", ""), training, recipe(row, minutes=False))
        found.setdefault(key, []).append(row)
    return dict(sorted(one_a_seed(found).items()))


def accuracies(rows):
    return {row["seed"]: float(row["accuracy"]) for row in rows}


def published(arch, training, kept):
    """Renda et al.'s accuracy at the fraction of weights nearest to `kept` percent, if they have any."""
    theirs = RENDA.get(arch, {}).get(training, {})
    nearest = min(theirs, key=lambda left: abs(left / kept - 1), default=None)
    return f"{theirs[nearest]:.2f} at {nearest:g} %" if theirs else ""


def magnitude_cifar10(ledger):
    """Weight pruning on CIFAR-10: seeds together, and the two ways to fine-tune compared seed by seed."""
    found = groups(ledger)
    lines = [[arch, f"{-kept:.1f} %", rule, training, spread(accuracies(rows).values()),
              published(arch, training, -kept) if rule in THEIRS else "", how]
             for (arch, kept, rule, training, how), rows in found.items()]
    for (arch, kept, rule, training, how), rows in found.items():
        rewound, small = accuracies(rows), accuracies(found.get((arch, kept, rule, "small", how), []))
        both = sorted(rewound.keys() & small.keys())
        if training == "lr-rewind" and both:
            lines.append([arch, f"{-kept:.1f} %", rule, "lr-rewind minus small, points",
                          f"+{spread([rewound[s] - small[s] for s in both])}".replace("+-", "-"), "", how])
    return HEADER, lines


def magnitude_precision(ledger):
    """The same trial run in each precision."""
    return ["network", "last epoch's accuracy, %", "recipe"], [
        [row["arch"], row["accuracy"], recipe(row)] for row in ledger
        if (row["method"], row["dataset"]) == ("magnitude", "cifar10") and row["args"]["subset"]]
