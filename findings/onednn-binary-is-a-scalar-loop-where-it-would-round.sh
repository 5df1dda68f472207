#!/usr/bin/env bash
# oneDNN (in Paddle 2.6.2 and 3.3.1): a product of values that is written in bfloat16 runs in a reference loop
#
# Versions: paddlepaddle 2.6.2, which ships oneDNN 3.2.1, and 3.3.1 with oneDNN 3.6.2; numpy 2.3.5. On a CPU with
# AVX512.
#
# Guess: a gradient times dropout's mask, which the next matrix product reads in bfloat16, is best written in bfloat16
# at once: one pass over memory instead of two (multiply in float32, then a reorder that rounds). The binary primitive
# takes the types: source 0 float32, source 1 uint8 or float32, destination bfloat16, status 0.
#
# Behaviour: the implementation behind the description is "ref:any", a loop over single values. It is "jit:uni" only
# where destination and source 0 are of one type; the type of source 1 does not matter. So bfloat16 times float32 into
# bfloat16 is fast, and float32 times bfloat16 into bfloat16 is not.
#
# Source: jit_uni_binary_t::pd_t::init() (src/cpu/x64/jit_uni_binary.cpp) wants the memory descriptions of source 0 and
# destination, of which the type is a part, to be equal, unless the destination is of 8 bits. The page of the binary
# primitive says which types are taken, and nothing of how.
#
# Output seen (source 0, source 1, destination; the same for both versions):
#   f32 f32 f32: jit:uni
#   f32 u8 f32: jit:uni
#   f32 f32 bf16: ref:any
#   f32 u8 bf16: ref:any
#   f32 bf16 bf16: ref:any
#   bf16 f32 bf16: jit:uni
#   bf16 u8 bf16: jit:uni
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
CPU, MULTIPLY, ROWS, COLUMNS = 1, 0x1FFF1, 512, 256
ROW_MAJOR, NAME_OF_IMPLEMENTATION = 3, 8  # dnnl_ab, dnnl_query_impl_info_str
TYPES = {"f32": 3, "bf16": 2, "u8": 6}


def made(create, *arguments):
    pointer = ctypes.c_void_p()
    assert getattr(dnn, create)(ctypes.byref(pointer), *arguments) == 0, create
    return pointer


engine = made("dnnl_engine_create", CPU, ctypes.c_size_t(0))


def implementation(*types):
    shape = (ctypes.c_int64 * 2)(ROWS, COLUMNS)
    layouts = [made("dnnl_memory_desc_create_with_tag", 2, shape, TYPES[name], ROW_MAJOR) for name in types]
    description = made("dnnl_binary_primitive_desc_create", engine, MULTIPLY, *layouts, None)
    name = ctypes.c_char_p()
    assert dnn.dnnl_primitive_desc_query(description, NAME_OF_IMPLEMENTATION, 0, ctypes.byref(name)) == 0
    return name.value.decode()


expected = {
    ("f32", "f32", "f32"): "jit:uni",
    ("f32", "u8", "f32"): "jit:uni",
    ("f32", "f32", "bf16"): "ref:any",
    ("f32", "u8", "bf16"): "ref:any",
    ("f32", "bf16", "bf16"): "ref:any",
    ("bf16", "f32", "bf16"): "jit:uni",
    ("bf16", "u8", "bf16"): "jit:uni",
}
found = {types: implementation(*types) for types in expected}
print(f"paddle {paddle.__version__}")
for types, name in found.items():
    print(f"  {' '.join(types)}: {name}")
sys.exit(found != expected)
PYTHON

for version in 2.6.2 3.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        "paddlepaddle==$version" numpy==2.3.5 setuptools==75.8.0
    "$folder/$version/bin/python" -W ignore "$folder/check.py"
done
