#!/usr/bin/env bash
# The four phases with the flags that the original published, from dense training to masked retraining.
#
#   bash training/run.sh                              300 epochs a phase; further flags are passed on
#   bash training/run.sh --resume auto                continues where it was stopped
#
# The original's script also had --no-tricks, which turns warm-up, mixup and smoothing off again; later revisions left
# it out, and so does this one.
set -eu
cd "$(dirname "$0")/.."
python training/main.py --arch mobilenetv2 --depth 17 --batch-size 64 --sparsity-type irregular --epoch 300 \
    --optmzr adam --lr 0.001 --lr-scheduler cosine --warmup --warmup-epochs 5 --mixup --alpha 0.3 \
    --smooth --smooth-eps 0.1 --config-file config_mobile_v2_0.7 "$@"
