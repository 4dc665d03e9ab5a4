# Sourced by the scripts of this folder: how RepDistiller is run, and where it leaves what.
# Variables: SEEDS="0 1 2" (one run each), DRY_RUN=1 (print the commands only), EPOCHS and TEACHER_EPOCHS (for trials),
# OPTIONS="--num_workers 2 ..." (added to every command of both of the host's scripts), TLLM_OPTIONS="--tllm_eta 0.1 ..."
# (added to every student's).

SEEDS=${SEEDS:-0}
EPOCHS=${EPOCHS:-240}
TEACHER_EPOCHS=${TEACHER_EPOCHS:-$EPOCHS}
DATASET=${DATASET:-cifar100}
read -r -a OPTIONS <<< "${OPTIONS:-}"
read -r -a TLLM_OPTIONS <<< "${TLLM_OPTIONS:-}"

run() {
    echo "+ $*"
    if [ "${DRY_RUN:-0}" != 1 ]; then "$@"; fi
}

# Where train_teacher.py leaves the checkpoint of MODEL.
teacher_file() {
    echo "save/models/$1_${DATASET}_lr_0.05_decay_0.0005_trial_0/$1_last.pth"
}

# Train MODEL as a teacher, unless its checkpoint is there.
teacher() {
    if [ ! -f "$(teacher_file "$1")" ]; then
        run tllm train --host repdistiller --script train_teacher.py -- --model "$1" --dataset "$DATASET" \
            --epochs "$TEACHER_EPOCHS" ${OPTIONS[@]+"${OPTIONS[@]}"}
    fi
}

# The same for MODEL trained with branches of STUDENT.
sftn_file() {
    echo "save/models/$1_${DATASET}_lr_0.05_decay_0.0005_trial_0_sftn:$2/$1_last.pth"
}

# sftn_teacher MODEL STUDENT: SFTN's stage, unless its checkpoint is there.
sftn_teacher() {
    if [ ! -f "$(sftn_file "$1" "$2")" ]; then
        run tllm train --host repdistiller --script train_teacher.py -- --model "$1" --sftn --model_s "$2" \
            --dataset "$DATASET" --epochs "$TEACHER_EPOCHS" ${OPTIONS[@]+"${OPTIONS[@]}"}
    fi
}

# student TEACHER STUDENT SEED TRIAL DETECTOR [the host's and TLLM's options ...]; PATH_T: another checkpoint of TEACHER
student() {
    local teacher=$1 student=$2 seed=$3 trial=$4 detector=$5
    shift 5
    run tllm train --host repdistiller -- --path_t "${PATH_T:-$(teacher_file "$teacher")}" --model_t "$teacher" \
        --model_s "$student" --dataset "$DATASET" --epochs "$EPOCHS" --trial "$trial" \
        --tllm --tllm_seed "$seed" --tllm_detector "$detector" ${OPTIONS[@]+"${OPTIONS[@]}"} \
        ${TLLM_OPTIONS[@]+"${TLLM_OPTIONS[@]}"} "$@"
}

# A student that learns from the labels alone: the measure of delta acc, and the reference of the detector.
vanilla() {
    student "$1" "$2" "$3" "$3" none --distill kd -r 1 -a 0 -b 0
}

# Where `vanilla TEACHER STUDENT SEED` leaves its run.
vanilla_folder() {
    echo "save/student_model/S:$2_T:$1_${DATASET}_kd_r:1.0_a:0.0_b:0.0_$3_tllm:none"
}

# plain TEACHER STUDENT SEED [options of the method ...]: the method as it is, with recorded curves.
plain() {
    local teacher=$1 student=$2 seed=$3
    shift 3
    student "$teacher" "$student" "$seed" "$seed" none "$@"
}

# tllm_run TEACHER STUDENT SEED [options of the method ...]: the same with TLLM.
tllm_run() {
    local teacher=$1 student=$2 seed=$3
    shift 3
    student "$teacher" "$student" "$seed" "$seed" reference \
        --tllm_reference "$(vanilla_folder "$teacher" "$student" "$seed")" "$@"
}

# KD with the host's weights.
KD=(--distill kd -r 0.1 -a 0.9 -b 0)
