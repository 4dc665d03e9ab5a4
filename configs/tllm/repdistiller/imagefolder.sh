#!/usr/bin/env bash
# bash configs/tllm/repdistiller/imagefolder.sh /path/to/folder
# KD and CRD+KD, plain and with TLLM, on a folder of images (train/ and val/, one folder per class) instead of CIFAR-100,
# with two vanilla students: the first is the detector's reference, the second the null of delta acc.
# For a processor without a GPU: TEACHER=resnet14 STUDENT=resnet8 EPOCHS=6 OPTIONS="--lr_decay_epochs 4,5" TLLM_OPTIONS="--tllm_warmup 1"
set -euo pipefail
FOLDER=${1:?Expected the folder of images as the first argument}
DATASET=imagefolder
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
OPTIONS+=(--data_folder "$FOLDER")

t=${TEACHER:-resnet32x4} s=${STUDENT:-resnet8x4}
teacher "$t"
for seed in $SEEDS; do
    vanilla "$t" "$s" "$seed"
    student "$t" "$s" "$((seed + 1000))" "$seed-null" none --distill kd -r 1 -a 0 -b 0
    for method in "${KD[*]}" "--distill crd -r 1 -a 1 -b 0.8 --nce_k ${NCE_K:-16384}"; do
        read -r -a options <<< "$method"
        plain "$t" "$s" "$seed" "${options[@]}"
        tllm_run "$t" "$s" "$seed" "${options[@]}"
    done
done
