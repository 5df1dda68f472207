#!/usr/bin/env bash
# Paddle 3.3.1: on a CPU, norm() of a matrix as large as RoBERTa-base's embedding is too small by 5 %
#
# Versions: paddlepaddle 2.6.2 and 3.3.1; numpy 2.3.5. On a CPU, in float32.
#
# Guess: the norm is the root of the sum of squares, to float32's rounding, as square().sum().sqrt() gives it. So a norm
# that is watched, or by which something is divided, may be computed either way.
#
# Behaviour: in 3.3.1 the squares are added to one float32 number, one after the other. Once it is large, squares that
# are less than half of its last digit add nothing. Of 50,265 x 768 values drawn with RoBERTa's deviation of 0.02 the
# norm is 118.28 instead of 124.26. sum() adds in parts, and is right; so is squared_l2_norm, by which Paddle clips
# gradients. In 2.6.2 norm() is right: there it is another kernel, frobenius_norm. Sums of columns have the same limit
# in both: sum(axis=0) of 2^25 ones in a column is 2^24.
#
# Source: norm() in python/paddle/tensor/linalg.py calls vector_norm() in 3.x, whose kernel for CPUs is
# xr.abs().pow(porder).sum(rdim).pow(1.0 / porder) in paddle/phi/kernels/cpu/p_norm_kernel.cc: Eigen's sum over the
# middle one of three axes, which is one after the other.
#
# Output seen:
#   paddle 2.6.2: in float64 124.26, norm() 124.26, square().sum().sqrt() 124.26;
#     2^25 ones in a column: sum(axis=0) 16777216, sum() 33554432
#   paddle 3.3.1: in float64 124.26, norm() 118.28, square().sum().sqrt() 124.26;
#     2^25 ones in a column: sum(axis=0) 16777216, sum() 33554432
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import sys

import numpy
import paddle

paddle.set_device("cpu")
values = numpy.random.default_rng(0).standard_normal((50265, 768), numpy.float32) * numpy.float32(0.02)
right = float(numpy.sqrt(numpy.square(values, dtype=numpy.float64).sum()))
embedding = paddle.to_tensor(values)
norm, by_sum = embedding.norm().item(), embedding.square().sum().sqrt().item()
ones = paddle.ones([2**25, 1])
column, total = ones.sum(axis=0).item(), ones.sum().item()
print(f"paddle {paddle.__version__}: in float64 {right:.2f}, norm() {norm:.2f}, square().sum().sqrt() {by_sum:.2f};")
print(f"  2^25 ones in a column: sum(axis=0) {column:.0f}, sum() {total:.0f}")
as_stated = abs(norm - right) < 0.01 if paddle.__version__ == "2.6.2" else norm < 0.97 * right
sys.exit(not as_stated or abs(by_sum - right) > 0.01 or (column, total) != (2**24, 2**25))
PYTHON

for version in 2.6.2 3.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        "paddlepaddle==$version" numpy==2.3.5 setuptools==75.8.0
    "$folder/$version/bin/python" -W ignore "$folder/check.py"
done
