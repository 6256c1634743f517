# Sourced by run_all.sh and run_tests.sh: sets $python to one that can import all of the given requirements file.
# A Python that has torch already is used as it is (in a virtual environment that sees it, if something else is
# missing); otherwise .venv is made and everything is installed there. With $dry_run nothing is installed.
python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=$PWD/.venv/bin/python
requirements=$1
modules=(torch "${@:2}")
missing() {
    "$python" -c 'import sys, importlib.util as u; print(*(m for m in sys.argv[1:] if not u.find_spec(m)))' "${modules[@]}"
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed" >&2; exit 2; }
absent=$(missing)
if [ -n "$absent" ] && [ -n "${dry_run:-}" ]; then
    echo "not installed: $absent; a dry run installs nothing, without --dry-run pip installs $requirements" >&2
    [[ " $absent " != *" torch "* && " $absent " != *" numpy "* ]] || exit 2
elif [[ " $absent " == *" torch "* ]]; then
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    python=$PWD/.venv/bin/python
    absent=$(missing)
    if [ -n "$absent" ]; then
        echo "not installed: $absent; pip installs $requirements into .venv (torch: several GB the first time)"
        "$python" -m pip install --quiet -r "$requirements"
    fi
elif [ -n "$absent" ]; then
    echo "not installed: $absent; pip installs what is missing beside the torch that is here"
    if "$python" -c 'import sys; sys.exit(sys.prefix != sys.base_prefix)'; then
        [ -x .venv/bin/python ] || "$python" -m venv --system-site-packages .venv
        python=$PWD/.venv/bin/python
    fi
    wanted=$(mktemp)
    cat requirements.txt "$requirements" | grep -v -e '^torch' -e '^-r' | sort -u > "$wanted"
    "$python" -m pip install --quiet -r "$wanted"
    rm -f "$wanted"
fi
"$python" -c 'import sys, torch; print(f"Python {sys.version.split()[0]}, torch {torch.__version__}")'
