"""Tables of the soft-binary weight mask."""
from results.ledger import largest_first, left, recipe

README = {  # WideResNet-34-9 of the original README; its score counts FLOPs as that README does, see softmask/README.md
    "pruned": "80.46 %, 23.18M", "quantized": "80.28 %, 23.18M of 8 bits"}


def stage(row):
    """'pruned to 0.4', 'quantized, 8 bits': the stage and the setting that made it."""
    args = row["args"]
    if row["stage"] == "sparse":
        return f"soft masks, target {args['target']:g}"
    if row["stage"] == "quantized":
        return f"quantized, {args['wbit']} bits"
    return {"finetuned": "fine-tuned"}.get(row["stage"], row["stage"])


def softmask_cifar100(ledger):
    """Networks on CIFAR-100, stage by stage; what is left of a network is compared with its last dense row."""
    rows = largest_first([row for row in ledger if (row["method"], row["dataset"]) == ("softmask", "cifar100")])
    lines, dense = [], {}
    for row in rows:
        if row["stage"] == "dense":
            dense[row["arch"]] = row
        lines.append([row["arch"], stage(row), row["accuracy"], left(row, dense.get(row["arch"]), "params"),
                      left(row, dense.get(row["arch"]), "macs"), f"{int(row['bytes']):,}",
                      f"{row['args']['score']:.5f}", README.get(row["stage"], ""), recipe(row)])
    return ["network", "stage", "last epoch's accuracy, %", "parameters (left)", "MACs (left)", "bytes",
            "MicroNet score by the rules", "original README, WRN-34-9", "recipe"], lines
