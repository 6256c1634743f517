"""The file of --ratios: a fraction to prune for each convolution."""
import re
from pathlib import Path

from common import UserError


def read_ratios(path, weights):
    """{parameter name: fraction in [0, 1)} of a file with lines "name: fraction"; # begins a comment.

    UserError names a line that is not of this form, or a parameter that is not a convolution's weight here.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--ratios {path}: {error}") from error
    ratios = {}
    for number, line in enumerate(lines, 1):
        line = line.partition("#")[0].strip()
        if not line or line == "prune_ratios:":              # the heading of the original's files
            continue
        match = re.fullmatch(r"([\w.]+)\s*[:\s]\s*([\d.eE+-]+)", line)
        try:
            name, ratio = match[1], float(match[2])
        except (TypeError, ValueError) as error:
            raise UserError(f"--ratios {path}, line {number}: {line!r} is no \"name: fraction\"") from error
        if name not in weights or not 0 <= ratio < 1:
            raise UserError(f"--ratios {path}, line {number}: " + (f"{ratio:g} is not in [0, 1)" if name in weights else
                            f"the network has no convolution {name}; it has {next(iter(weights))}, ..."))
        ratios[name] = ratio
    if not ratios:
        raise UserError(f"--ratios {path} has no line \"name: fraction\"")
    return ratios
