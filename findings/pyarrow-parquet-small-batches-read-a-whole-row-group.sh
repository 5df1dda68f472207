#!/usr/bin/env bash
# pyarrow 26.0.1: ParquetFile.iter_batches(64) reads a column's whole row group from the file before the first batch
#
# Versions: pyarrow 26.0.1.
#
# Guess: pages are what Parquet is read by, about 1 MB each; whoever asks for 64 rows at a time, without pre_buffer,
# holds a few pages.
#
# Behaviour: before the first 64 rows the column's chunk is read in one piece, compressed: of a row group of a million
# texts, which is pyarrow's default size and pandas', a gigabyte and more. With buffer_size (bytes) it comes in reads of
# about that size, and the rows are the same.
#
# Source: without buffer_size pyarrow/_parquet.pyx calls disable_buffered_stream(), and ReaderProperties::GetStream() in
# cpp/src/parquet/properties.cc then reads num_bytes at once, which is the chunk.
#
# Output seen:
#   chunk: 8 MB; largest read before the first 64 of 2,000 rows: 8 MB, with buffer_size=100,000 less than 1 MB; rows equal: True
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check pyarrow==26.0.1

cat > "$folder/check.py" <<'PYTHON'
import io
import random
import sys

import pyarrow
import pyarrow.parquet

path = sys.argv[1] + "/texts.parquet"
texts = [random.Random(i).randbytes(2_000).hex() for i in range(2_000)]
pyarrow.parquet.write_table(
    pyarrow.table({"text": texts}), path, compression="none", use_dictionary=False, write_batch_size=16
)
chunk = pyarrow.parquet.ParquetFile(path).metadata.row_group(0).column(0).total_compressed_size


class Recorded(io.FileIO):
    sizes = []

    def read(self, size=-1):
        content = super().read(size)
        self.sizes.append(len(content))
        return content


def largest_read(**options):
    """The largest read until the first batch is there, and all texts."""
    Recorded.sizes.clear()
    file = pyarrow.parquet.ParquetFile(Recorded(path), pre_buffer=False, **options)
    batches = file.iter_batches(64)
    found = next(batches).to_pylist()
    largest = max(Recorded.sizes)
    for batch in batches:
        found += batch.to_pylist()
    return largest, [row["text"] for row in found]


(whole, rows), (part, same) = largest_read(), largest_read(buffer_size=100_000)
small = "less than 1 MB" if part < 1_000_000 else f"{part:,}"
print(
    f"chunk: {chunk / 1e6:.0f} MB; largest read before the first 64 of 2,000 rows: {whole / 1e6:.0f} MB, "
    f"with buffer_size=100,000 {small}; rows equal: {rows == same == texts}"
)
sys.exit(not (chunk == whole > 8_000_000 and part < 1_000_000 and rows == same == texts))
PYTHON
"$folder/venv/bin/python" "$folder/check.py" "$folder"
