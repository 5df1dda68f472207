#!/usr/bin/env bash
# oneDNN 3.6.2 (in Paddle 3.3.1): the scores of attention are wrong where a batch has 3 times as many rows as positions
#
# Versions: paddlepaddle 3.3.1, which ships oneDNN 3.6.2, and 2.6.2 with oneDNN 3.2.1 to compare; numpy 2.3.5. On a CPU
# with AVX-512.
#
# Guess: a matmul primitive that oneDNN makes for given strides computes by them, whatever the number of rows. Query and
# key are read in place from the one array [batch, positions, 3 width] of a joint projection, as heads: shape
# [batch, heads, positions, width of a head], strides (3 positions width, width of a head, 3 width, 1), in values.
#
# Behaviour: 3.6.2 computes other scores, with status 0 everywhere, where batch = 3 positions, and right ones for one
# row more or less. 3.2.1 is right in all cases. A training run meets it with 24 rows of 128 tokens cut into pieces of
# 32.
#
# Source: oneDNN 3.6's is_batch_layout_trivial() (src/cpu/x64/matmul/brgemm_matmul_utils.cpp) calls the two batch
# dimensions evenly spaced, and then takes them for one, if the largest stride of the two is the product of the
# dimensions times the smallest. Here 3 positions width / (width of a head) = 3 positions heads, and the product is
# batch heads, so batch = 3 positions passes for evenly spaced by accident. Pull request 5556 of uxlfoundation/oneDNN
# changes it.
#
# Output seen (of 6 positions; the number of scores of a batch that differ from numpy's):
#   paddle 2.6.2: 17 rows 0, 18 rows 0, 19 rows 0
#   paddle 3.3.1: 17 rows 0, 18 rows 1224 of 1296, 19 rows 0
set -euo pipefail

grep -qw avx512bw /proc/cpuinfo || { echo "this processor has no AVX-512: nothing was checked"; exit 77; }
export ONEDNN_MAX_CPU_ISA=AVX512_CORE  # the same kernels on processors with more

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import ctypes
import os
import sys

import numpy as np
import paddle

dnn = ctypes.CDLL(os.path.join(os.path.dirname(paddle.__file__), "libs", "libdnnl.so.3"))
HEADS, POSITIONS, HEAD = 2, 6, 64  # of a width of 128
FLOAT32, CPU, IN_ORDER = 3, 1, 1


def made(create, *arguments):
    pointer = ctypes.c_void_p()
    assert getattr(dnn, create)(ctypes.byref(pointer), *arguments) == 0, create
    return pointer


engine = made("dnnl_engine_create", CPU, ctypes.c_size_t(0))
stream = made("dnnl_stream_create", engine, IN_ORDER)


class Argument(ctypes.Structure):
    _fields_ = [("role", ctypes.c_int), ("memory", ctypes.c_void_p)]


def layout(array):
    numbers = ctypes.c_int64 * array.ndim
    strides = numbers(*(stride // array.itemsize for stride in array.strides))
    return made("dnnl_memory_desc_create_with_strides", array.ndim, numbers(*array.shape), FLOAT32, strides)


def matmul(left, right, out):
    arrays = {1: left, 33: right, 17: out}  # DNNL_ARG_SRC, _WEIGHTS, _DST
    layouts = [layout(array) for array in arrays.values()]
    left, right, out = layouts
    description = made("dnnl_matmul_primitive_desc_create", engine, left, right, None, out, None)
    primitive = made("dnnl_primitive_create", description)
    memories = [
        made("dnnl_memory_create", described, engine, ctypes.c_void_p(array.ctypes.data))
        for described, array in zip(layouts, arrays.values())
    ]
    arguments = (Argument * 3)(*(Argument(role, memory) for role, memory in zip(arrays, memories)))
    assert dnn.dnnl_primitive_execute(primitive, stream, 3, arguments) == 0
    assert dnn.dnnl_stream_wait(stream) == 0


def wrong_scores(batch):
    generator = np.random.default_rng(0)
    projected = generator.standard_normal((batch, POSITIONS, 3 * HEADS * HEAD), dtype=np.float32)
    query, key, _ = (
        part.reshape(batch, POSITIONS, HEADS, HEAD).swapaxes(1, 2) for part in np.split(projected, 3, axis=2)
    )
    scores = np.zeros((batch, HEADS, POSITIONS, POSITIONS), np.float32)
    matmul(query, key.swapaxes(2, 3), scores)
    return int((np.abs(scores - query @ key.swapaxes(2, 3)) > 1e-3).sum()), scores.size


found = {batch: wrong_scores(batch) for batch in (17, 18, 19)}
shown = [f"{batch} rows {wrong}" + (f" of {size}" if wrong else "") for batch, (wrong, size) in found.items()]
print(f"paddle {paddle.__version__}: {', '.join(shown)}")
wrong = [number for number, _ in found.values()]
is_as_seen = not any(wrong) if paddle.__version__ == "2.6.2" else wrong[1] > 1000 and not wrong[0] and not wrong[2]
sys.exit(not is_as_seen)
PYTHON

for version in 2.6.2 3.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        "paddlepaddle==$version" numpy==2.3.5 setuptools==75.8.0
    "$folder/$version/bin/python" -W ignore "$folder/check.py"
done
