#!/usr/bin/env bash
# Every method from dense training to a smaller network, and one table at the end.
#
#   bash run_all.sh                     on the built-in images, minutes on two CPU cores
#   bash run_all.sh slimming            one method alone
#   bash run_all.sh compare             the methods against each other on CIFAR-10, hours; --dry-run lists the commands
#   bash run_all.sh full                the real data sets at full length: hours on a GPU
#
# A training that was finished before is not repeated; one that was stopped continues. Everything is under logs/: after
# an edit here remove the folders of that stage and of those after it.
set -uo pipefail
cd "$(dirname "$0")"
all=(slimming hoyer magnitude softmask reweighted)
if [ "${1:-}" = compare ]; then
    [[ " $* " != *" --dry-run "* ]] || dry_run=yes
    source ./environment.sh requirements.txt numpy tqdm matplotlib || exit
    exec "$python" results/comparison/compare.py "${@:2}"
fi
full=; methods=()
for word in "$@"; do
    if [ "$word" = full ]; then full=yes
    elif [[ " ${all[*]} " == *" $word "* ]]; then methods+=("$word")
    else echo "usage: bash run_all.sh [full] [METHOD ...], or compare; METHOD one of: ${all[*]}" >&2; exit 2
    fi
done
[ ${#methods[@]} -gt 0 ] || methods=("${all[@]}")
source ./environment.sh requirements.txt numpy tqdm matplotlib || exit
out=logs/demo; [ -z "$full" ] || out=logs/full
files=(); failed=(); plan=(); left=

# step NAME COMMAND...: runs it, and remembers a failure without stopping the other methods. While planning it only notes
# the command.
step() {
    local name=$1 minutes; shift
    if [ -n "$planning" ]; then plan+=("$*"); return; fi
    minutes=$(awk -F'\t' -v command="$*" '$2 == command { print $1 " left, " }' <<< "$left")
    echo; echo "== $name ($minutes$(date +%H:%M))"
    echo "python $*"
    "$python" "$@" || { failed+=("python $*"); return 1; }
}

# A function per method: its settings in the demo, those of the paper, the stages, the files for the table. In the demo
# the coefficients are larger: a weight falls by about coefficient x learning rate x steps, and the steps are few.

slimming() {
    local d=$out/slimming recipe="--dataset shapes10 --subset 5000 --batch-size 32 --lr 0.05 --schedule onecycle"
    local dense="--arch vgg11_0.25 --epochs 6" tune="--epochs 3" s=0.004
    if [ -n "$full" ]; then
        recipe="--dataset cifar10" dense="--arch vgg --depth 13 --epochs 160" tune="--epochs 160" s=0.0001
    fi
    step "slimming: dense" slimming/main.py $recipe $dense --save $d/dense --resume auto &&
    step "slimming: sparse" slimming/main.py -sr --s $s $recipe $dense --save $d/sparse --resume auto &&
    step "slimming: remove 40 % of the channels, those of small gammas" slimming/prune.py --percent 0.4 \
        --model $d/sparse/checkpoint.pth.tar --save $d/pruned --overwrite &&
    step "slimming: the control, 40 % at random" slimming/prune.py --percent 0.4 --criterion random \
        --model $d/sparse/checkpoint.pth.tar --save $d/random --overwrite &&
    step "slimming: fine-tune" slimming/main.py --refine $d/pruned/pruned.pth.tar $recipe $tune \
        --save $d/finetuned --resume auto &&
    files+=($d/{dense,sparse}/checkpoint.pth.tar $d/{random,pruned}/pruned.pth.tar $d/finetuned/finetuned.pth.tar)
}

hoyer() {
    local d=$out/hoyer recipe="--dataset shapes10 --batch-size 50" t=0.01
    local dense="--epochs 6 --lr 0.002 --schedule cosine" sparse="--epochs 5 --decay 0.02" tune="--epochs 2"
    if [ -n "$full" ]; then
        recipe="--dataset mnist" dense="--epochs 250" sparse="--epochs 250 --decay 0.0005" tune="--epochs 100" t=0.03
    fi
    step "hoyer: dense" hoyer/main.py $recipe --arch cnn $dense --save $d/dense --resume auto &&
    step "hoyer: sparse filters and channels, by group-HS" hoyer/main.py --reg group-hs $recipe $sparse \
        --schedule cosine --pretrained $d/dense/checkpoint.pth.tar --save $d/sparse --resume auto &&
    step "hoyer: prune weights below $t" hoyer/prune.py --sensitivity $t \
        --model $d/sparse/checkpoint.pth.tar --save $d/pruned --overwrite &&
    step "hoyer: the control, as many at random" hoyer/prune.py --sensitivity $t --criterion random \
        --model $d/sparse/checkpoint.pth.tar --save $d/random --overwrite &&
    step "hoyer: fine-tune, then take out what is empty" hoyer/finetune.py --model $d/pruned/pruned.pth.tar \
        $recipe $tune --lr 0.001 --schedule cosine --save $d/finetuned --resume auto &&
    files+=($d/{dense,sparse}/checkpoint.pth.tar $d/{random,pruned}/pruned.pth.tar $d/finetuned/compact.pth.tar)
}

magnitude() {
    local d=$out/magnitude recipe="--dataset shapes10 --subset 5000 --batch-size 32" tune="--epochs 2" percent=0.7
    local dense="--arch vgg11_0.25 --epochs 6 --lr 0.05 --schedule onecycle"
    if [ -n "$full" ]; then
        recipe="--dataset cifar10 --batch-size 128" dense="--arch resnet56 --epochs 160" tune="--epochs 160" percent=0.9
    fi
    step "magnitude: dense" magnitude/main.py $recipe $dense --save $d/dense --resume auto &&
    step "magnitude: prune $percent of the weights, the smallest" magnitude/prune.py --percent $percent \
        --model $d/dense/checkpoint.pth.tar --save $d/pruned --overwrite &&
    step "magnitude: the control, $percent at random" magnitude/prune.py --percent $percent --criterion random \
        --model $d/dense/checkpoint.pth.tar --save $d/random --overwrite &&
    step "magnitude: fine-tune, small learning rate" magnitude/finetune.py --model $d/pruned/pruned.pth.tar \
        $recipe $tune --save $d/small --resume auto &&
    step "magnitude: train with the rewound learning rate" magnitude/rewind.py --model $d/pruned/pruned.pth.tar \
        --retrain lr-rewind $recipe --save $d/lr-rewind --resume auto &&
    files+=($d/dense/checkpoint.pth.tar $d/{random,pruned}/pruned.pth.tar $d/{small,lr-rewind}/finetuned.pth.tar)
}

softmask() {
    local d=$out/softmask recipe="--dataset shapes10 --subset 5000 --arch vgg11_0.25 --epochs 6 --batch-size 32"
    local masks="--target 0.4 --wme 1 --wg 4 --tw 16" end="--lr 0.05 --schedule onecycle --swa-start 99"
    if [ -n "$full" ]; then
        recipe="--dataset cifar100 --depth 34 --wf 9 --epochs 300" end="--swa-start 161"
        masks="--target 0.4 --wg 30 --tw 10 --wme 50"
    fi
    step "softmask: dense" softmask/main.py $recipe $end --save $d/dense --resume auto &&
    step "softmask: masks that close channels" softmask/main.py $recipe $end $masks --save $d/sparse --resume auto &&
    step "softmask: 8-bit integers" softmask/quantize_model.py --pruned $d/sparse/pruned_model.pth.tar --wbit 8 \
        --save $d/quantized --overwrite &&
    files+=($d/{dense,sparse}/checkpoint.pth.tar $d/sparse/pruned_model.pth.tar $d/quantized/quantized_model.pth.tar)
}

reweighted() {
    local d=$out/reweighted recipe="--dataset shapes10 --subset 5000 --batch-size 32 --lr 0.002 --alpha 0"
    local dense="--arch vgg11_0.25 --epochs 5 --warmup-epochs 1" sparse="--epochs 4" tune="--epochs 2 --warmup-epochs 0"
    if [ -n "$full" ]; then
        recipe="--dataset cifar100" dense="--width 1.3 --epochs 300" sparse="--epochs 300" tune="--epochs 300"
    fi
    step "reweighted: dense" reweighted/main.py $recipe $dense --save $d/dense --resume auto &&
    step "reweighted: reweighted L1" reweighted/main.py --rew --pretrained $d/dense/checkpoint.pth.tar $recipe $sparse \
        --save $d/sparse --resume auto &&
    step "reweighted: prune weights below 1e-4" reweighted/prune.py --model $d/sparse/checkpoint.pth.tar \
        --save $d/pruned --overwrite &&
    step "reweighted: retrain" reweighted/finetune.py --model $d/pruned/pruned.pth.tar $recipe $tune \
        --save $d/finetuned --resume auto &&
    step "reweighted: 8-bit integers" reweighted/quantize_model.py --model $d/finetuned/finetuned.pth.tar \
        --save $d/quantized --overwrite &&
    files+=($d/{dense,sparse}/checkpoint.pth.tar $d/pruned/pruned.pth.tar $d/finetuned/finetuned.pth.tar
            $d/quantized/quantized_model.pth.tar)
}

if [ -z "$full" ]; then
    echo "timing each network on a few batches of the built-in images (nothing is downloaded)"
    planning=yes; for method in "${methods[@]}"; do $method; done; files=()
    left=$(printf '%s\n' "${plan[@]}" | "$python" results/estimate.py) || exit
    echo "${#plan[@]} stages, about ${left%%$'\t'*} on this machine"
fi
planning=; for method in "${methods[@]}"; do $method; done
if [ ${#files[@]} -gt 0 ]; then
    plot=comparison; [ ${#methods[@]} = ${#all[@]} ] || plot=$(IFS=-; echo "${methods[*]}")
    echo; "$python" results/summary.py "${files[@]}" --plot "$out/$plot.png" || failed+=("results/summary.py")
fi
if [ ${#failed[@]} -gt 0 ]; then
    printf '\nfailed:\n'; printf '  %s\n' "${failed[@]}"; exit 1
fi
