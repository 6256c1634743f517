#!/usr/bin/env bash
# Every method from dense training to a smaller network, and one table at the end.
#
#   bash run_all.sh                     on the built-in pictures, minutes on two CPU cores
#   bash run_all.sh slimming            one method alone
#   bash run_all.sh full                the real data sets at full length: hours on a GPU
#
# A stage that was finished before is not repeated; one that was stopped goes on. Everything is under logs/: after an edit
# here remove the folders of that stage and of those behind it.
set -uo pipefail
cd "$(dirname "$0")"
full=; methods=()
for word in "$@"; do
    case $word in
        full) full=yes ;;
        slimming|hoyer|magnitude) methods+=("$word") ;;
        *) echo "usage: bash run_all.sh [full] [slimming] [hoyer] [magnitude]" >&2; exit 2 ;;
    esac
done
[ ${#methods[@]} -gt 0 ] || methods=(slimming hoyer magnitude)
source ./environment.sh requirements.txt numpy tqdm matplotlib || exit
out=logs/demo; [ -z "$full" ] || out=logs/full
files=(); failed=()

# step NAME COMMAND...: runs it, and remembers a failure without stopping the others
step() {
    echo; echo "== $1"; shift
    echo "python $*"
    "$python" "$@" || { failed+=("python $*"); return 1; }
}

slimming() {
    local d=$out/slimming recipe
    recipe="--dataset shapes10 --subset 4000 --epochs 6"
    [ -z "$full" ] || recipe="--dataset cifar10 --epochs 160"
    step "slimming: dense" slimming/main.py $recipe --arch vgg --depth 13 --save $d/dense --resume auto &&
    step "slimming: sparse" slimming/main.py -sr --s 0.0001 $recipe --arch vgg --depth 13 --save $d/sparse --resume auto &&
    step "slimming: prune 40 % of the channels" slimming/prune.py --percent 0.4 \
        --model $d/sparse/checkpoint.pth.tar --save $d/pruned --overwrite &&
    step "slimming: fine-tune" slimming/main.py --refine $d/pruned/pruned.pth.tar $recipe --save $d/finetuned --resume auto &&
    files+=($d/dense/checkpoint.pth.tar $d/sparse/checkpoint.pth.tar $d/pruned/pruned.pth.tar
            $d/finetuned/finetuned.pth.tar)
}

magnitude() {
    local d=$out/magnitude arch=resnet20 sub="--subset 4000" dense="--epochs 8" tune="--epochs 6" recipe
    recipe="--dataset shapes10 $sub --batch-size 32"
    if [ -n "$full" ]; then
        arch=resnet56 sub="" dense="--epochs 160" tune="--epochs 160" recipe="--dataset cifar10 --batch-size 128"
    fi
    step "magnitude: dense" magnitude/main.py $recipe $dense --arch $arch --save $d/dense --resume auto &&
    step "magnitude: prune 90 % of the weights" magnitude/prune.py --percent 0.9 $sub --model $d/dense/checkpoint.pth.tar \
        --save $d/pruned --overwrite &&
    step "magnitude: fine-tune, small rate" magnitude/finetune.py --model $d/pruned/pruned.pth.tar $recipe $tune \
        --save $d/small --resume auto &&
    step "magnitude: fine-tune, rewound rate" magnitude/finetune.py --model $d/pruned/pruned.pth.tar \
        --retrain lr-rewind $recipe $tune --save $d/lr-rewind --resume auto &&
    files+=($d/dense/checkpoint.pth.tar $d/pruned/pruned.pth.tar $d/small/finetuned.pth.tar
            $d/lr-rewind/finetuned.pth.tar)
}

hoyer() {
    local d=$out/hoyer data="--dataset shapes10" dense="--epochs 8" sparse="--epochs 12 --decay 0.004" tune="--epochs 4"
    local t=0.02
    if [ -n "$full" ]; then
        data="--dataset mnist" dense="--epochs 250" sparse="--epochs 250 --decay 0.0005" tune="--epochs 100" t=0.03
    fi
    step "hoyer: dense LeNet-5" hoyer/main.py $data --arch cnn $dense --save $d/dense --resume auto &&
    step "hoyer: group-HS on filters and channels" hoyer/main.py $data --reg group-hs $sparse --schedule cosine \
        --pretrained $d/dense/checkpoint.pth.tar --save $d/sparse --resume auto &&
    step "hoyer: prune below $t" hoyer/prune.py --model $d/sparse/checkpoint.pth.tar --sensitivity $t \
        --save $d/pruned --overwrite &&
    step "hoyer: fine-tune, then take out what is empty" hoyer/finetune.py --model $d/pruned/pruned.pth.tar $tune \
        --lr 0.001 --schedule cosine --save $d/finetuned --resume auto &&
    files+=($d/dense/checkpoint.pth.tar $d/sparse/checkpoint.pth.tar $d/finetuned/finetuned.pth.tar
            $d/finetuned/compact.pth.tar)
}

for method in "${methods[@]}"; do $method; done
if [ ${#files[@]} -gt 0 ]; then
    echo; "$python" results/summary.py "${files[@]}" || failed+=("results/summary.py")
fi
if [ ${#failed[@]} -gt 0 ]; then
    printf '\nfailed:\n'; printf '  %s\n' "${failed[@]}"; exit 1
fi
