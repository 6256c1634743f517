"""Writes the tables in the READMEs and in docs/ from results/ledger.csv and results/comparison/.

    python results/make_tables.py            writes them
    python results/make_tables.py --check    exit status 1 where a README and the ledger differ

A table stands between <!-- table NAME --> and <!-- end -->; NAME is a function in one of TABLES.
"""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import cli
from deploy.measure import markdown
from results import ledger, tables, tables_hoyer
from results.comparison import choose, public
from results.comparison import tables as comparison

TABLES = (tables, tables_hoyer, comparison, public, choose)
READMES = [ROOT / "README.md", *sorted(ROOT.glob("*/*.md")), *sorted(ROOT.glob("results/comparison/*.md"))]
MARKED = re.compile(r"(<!-- table (\w+) -->\n)(.*?)(<!-- end -->)", re.S)


def make(name, rows):
    """The table of that name in Markdown, from the rows of the ledger."""
    function, = (getattr(module, name) for module in TABLES if hasattr(module, name))
    return markdown(*function(rows))


def main(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(argv)
    rows, drifted = ledger.read(), []
    for path in READMES:
        text = path.read_text()
        made = MARKED.sub(lambda m: m[1] + make(m[2], rows) + m[4], text)
        if made != text:
            drifted.append(str(path.relative_to(ROOT)))
            if not args.check:
                path.write_text(made)
    if drifted:
        print(f"{'differ from' if args.check else 'written from'} the ledger: {', '.join(drifted)}")
    return bool(drifted) and args.check


if __name__ == "__main__":
    sys.exit(main())
