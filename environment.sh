# Sourced by run_all.sh and run_tests.sh: sets $python to one that can import all of the given requirements file.
# A Python that has torch already is used as it is (in a virtual environment that sees it, if something else is
# missing); otherwise .venv is made and everything is installed there.
python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=$PWD/.venv/bin/python
requirements=$1
shift                                    # the remaining arguments: the modules that must be importable
can_import() { "$python" -c "import $1" 2>/dev/null; }
missing() { for module in "$@"; do can_import "$module" || return 0; done; return 1; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed" >&2; exit 2; }
if missing torch "$@"; then
    if can_import torch; then
        echo "installing what is missing beside the torch that is here"
        wanted=$(mktemp)
        cat requirements.txt "$requirements" | grep -v -e '^torch' -e '^-r' | sort -u > "$wanted"
        if "$python" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)'; then
            "$python" -m pip install --quiet -r "$wanted"
        else
            [ -x .venv/bin/python ] || "$python" -m venv --system-site-packages .venv
            python=$PWD/.venv/bin/python
            "$python" -m pip install --quiet -r "$wanted"
        fi
        rm -f "$wanted"
    else
        echo "installing $requirements into .venv (several GB the first time)"
        [ -x .venv/bin/python ] || "$python" -m venv .venv
        python=$PWD/.venv/bin/python
        missing torch "$@" && "$python" -m pip install --quiet -r "$requirements"
    fi
fi
"$python" -c 'import sys, torch; print(f"Python {sys.version.split()[0]}, torch {torch.__version__}")'
