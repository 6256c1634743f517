"""A file of another repository as a checkpoint: foreign.py finds its weights, shapes.py its network."""
import re

from common import UserError, models, say
from common.files import foreign
from common.files.originals import PIXELS, translated
from common.files.shapes import recognize
from common.models import counting, own


def convert(path, ckpt, network, arch=None, depth=None, image_size=None):
    """Someone else's dictionary, the weights somewhere inside it, as a checkpoint. Prints how it is read."""
    found = foreign.find(ckpt)
    if not found:
        raise UserError(f"{path} holds no weights (keys: {', '.join(map(str, list(ckpt)[:5]))})")
    outer, state, key = found
    alone = not key and not any(name.startswith("module.") for name in state)
    outer, (state, left_out) = {**ckpt, **outer}, foreign.bare(state)
    prec1 = foreign.accuracy(outer, "acc", "prec1", "accuracy")
    best = foreign.accuracy(outer, "best_prec1", "best_acc") or prec1
    if ":" in (arch or ""):                                  # a network that is none of ours, in its own names
        say(f"{path}: read as {arch}")
        state = {name.removeprefix("module."): tensor for name, tensor in found[1].items()}
        model = own.fitted(path, state, arch, image_size)
        return {"method": "original", "stage": "dense", "arch": model.arch, "cfg": model.cfg, "dataset": None,
                "state_dict": dict(model.state_dict()), "prec1": prec1, "best_prec1": best}
    soft = {name: state.pop(name) for name in list(state) if name.endswith(".mweight")}
    state, masks = foreign.unmasked(state)
    asked, asked_cfg = network(arch, depth) if arch else (None, {})
    wide = {k: v for k, v in asked_cfg.items() if k == "widen_factor" and str(v) in re.findall(r"\d+", arch)}
    if key == "pruned_state_dict" and (whole := foreign.find({**outer, key: None})):        # the network before pruning
        whole = {name: tensor for name, tensor in foreign.bare(whole[1])[0].items() if "mweight" not in name}
        wide = {k: v for k, v in recognize(path, whole)[0].cfg.items() if k == "widen_factor"}
    model, state, form = recognize(path, state, asked, asked_cfg, wide, alone)
    state, soft_masks = foreign.folded(path, model, state, translated(soft, form.names)[0])
    classes = model.cfg["num_classes"]
    pixels = PIXELS[form.pixels][{10: 0, 100: 1}.get(classes, 2)]
    taken = [f"weights under {key!r}" if key else "", f"without {', '.join(left_out[:3])}" if left_out else "",
             "masks clamp(m + 0.5, 0, 1) inside the weights" if soft_masks else ""]
    say(f"{path}: read as {form.who} ({models.name(model.arch, model.cfg)}): {foreign.described(model)}"
        f"{''.join(f'; {text}' for text in taken if text)}")
    read = {"method": "original", "arch": model.arch, "cfg": model.cfg, "dataset": None,
            "stage": "dense", "state_dict": state, "epoch": max(0, int(foreign.number(outer.get("epoch")))),
            "prec1": prec1, "best_prec1": best, "args": {}, "dense": None, "masks": translated(masks, form.names)[0]}
    if pixels:
        read["images"] = {"classes": [], "mean": list(pixels[0]), "std": list(pixels[1])}
    if soft_masks:
        read |= {"stage": "sparse", "soft_masks": soft_masks, "args": {"nfp": False}}
    if masks or isinstance(outer.get("cfg"), list):
        read["stage"] = "pruned"
    elif form.cfg.get("variant") == "softmask":
        dense = models.sketch(model.arch, **{k: v for k, v in model.cfg.items() if k not in ("widths", "streams")})
        if dense.cfg != model.cfg:
            read |= {"stage": "pruned", "dense": counting.summary(dense)}
    return read
