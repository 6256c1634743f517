#!/usr/bin/env bash
# Sets up what is missing, then runs the tests; arguments go to pytest: bash run_tests.sh tests/test_narrow.py -k vgg
set -euo pipefail
cd "$(dirname "$0")"
source ./environment.sh requirements-dev.txt numpy tqdm matplotlib pytest ruff
"$python" -m ruff check .
exec "$python" -m pytest -q "$@"
