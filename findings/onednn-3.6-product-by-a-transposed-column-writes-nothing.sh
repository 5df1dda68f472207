#!/usr/bin/env bash
# oneDNN 3.6.2 (in Paddle 3.3.1): a product by a column, transposed in place, reports success and writes nothing
#
# Versions: paddlepaddle 3.3.1, which ships oneDNN 3.6.2, and 2.6.2 with oneDNN 3.2.1 to compare; numpy 2.3.5. On a CPU
# with AVX-512.
#
# Guess: a stride of an axis of one value means nothing, as in numpy, whose column [128, 1] transposed has strides of 1
# and 1 (in values). So [8, 1] times [1, 128] is right with either, 1 and 1 or 128 and 1. It is what the gradient
# of a linear layer with one output, as of a regression, comes to: grad_out times weight^T.
#
# Behaviour: with 1 and 1, 3.6.2 returns status 0 everywhere and leaves the whole result as it was. A product with 128
# and 1 that is made behind it in the same process is taken for the same, and writes nothing either; made first, it is
# right, and so is then the one with 1 and 1. Two columns are right. 3.2.1 is right in all cases.
#
# Source: seen by running it; why the first product writes nothing is not known. The second one follows it because the
# cache of primitives takes layouts for equal whose strides differ only along an axis of one value
# (blocking_desc_is_equal() in src/common/type_helpers.hpp).
#
# Output seen (values of 1,024 that were left as they were):
#   paddle 2.6.2: strides 1 and 1 first: 0, then 128 and 1: 0; 128 and 1 first: 0, then 1 and 1: 0; two columns: 0
#   paddle 3.3.1: strides 1 and 1 first: 1024, then 128 and 1: 1024; 128 and 1 first: 0, then 1 and 1: 0; two columns: 0
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


def unwritten(strides, rows=8, columns=128, between=1):
    """How many values of a result that begins as NaN are NaN still; right ones are asserted."""
    generator = np.random.default_rng(0)
    left = generator.standard_normal((rows, between), dtype=np.float32)
    memory = generator.standard_normal(between * columns, dtype=np.float32)
    right = np.lib.stride_tricks.as_strided(memory, (between, columns), [4 * stride for stride in strides])
    out = np.full((rows, columns), np.nan, np.float32)
    matmul(left, right, out)
    is_left = np.isnan(out)
    assert np.abs(out - left @ right)[~is_left].max(initial=0) < 1e-4
    return int(is_left.sum())


order = sys.argv[1].split(",")
print(*(unwritten({"one": (1, 1), "rows": (128, 1)}[name]) for name in order), unwritten((1, 2), between=2))
PYTHON

failed=0
for version in 2.6.2 3.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        "paddlepaddle==$version" numpy==2.3.5 setuptools==75.8.0
    # Each order in a process of its own, as primitives are kept.
    one_first=$("$folder/$version/bin/python" -W ignore "$folder/check.py" one,rows)
    rows_first=$("$folder/$version/bin/python" -W ignore "$folder/check.py" rows,one)
    read -r a b two <<< "$one_first"
    read -r c d _ <<< "$rows_first"
    echo "paddle $version: strides 1 and 1 first: $a, then 128 and 1: $b; 128 and 1 first: $c, then 1 and 1: $d; two columns: $two"
    expected="0 0 0"
    [ "$version" = 3.3.1 ] && expected="1024 1024 0"
    [ "$one_first" = "$expected" ] && [ "$rows_first" = "0 0 0" ] || failed=1
done
exit "$failed"
