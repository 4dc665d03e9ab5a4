#!/usr/bin/env bash
# bash configs/tllm/repdistiller/figures.sh
# SRRL, CID and SFTN of Figures 9 to 13 of the paper's appendix on CIFAR-100, plain and with TLLM; the figures' other
# methods are the host's own. CID's weights are its paper's where it has the pair. SFTN trains a teacher for each
# student, which then teaches by KD. PAIRS="resnet56,resnet20 ..." chooses pairs.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ALL="resnet32x4,resnet8x4 wrn_40_2,wrn_16_2 resnet56,resnet20 ResNet50,MobileNetV2 resnet32x4,ShuffleV1 ResNet50,ShuffleV1"
for pair in ${PAIRS:-$ALL}; do
    t=${pair%,*} s=${pair#*,}
    teacher "$t"
    sftn_teacher "$t" "$s"
    for seed in $SEEDS; do
        vanilla "$t" "$s" "$seed"
        for method in srrl cid; do
            plain "$t" "$s" "$seed" --distill "$method"
            tllm_run "$t" "$s" "$seed" --distill "$method"
        done
        friendly=$(sftn_file "$t" "$s")
        PATH_T=$friendly student "$t" "$s" "$seed" "$seed-sftn" none "${KD[@]}"
        PATH_T=$friendly student "$t" "$s" "$seed" "$seed-sftn" reference \
            --tllm_reference "$(vanilla_folder "$t" "$s" "$seed")" "${KD[@]}"
    done
done
