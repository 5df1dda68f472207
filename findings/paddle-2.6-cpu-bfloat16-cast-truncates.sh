#!/usr/bin/env bash
# Paddle 2.6.2: on a CPU, a cast from float32 to bfloat16 cuts bits off; 3.3.1's rounds to the nearest
#
# Versions: paddlepaddle 2.6.2, and 3.3.1 to compare; numpy 2.3.5. On a CPU.
#
# Guess: astype("bfloat16") rounds to the nearest, as IEEE 754's conversions do, PyTorch's, and Paddle's own on a GPU.
#
# Behaviour: with 2.6.2 the lower 16 bits are dropped: each value moves towards 0, by up to 0.8 percent and by 0.27 in
# the mean, where rounding moves it by up to 0.4 and by none in the mean. Weights or checkpoints that are kept in
# bfloat16 shrink with each such cast.
#
# Source: bfloat16(float) in paddle/phi/common/bfloat16.h, which both wheels bring along. 2.6.2: `std::memcpy(&x,
# reinterpret_cast<char*>(&val) + 2, 2)` where there is no CUDA; 3.3.1: `cpu_float_to_bfloat16(val)`.
#
# Output seen:
#   paddle 2.6.2: 1.005859375 becomes 1.0; 100,000 values from 1 to 2 change by -0.270 percent in the mean
#   paddle 3.3.1: 1.005859375 becomes 1.0078125; 100,000 values from 1 to 2 change by -0.000 percent in the mean
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import sys

import numpy
import paddle

paddle.set_device("cpu")


def as_bfloat16(values):
    return paddle.to_tensor(values).astype("bfloat16").astype("float32").numpy()


value = 1.005859375  # 1 + 3/4 of the step between neighbours of bfloat16, which is 1/128 here
[cast] = as_bfloat16(numpy.array([value], numpy.float32)).tolist()
many = numpy.random.default_rng(0).uniform(1, 2, 100_000).astype(numpy.float32)
change = 100 * float((as_bfloat16(many) / many - 1).mean())
print(
    f"paddle {paddle.__version__}: {value} becomes {cast}; 100,000 values from 1 to 2 change by {change:.3f} percent "
    "in the mean"
)
is_cut = cast == 1.0 and change < -0.2
is_rounded = cast == 1.0078125 and abs(change) < 0.01
sys.exit(not (is_cut if paddle.__version__ == "2.6.2" else is_rounded))
PYTHON

for version in 2.6.2 3.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        "paddlepaddle==$version" numpy==2.3.5 setuptools==75.8.0
    "$folder/$version/bin/python" -W ignore "$folder/check.py"
done
