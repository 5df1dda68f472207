#!/usr/bin/env bash
# oneDNN (in Paddle 2.6.2 and 3.3.1): a mask whose axis of one value has another stride makes a product a scalar loop
#
# Versions: paddlepaddle 2.6.2, which ships oneDNN 3.2.1, and 3.3.1 with oneDNN 3.6.2; numpy 2.3.5. On a CPU with
# AVX-512.
#
# Guess: the stride of an axis of one value means nothing, and least of all to the speed. So dropout's mask may be
# multiplied into a product [1, heads, rows, columns] as a post-operation, whether it is an array by itself or a part of
# the heads of a larger one: both have equal strides but for the first axis, which has one value.
#
# Behaviour: for the part, oneDNN takes "ref:any", a loop over single values, instead of the matrix kernel. There is no
# error; what was chosen shows in dnnl_primitive_desc_query(..., dnnl_query_impl_info_str). Without the first axis both
# are fast.
#
# Source: the descriptions made below, queried. oneDNN's page on post-operations says which shapes a binary one
# broadcasts, and nothing of strides.
#
# Output seen:
#   paddle 2.6.2: by itself brg:avx512_core; part of twelve heads ref:any; part, no first axis brg:avx512_core
#   paddle 3.3.1: by itself brg_matmul:avx512_core; part of twelve heads ref:any; part, no first axis brg_matmul:avx512_core
set -euo pipefail

grep -qw avx512bw /proc/cpuinfo || { echo "this processor has no AVX-512: nothing was checked"; exit 77; }
export ONEDNN_MAX_CPU_ISA=AVX512_CORE  # the same kernels on processors with more

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import ctypes
import os
import sys

import numpy  # before paddle, as 2.6.2 wants it
import paddle

dnn = ctypes.CDLL(os.path.join(os.path.dirname(paddle.__file__), "libs", "libdnnl.so.3"))
CPU, FLOAT32, UINT8, NAME_OF_IMPLEMENTATION, MULTIPLY = 1, 3, 6, 8, 0x1FFF1
HEADS, SEQ, HEAD = 6, 128, 64


def made(create, *arguments):
    pointer = ctypes.c_void_p()
    assert getattr(dnn, create)(ctypes.byref(pointer), *arguments) == 0, create
    return pointer


def layout(array):
    numbers = ctypes.c_int64 * array.ndim
    strides = numbers(*(stride // array.itemsize for stride in array.strides))
    kind = {"float32": FLOAT32, "uint8": UINT8}[array.dtype.name]
    return made("dnnl_memory_desc_create_with_strides", array.ndim, numbers(*array.shape), kind, strides)


engine = made("dnnl_engine_create", CPU, ctypes.c_size_t(0))


def implementation(mask):
    lead = mask.shape[:-2]
    left, right = numpy.empty((*lead, SEQ, HEAD), numpy.float32), numpy.empty((*lead, HEAD, SEQ), numpy.float32)
    out = numpy.empty(mask.shape, numpy.float32)
    operations = made("dnnl_post_ops_create")
    assert dnn.dnnl_post_ops_append_binary(operations, MULTIPLY, layout(mask)) == 0
    attributes = made("dnnl_primitive_attr_create")
    assert dnn.dnnl_primitive_attr_set_post_ops(attributes, operations) == 0
    layouts = layout(left), layout(right), None, layout(out)
    description = made("dnnl_matmul_primitive_desc_create", engine, *layouts, attributes)
    name = ctypes.c_char_p()
    assert dnn.dnnl_primitive_desc_query(description, NAME_OF_IMPLEMENTATION, 0, ctypes.byref(name)) == 0
    return name.value.decode()


whole = numpy.ones((1, 2 * HEADS, SEQ, SEQ), numpy.uint8)
masks = {
    "by itself": whole[:, :HEADS].copy(),
    "part of twelve heads": whole[:, :HEADS],
    "part, no first axis": whole[0, :HEADS],
}
names = {what: implementation(mask) for what, mask in masks.items()}
print(f"paddle {paddle.__version__}: " + "; ".join(f"{what} {name}" for what, name in names.items()))
sys.exit([name.startswith("ref") for name in names.values()] != [False, True, False])
PYTHON

for version in 2.6.2 3.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        "paddlepaddle==$version" numpy==2.3.5 setuptools==75.8.0
    "$folder/$version/bin/python" -W ignore "$folder/check.py"
done
