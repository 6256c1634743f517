"""Tables of reweighted L1."""
from results.ledger import largest_first, left, recipe

README = {  # MobileNetV2 of the original README
    "dense": "81.92 %", "finetuned": "80.12 %, 76.95 % zeros"}


def stage(row):
    """'reweighted, lambda 1e-05', 'pruned', ...: the stage and the setting that made it."""
    args = row["args"]
    if row["method"] == "magnitude":
        return "magnitude, pruned" if row["stage"] == "pruned" else f"magnitude, retrained ({args['retrain']})"
    if row["stage"] == "sparse":
        return f"reweighted, lambda {args['lam']:g}"
    control = "magnitude, " if control_of(row) else ""       # one threshold on the dense network
    bits = ", " + " to ".join(map(str, sorted({min(args["bits"]), max(args["bits"])}))) + " bits" if (
        row["stage"] == "quantized") else ""
    return control + {"finetuned": "retrained"}.get(row["stage"], row["stage"]) + bits


def control_of(row):
    """Whether the weights were chosen by magnitude on the dense network, the control."""
    return row["method"] == "magnitude" or "percentile" in row["args"].get("rule", "")


def reweighted_cifar100(ledger):
    """MobileNetV2 on CIFAR-100, stage by stage, and magnitude pruning as the control.

    What is left of the weights of a network is compared with its last dense row.
    """
    rows = largest_first([row for row in ledger if row["dataset"] == "cifar100" and (
        row["method"] == "reweighted" or row["method"] == "magnitude" and row["arch"].startswith("mobilenetv2"))])
    lines, dense = [], {}
    for row in rows:
        if row["stage"] == "dense":
            dense[row["arch"]] = row
        lines.append([row["arch"], stage(row), row["accuracy"], left(row, dense.get(row["arch"]), "nonzeros"),
                      left(row, dense.get(row["arch"]), "macs"), f"{int(row['bytes']):,}",
                      f"{row['args']['score']:.5f}", "" if control_of(row) else README.get(row["stage"], ""),
                      recipe(row)])
    return ["network", "stage", "last epoch's accuracy, %", "non-zero parameters (left)", "MACs (left)", "bytes",
            "MicroNet score by the rules", "original README, width 1.3", "recipe"], lines
