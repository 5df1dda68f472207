#!/usr/bin/env bash
# Paddle 2.6.2 and 3.3.1: CosineAnnealingWarmRestarts, resumed from its state_dict(), goes on at other rates
#
# Versions: paddlepaddle 2.6.2 and 3.3.1; numpy 2.3.5. On a CPU.
#
# Guess: set_state_dict(state_dict()) of a learning rate scheduler goes on where it stopped, as the others in
# paddle.optimizer.lr do and as PyTorch's scheduler of the same name does.
#
# Behaviour: the first rate is right, as it is in the state. From the next step on, the rates are those of a run that
# has just begun: the cosine starts again at its top. With a period of 10 and a stop after 25 steps, the next rate is
# 0.98 instead of 0.35, and each later restart comes at another step; where T_mult is 2, the long period that it was in
# is gone, and short ones follow. There is no error. It is the same where the optimizer's state_dict(), which holds the
# scheduler's, is set; not within LinearWarmup, which gives the step's number to the scheduler in it. step(epoch=n)
# once, with the number of the next step, mends it.
#
# Source: CosineAnnealingWarmRestarts.get_lr() in paddle/optimizer/lr.py computes with T_cur and T_i, which step()
# counts up. state_keys() is LRScheduler's own, `self.keys = ['last_epoch', 'last_lr']`, so neither is saved.
#
# Output seen (a rate of 1; the last rate before the stop after 25 steps, and the next five):
#   paddle 2.6.2
#     T_0=10, T_mult=1: uninterrupted 0.50 0.35 0.21 0.10 0.02 1.00, resumed 0.50 0.98 0.90 0.79 0.65 0.50
#     T_0=10, T_mult=2: uninterrupted 0.15 0.10 0.05 0.02 0.01 1.00, resumed 0.15 0.98 0.90 0.79 0.65 0.50
#     T_0=10, with step(26): uninterrupted 0.50 0.35 0.21 0.10 0.02 1.00, resumed 0.50 0.35 0.21 0.10 0.02 1.00
#     CosineAnnealingDecay: uninterrupted 0.31 0.27 0.24 0.21 0.18 0.15, resumed 0.31 0.27 0.24 0.21 0.18 0.15
#   (and the same with 3.3.1)
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import sys

import numpy  # before paddle, as 2.6.2 wants it
import paddle
from paddle.optimizer.lr import CosineAnnealingDecay, CosineAnnealingWarmRestarts

paddle.set_device("cpu")
STOP, MORE = 25, 5


def rates(schedule, steps):
    found = [schedule.get_lr()]
    for _ in range(steps):
        schedule.step()
        found.append(schedule())
    return found


def is_resumed_right(name, schedule_class, jumps=False, **options):
    """Whether the rates are those of a run that was not interrupted."""
    whole, first, second = (schedule_class(1.0, **options) for _ in range(3))
    expected = rates(whole, STOP + MORE)[STOP:]
    rates(first, STOP)
    second.set_state_dict(first.state_dict())
    found = [second()]
    for step in range(MORE):
        second.step(STOP + 1) if jumps and not step else second.step()
        found.append(second())
    texts = (" ".join(f"{rate:.2f}" for rate in each) for each in (expected, found))
    print("  {}: uninterrupted {}, resumed {}".format(name, *texts))
    return numpy.isclose(expected, found).tolist()


print(f"paddle {paddle.__version__}")
once = is_resumed_right("T_0=10, T_mult=1", CosineAnnealingWarmRestarts, T_0=10)
twice = is_resumed_right("T_0=10, T_mult=2", CosineAnnealingWarmRestarts, T_0=10, T_mult=2)
mended = is_resumed_right("T_0=10, with step(26)", CosineAnnealingWarmRestarts, True, T_0=10)
other = is_resumed_right("CosineAnnealingDecay", CosineAnnealingDecay, T_max=40)
sys.exit(not (once == twice == [True] + MORE * [False] and all(mended) and all(other)))
PYTHON

for version in 2.6.2 3.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        "paddlepaddle==$version" numpy==2.3.5 setuptools==75.8.0
    "$folder/$version/bin/python" -W ignore "$folder/check.py"
done
