#!/usr/bin/env bash
# fsspec 2026.9.0 with zstandard 0.25.0: a .zst that was cut short reads as a shorter file, without an error
#
# Versions: fsspec 2026.9.0, zstandard 0.25.0. Corpora as the Pile and OSCAR come as .jsonl.zst.
#
# Guess: reading to the end of half a file raises an error, as it does for .gz, .bz2 and .xz: EOFError.
#
# Behaviour: fsspec.open(path, compression="infer") gives the text as far as it goes, and then the end of the file. So
# a download that broke off is a smaller corpus, and a line of JSON that ends in the middle is the only trace, where
# the cut is not between two lines. zstandard's own stream_reader() does the same; its decompressobj() tells by `eof`.
# pyarrow's CompressedInputStream raises, and so does fsspec where backports.zstd is installed, which it prefers.
#
# Source: zstandard_file() in fsspec/compression.py: ZstdDecompressor().stream_reader(), whose read() returns what is
# there when its source has no more bytes, and does not look whether the frame was ended.
#
# Output seen:
#   .gz: EOFError; .bz2: EOFError; .xz: EOFError; .zst: 10,000 lines written, 0 < lines read < 10,000 and no error
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check fsspec==2026.9.0 zstandard==0.25.0

cat > "$folder/check.py" <<'PYTHON'
import bz2
import gzip
import lzma
import random
import sys

import fsspec
import zstandard

generator = random.Random(0)
LINES = [b'{"text": "%d"}\n' % generator.getrandbits(64) for _ in range(10_000)]
PACKERS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def lines_of_first_half(suffix):
    """How many lines fsspec reads of the first half of a packed file's bytes, or the name of the error."""
    path = f"{sys.argv[1]}/corpus.jsonl{suffix}"
    packed = PACKERS[suffix](b"".join(LINES))
    with open(path, "wb") as file:
        file.write(packed[: len(packed) // 2])
    try:
        with fsspec.open(path, "rb", compression="infer") as file:
            return len(file.read().splitlines())
    except Exception as error:
        return type(error).__name__


gz, bz, xz, zst = map(lines_of_first_half, PACKERS)
is_short = isinstance(zst, int) and 0 < zst < len(LINES)
found = f"{len(LINES):,} lines written, 0 < lines read < {len(LINES):,} and no error" if is_short else zst
print(f".gz: {gz}; .bz2: {bz}; .xz: {xz}; .zst: {found}")
sys.exit(not (gz == bz == xz == "EOFError" and is_short))
PYTHON
"$folder/venv/bin/python" "$folder/check.py" "$folder"
