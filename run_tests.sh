#!/usr/bin/env bash
# Sets up what is missing, then runs the tests, two at a time on one thread each; arguments go to pytest:
#   bash run_tests.sh tests/test_narrow.py -k vgg
set -euo pipefail
cd "$(dirname "$0")"
source ./environment.sh requirements-dev.txt numpy tqdm matplotlib pytest xdist hypothesis ruff onnx onnxruntime
"$python" -m ruff check .
export OMP_NUM_THREADS=1
exec "$python" -m pytest -q -n 2 "$@"
