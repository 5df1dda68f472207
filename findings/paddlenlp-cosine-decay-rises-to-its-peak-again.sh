#!/usr/bin/env bash
# PaddleNLP 2.8.1: CosineDecayWithWarmup falls to 0 at half of the decay, and rises to its peak until the end
#
# Versions: paddlenlp 2.8.1, paddlepaddle 3.3.1, numpy 2.3.5, datasets 4.8.5, huggingface_hub 0.36.2, aistudio-sdk
# 0.2.6.
#
# Guess: as in transformers' get_cosine_schedule_with_warmup(), whose formula it has, and as in LinearDecayWithWarmup
# beside it, the rate is 0 at total_steps: half a wave of the cosine.
#
# Behaviour: by default it is a whole wave. The last updates of a run have the highest rate, and the checkpoint that is
# kept is that of a model in full swing. num_cycles cannot mend it: by the source it must be an integer without
# restarts, so each wave ends at the peak. with_hard_restarts=True, whose default is half a cycle, falls only to 0.60 at
# the last of 10 steps, and jumps to 0 then. with_hard_restarts=True, num_cycles=1.0 is half a wave.
# PaddleNLP's Trainer has another function, whose default is half a wave, and is right.
#
# Source: CosineDecayWithWarmup.__init__() in paddlenlp/transformers/optimization.py: `num_cycles = 1 if not
# with_hard_restarts else 0.5`, the other way around than transformers has it (0.5 without restarts, 1 with). Its
# documentation has "after this warmup period learning rate would be decreased following the values of the cosine
# function", and names those defaults, too.
#
# Output seen (10 steps, 2 of them warmup, a peak of 1):
#   Linear:                      0.00 0.50 1.00 0.88 0.75 0.62 0.50 0.38 0.25 0.12 | 0.00
#   Cosine:                      0.00 0.50 1.00 0.85 0.50 0.15 0.00 0.15 0.50 0.85 | 1.00
#   Cosine, restarts:            0.00 0.50 1.00 0.99 0.96 0.92 0.85 0.78 0.69 0.60 | 0.00
#   Cosine, restarts, one cycle: 0.00 0.50 1.00 0.96 0.85 0.69 0.50 0.31 0.15 0.04 | 0.00
#   Trainer's:                   0.00 0.50 1.00 0.96 0.85 0.69 0.50 0.31 0.15 0.04 | 0.00
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check \
    paddlenlp==2.8.1 paddlepaddle==3.3.1 numpy==2.3.5 datasets==4.8.5 huggingface_hub==0.36.2 aistudio-sdk==0.2.6 \
    setuptools==75.8.0

cat > "$folder/check.py" <<'PYTHON'
import math
import sys

from paddlenlp.trainer.trainer_utils import get_cosine_schedule_with_warmup
from paddlenlp.transformers import CosineDecayWithWarmup, LinearDecayWithWarmup

STEPS, WARMUP = 10, 2


def rates(name, schedule):
    """The rates of the steps, and the one after the last."""
    found = []
    for _ in range(STEPS + 1):
        found.append(schedule.get_lr())
        schedule.step()
    print(f"{name + ':':28}", *(f"{rate:.2f}" for rate in found[:-1]), "|", f"{found[-1]:.2f}")
    return found


rates("Linear", LinearDecayWithWarmup(1.0, STEPS, WARMUP))
cosine = rates("Cosine", CosineDecayWithWarmup(1.0, STEPS, WARMUP))
restarts = rates("Cosine, restarts", CosineDecayWithWarmup(1.0, STEPS, WARMUP, with_hard_restarts=True))
one_cycle = CosineDecayWithWarmup(1.0, STEPS, WARMUP, with_hard_restarts=True, num_cycles=1.0)
one_cycle = rates("Cosine, restarts, one cycle", one_cycle)
trainers = rates("Trainer's", get_cosine_schedule_with_warmup(1.0, WARMUP, STEPS))


def are_waves(found, waves):
    """Whether the rates after the warmup are those of so many waves."""
    decay = STEPS - WARMUP
    right = [(1 + math.cos(2 * math.pi * waves * step / decay)) / 2 for step in range(decay)]
    return all(abs(rate - value) < 1e-6 for rate, value in zip(found[WARMUP:], right))


as_seen = are_waves(cosine, 1) and are_waves(restarts, 0.25) and are_waves(one_cycle, 0.5) and are_waves(trainers, 0.5)
sys.exit(not (as_seen and cosine[-1] == 1 and restarts[-1] == 0))
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/check.py" 2> "$folder/log" || { cat "$folder/log" >&2; exit 1; }
