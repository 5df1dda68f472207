#!/usr/bin/env bash
# Paddle 2.6.2 and 3.3.1: CosineAnnealingDecay(last_epoch=...) goes on near its top, LinearLR above its end
#
# Versions: paddlepaddle 2.6.2 and 3.3.1; numpy 2.3.5. On a CPU.
#
# Guess: last_epoch=59 gives the rates from step 60 on, as step(epoch=60) does. It is "The index of last epoch. Can be
# set to restart training", and so it is with PolynomialDecay, NoamDecay and ExponentialDecay.
#
# Behaviour: CosineAnnealingDecay starts at the full rate and falls from there, by the steps of the place where it
# should be: after 60 of 100 steps its rate is 0.96 instead of 0.35, and the rest of the run trains at 2.8 times the
# rate. LinearLR, as used for a warmup, starts at its full rate instead of the third that it starts from, and rises
# above it by what is left: the later the restart, the more nearly right. There is no error. PyTorch's schedulers, which
# work in the same way, take the rate to go on from out of the optimizer, and refuse where it is not there.
#
# Source: get_lr() of both in paddle/optimizer/lr.py multiplies self.last_lr, the rate of the step before, by a factor;
# LRScheduler.__init__() sets it to the full rate, `self.last_lr = self.base_lr`, whatever last_epoch is.
#
# Output seen (a rate of 1, 100 steps; rates of steps 60, 61, 80 and 100):
#   paddle 2.6.2
#     CosineAnnealingDecay: uninterrupted 0.35 0.33 0.10 0.00, by last_epoch 0.96 0.92 0.26 0.00
#     LinearLR: uninterrupted 0.73 0.74 0.87 1.00, by last_epoch 1.01 1.02 1.19 1.38
#     PolynomialDecay: uninterrupted 0.40 0.39 0.20 0.00, by last_epoch 0.40 0.39 0.20 0.00
#   (and the same with 3.3.1)
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import sys

import numpy  # before paddle, as 2.6.2 wants it
import paddle
from paddle.optimizer.lr import CosineAnnealingDecay, LinearLR, PolynomialDecay

paddle.set_device("cpu")
STEPS, START, SHOWN = 100, 60, (60, 61, 80, 100)


def rates(schedule, first):
    """The rates by step, from the first one to the last."""
    found = {first: schedule()}
    for step in range(first + 1, STEPS + 1):
        schedule.step()
        found[step] = schedule()
    return [found[step] for step in SHOWN]


def ratios(schedule_class, **options):
    """How much larger the rates are with last_epoch than those of a run that was not interrupted."""
    expected = rates(schedule_class(1.0, **options), 0)
    found = rates(schedule_class(1.0, **options, last_epoch=START - 1), START)
    texts = (" ".join(f"{rate:.2f}" for rate in each) for each in (expected, found))
    print("  {}: uninterrupted {}, by last_epoch {}".format(schedule_class.__name__, *texts))
    return [b / a for a, b in zip(expected, found) if a > 1e-9]


print(f"paddle {paddle.__version__}")
cosine = ratios(CosineAnnealingDecay, T_max=STEPS)
linear = ratios(LinearLR, total_steps=STEPS)
polynomial = ratios(PolynomialDecay, decay_steps=STEPS)
sys.exit(not (min(cosine) > 2.5 and min(linear) > 1.2 and numpy.allclose(polynomial, 1.0)))
PYTHON

for version in 2.6.2 3.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        "paddlepaddle==$version" numpy==2.3.5 setuptools==75.8.0
    "$folder/$version/bin/python" -W ignore "$folder/check.py"
done
