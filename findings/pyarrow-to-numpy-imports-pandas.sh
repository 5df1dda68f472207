#!/usr/bin/env bash
# pyarrow 26.0.1: to_numpy() and np.asarray() of an Arrow array import pandas, where that is installed
#
# Versions: pyarrow 26.0.1, numpy 2.3.5, pandas 3.1.1.
#
# Guess: a view of a buffer as an array of numpy needs pyarrow and numpy, and nothing else.
#
# Behaviour: the first to_numpy(), also of integers without a copy and with zero_copy_only, imports pandas: 0.2 s and
# 29 MB that stay. So do np.asarray(), and pyarrow.array() of a list. np.from_dlpack() gives the same view, and imports nothing (it does not take
# booleans, which Arrow stores as bits).
#
# Source: Array.to_numpy() in pyarrow/array.pxi calls ConvertArrayToPandas(), and that begins with
# internal::InitPandasStaticData() (arrow/python/arrow_to_pandas.cc, helpers.cc), which imports pandas. array() asks
# whether its argument is one of pandas' types.
#
# Output seen:
#   pandas imported after import: False; np.from_dlpack: False, np.asarray: True, to_numpy: True, array of a list: True
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check pyarrow==26.0.1 numpy==2.3.5 pandas==3.1.1

cat > "$folder/check.py" <<'PYTHON'
import subprocess
import sys

BEGIN = """
import sys, numpy as np, pyarrow
content = pyarrow.py_buffer(np.array([4, 5, 6], np.uint16))
ids = pyarrow.Array.from_buffers(pyarrow.uint16(), 3, [None, content])
"""
WAYS = {
    "after import": "assert len(ids) == 3; ",
    "np.from_dlpack": "view = np.from_dlpack(ids); assert view.tolist() == [4, 5, 6]; ",
    "np.asarray": "assert np.asarray(ids).tolist() == [4, 5, 6]; ",
    "to_numpy": "view = ids.to_numpy(zero_copy_only=True); assert view.tolist() == [4, 5, 6]; ",
    "array of a list": "assert pyarrow.array([4, 5, 6], pyarrow.uint16()) == ids; ",
}
found = {}
for way, code in WAYS.items():
    program = BEGIN + code + "print('pandas' in sys.modules)"
    found[way] = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
first, *others = [f"{way}: {imported}" for way, imported in found.items()]
print(f"pandas imported {first}; {', '.join(others)}")
sys.exit([*found.values()] != ["False", "False", "True", "True", "True"])
PYTHON
"$folder/venv/bin/python" "$folder/check.py"
