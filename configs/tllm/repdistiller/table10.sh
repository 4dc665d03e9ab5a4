#!/usr/bin/env bash
# bash configs/tllm/repdistiller/table10.sh /path/to/CUB_200_2011
# Table 10 of the paper's appendix: CUB-200-2011, ResNet18 and MobileNetV2 taught by ResNet50 with KD and with KD and
# TLLM. Every network starts from torchvision's weights, which are downloaded; PRETRAINED=0 starts from random ones.
set -euo pipefail
FOLDER=${1:?Expected the folder CUB_200_2011 as the first argument}
DATASET=cub200 EPOCHS=${EPOCHS:-120}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
OPTIONS=(--data_folder "$FOLDER" --lr_decay_epochs 30,60,90 ${OPTIONS[@]+"${OPTIONS[@]}"})
if [ "${PRETRAINED:-1}" = 1 ]; then OPTIONS+=(--pretrained); fi
# 5 of 29 or 30 images per class; the paper's 5 % would be one or two.
TLLM_OPTIONS=(--tllm_holdout 0.18 ${TLLM_OPTIONS[@]+"${TLLM_OPTIONS[@]}"})
KD=(--distill kd -r 0.5 -a 0.5 -b 0 --kd_T 3)

t=tv_resnet50
teacher "$t"
for s in tv_resnet18 tv_mobilenet_v2; do
    for seed in $SEEDS; do
        vanilla "$t" "$s" "$seed"
        plain "$t" "$s" "$seed" "${KD[@]}"
        tllm_run "$t" "$s" "$seed" "${KD[@]}"
    done
done
