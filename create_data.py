"""Turn text into rows of tokens for masked language modelling, in one pass.

    python create_data.py --dataset_name demo --tokenizer_name train --output_dir demo_data
    python create_data.py --data_files corpus/*.txt --output_dir data
    python create_data.py --output_dir wiki  # all of Wikipedia

The output is what `datasets.load_from_disk` reads: splits train and validation, columns
input_ids and special_tokens_mask. Beside them are the tokenizer and data_card.json.
"""

from __future__ import annotations

import ast
import bz2
import contextlib
import csv
import functools
import gc
import glob
import json
import lzma
import math
import os
import random
import re
import stat
import sys
import tempfile
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, dropwhile, groupby, islice, pairwise
from pathlib import Path
from pydoc_data.topics import topics
from urllib.parse import unquote, urlsplit

import fsspec
import gigatoken
import numpy as np
import psutil
import pyarrow.parquet
import zstandard
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from tokenizers.implementations import ByteLevelBPETokenizer
from tqdm import tqdm

import utils
from utils import UserError, boolean, explaining, log, number

WIKIPEDIA, DUMP = "wikimedia/wikipedia", "20231101"
VALIDATION_SHARE = 0.01
# RoBERTa's, by which save_tokenizer() knows the others: add one more in main(), by tokenizer.add_special_tokens().
SPECIAL = BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
BUFFER = 2_000_000  # bytes of a split that are encoded and written at a time
MOST_PIECES = 100_000  # that a buffer holds: each takes some 100 bytes beside its text
AHEAD = 4  # buffers that are filled, and as many that are encoded, before they are needed
CACHE = 200_000_000  # bytes that gigatoken's cache, which it never empties, may take
CHECKED = 500  # bytes of each buffer that `tokenizers` encodes, too: at 1.8 MB/s a core, gigatoken at 60 and more
TRAINING_SAMPLE = 256_000_000  # bytes that `--tokenizer_name train` learns from
UNSPACED = 8  # times that a byte counts among these where words are not parted by spaces: see weight_of()
MOST_KNOWN = 100_000  # documents of which Copies keeps the hashes: some 10 MB
WORTH_A_LINE = 0.01  # share of copies from which on it is printed
GUESSED_FROM = 10_000  # lines of a text file in which an empty one is looked for
BLOCK = 250_000  # bytes of a file that are read at a time
UNPACKED = 16_000  # bytes of a compressed file that are unpacked at a time
SILENCE = 60  # seconds without a byte from a server until it is given up

# Cuts a long text into pieces of 250,000 bytes or more that have the tokens of the whole: encoded in one piece, a text
# without white space took gigatoken 50 times its size. RoBERTa's pre-tokenizer looks forward only, and always begins a
# new word at white space behind a character that is none. So a cut is before ASCII white space, behind
# a visible ASCII character or the last byte of a longer one (0x80 to 0xbf). Left out of the latter are
# the bytes that white characters end with:
#   0x80 to 0x8a  U+2000 to U+200A; 0x80 also U+1680 and U+3000, 0x85 also U+0085
#   0x8e          U+180E, white before Unicode 6.3
#   0x9f, 0xa0    U+205F, U+00A0
#   0xa8, 0xa9    U+2028, U+2029
#   0xaf          U+202F
PIECES = re.compile(rb"(?s).{250000}.*?[!-~\x8b-\x8d\x8f-\x9e\xa1-\xa7\xaa-\xae\xb0-\xbf](?=\s)|.+")
QUOTED = re.compile(rb'"[^"]*(?:""[^"]*)*"')
BEGINS_WITH_MARK = re.compile(rb'(?:^|\t)"')  # a field of a .tsv
BLANK = re.compile(rb"(?:\s|\xc2\xa0|\xe3\x80\x80)*+")  # with the no-break and the ideographic space

# What tokenizers are taught from cuts longer words, as each step of training takes time with the square
# of their length. Words are what the pre-tokenizer makes of letters, of digits, of other characters, and
# of white space; letters and digits together contain both.
LONGEST_WORD = 1_000  # characters
LONG_WORDS = re.compile(rf"[^\W_]{{{LONGEST_WORD}}}|(?:[^\w\s]|_){{{LONGEST_WORD}}}|\s{{{LONGEST_WORD}}}")
WITHIN_A_WORD = re.compile(r"[^\W_]+|(?:[^\w\s]|_)+|\s+")


def main(argv: list | None = None):
    args = parse_arguments(argv)
    os.environ["RAYON_NUM_THREADS"] = str(args.preprocessing_num_workers)  # gigatoken's
    check_name_of(args.output_dir)
    corpus, held_out = find_text(args)
    tell_what_is_read(corpus)
    with utils.atomic_directory(args.output_dir) as folder:
        check_output_dir(args.output_dir, args.overwrite_output_dir)
        if args.tokenizer_name == "train":
            tokenizer = train_tokenizer(training_sample(corpus, args.max_documents), args.vocab_size)
        else:
            tokenizer = load_tokenizer(args.tokenizer_name)
        check_tokenizer(args.tokenizer_name, tokenizer)
        add_ends(tokenizer)
        splits = write_rows(args, corpus, held_out, tokenizer, folder)
        digests = name_contents(splits, folder)
        save_tokenizer(tokenizer, f"{folder}/tokenizer", model_max_length=max(512, args.max_seq_length))
        inputs = {"train": corpus, **held_out}
        others = {str(file.relative_to(folder)) for file in Path(folder).glob("*/*")} - set(digests)
        digests |= {name: utils.sha256_of(f"{folder}/{name}") for name in others}
        card = {
            "source": [source.path for source in corpus],
            "arguments": vars(args),
            "inputs": {split: [source.described() for source in sources] for split, sources in inputs.items()},
            "splits": splits,
            "files": {name: {"sha256": digests[name]} for name in sorted(digests)},
        }
        Path(folder, "data_card.json").write_text(json.dumps(card, indent=2))
    log_inputs([source for sources in inputs.values() for source in sources])
    log(f"written: {args.output_dir}")


# -------- from documents to rows
def write_rows(args, corpus: list, held_out: dict[str, list], tokenizer: Tokenizer, folder: str) -> dict:
    """Writes all splits; prints and returns what it counted in each."""
    gc.freeze()  # the collector need not walk what the imports made: 0.1 s
    sys.setswitchinterval(5e-4)  # seconds, not 5e-3: the thread that encodes waits less for the others
    share = share_held_out(args, held_out)
    drawn = [] if share is None else ["validation"]
    # "validation" first, then in the command's order: the first one's loss decides which checkpoint is the best.
    names = sorted(dict.fromkeys([*drawn, *held_out]), key=lambda name: name != "validation")
    writers = create_writers(args, ["train", *names], tokenizer, folder)

    # One more thread reads documents and fills buffers, another encodes them, this one writes.
    known, copies = HeldOutTexts(), Copies()
    corpus_documents = islice(known.others_of(read_documents(corpus)), args.max_documents)
    corpus_splits = assign_splits(copies.counted_in(corpus_documents), share, args.seed)
    with tqdm(desc="encoding", unit="B", unit_scale=True, disable=None) as progress:

        def write(documents):
            for split, size, ids, ends in ahead(encode(ahead(fill_buffers(documents, args.line_by_line)), tokenizer)):
                writers[split].add(ids, ends)
                progress.update(size)

        # First what is held out: a file that is too short for a row is an error before the corpus is read.
        write(read_held_out(held_out, known))
        for split, sources in held_out.items():
            if not writers[split].counts["rows"]:
                writers[split].close()
                raise_empty(args, split, writers, sources, is_drawn=False)
        write(corpus_splits)

    log_how_read([*corpus, *chain(*held_out.values())])
    if known.found:
        log(f"{number_of(known.found, 'document')} that stand in --validation_files, too: left out of train")
    if copies.share >= WORTH_A_LINE:
        told = f"{copies.share:.0%} of the documents are copies of others, and count twice: is some text given twice?"
        log(told if share in (None, 1) else f"{told} Copies of drawn documents are trained on")
    for split, writer in writers.items():
        writer.close()
        log_rows(split, writer, tokenizer)
        may_be_empty = split == "train" and share == 1
        if not writer.counts["rows"] and not may_be_empty:
            raise_empty(args, split, writers, corpus, is_drawn=share is not None)
    if share is not None and share < 0.5 and writers["validation"].counts["tokens"] > writers["train"].counts["tokens"]:
        may_be_parted = any(source.separated_by for source in corpus)
        remedy = "set --document_separator" if may_be_parted else "look at what the documents are"
        log(f"warning: validation is larger than train: {remedy}")
    return {split: writer.counts for split, writer in writers.items()}


def share_held_out(args, held_out: dict) -> float | None:
    """The share of the documents that is drawn for `validation`; None where files are held out instead."""
    if args.validation_split_percentage is not None:
        return args.validation_split_percentage / 100
    return None if held_out else VALIDATION_SHARE


def read_held_out(held_out: dict[str, list[Source]], known: HeldOutTexts) -> Iterator[tuple[str, bytes]]:
    """Yields (split, document) of the files that are held out."""
    for split, sources in held_out.items():
        for document in read_documents(sources):
            known.add(document)
            yield split, document


def assign_splits(documents: Iterator[bytes], share: float | None, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yields (split, document) of a corpus.

    A share is drawn for validation; the last document is taken where none was drawn.
    """
    if share is None:
        yield from (("train", document) for document in documents)
        return
    draw, any_held_out = random.Random(seed), False
    for document, following in pairwise(chain(documents, [None])):
        is_last_chance = following is None and not any_held_out
        if draw.random() < share or is_last_chance:
            any_held_out = True
            yield "validation", document
        else:
            yield "train", document


class HeldOutTexts:
    """Knows held-out documents by their hashes, and counts those that stand in the text to train on."""

    def __init__(self):
        self.hashes, self.found = set(), 0

    def add(self, document: bytes):
        self.hashes.add(hash(document))

    def others_of(self, documents: Iterator[bytes]) -> Iterator[bytes]:
        """The documents that were not added."""
        for document in documents:
            if self.hashes and hash(document) in self.hashes:
                self.found += 1
            else:
                yield document


class Copies:
    """Estimates the share of documents that are copies of others before them.

    Memory does not grow with the text: of the first documents all are looked at, and later those alone whose hash can
    be divided by `step`, which is doubled whenever too many are known.
    """

    def __init__(self):
        self.known = set()  # hashes
        self.step, self.looked_at, self.found = 1, 0, 0

    @property
    def share(self) -> float:
        return self.found / max(1, self.looked_at)

    def counted_in(self, documents: Iterator[bytes]) -> Iterator[bytes]:
        """The documents, unchanged."""
        for document in documents:
            # Of the beginning and the length: all of the text would take 0.1 s for 120 MB. With 32 bits alone, of 86
            # million documents 1 % would be taken for copies.
            beginning = document[:1000]
            key = zlib.crc32(beginning, len(document) % 2**32) | zlib.adler32(beginning) << 32
            if key % self.step == 0:
                self.looked_at += 1
                self.found += key in self.known
                self.known.add(key)
                if len(self.known) > MOST_KNOWN:
                    self.step *= 2
                    self.looked_at /= 2  # as if it had been so from the start
                    self.found /= 2
                    self.known = {key for key in self.known if key % self.step == 0}
            yield document


def fill_buffers(documents: Iterator, line_by_line: bool) -> Iterator[tuple[str, list]]:
    """Yields (split, [(piece of text, whether a document or line ends with it)])."""
    buffers, size = defaultdict(list), Counter()
    for split, document in documents:
        for piece in pieces(document, line_by_line):
            buffers[split].append(piece)
            size[split] += len(piece[0])
            if size[split] >= BUFFER or len(buffers[split]) == MOST_PIECES:
                yield split, buffers.pop(split)
                size[split] = 0
    yield from buffers.items()


def pieces(document: bytes, line_by_line: bool) -> Iterator[tuple[bytes, bool]]:
    """Yields (piece, whether it is the last) of a document, or of each line that is not blank."""
    texts = [document]
    if line_by_line:
        texts = (line for line in document.split(b"\n") if line.decode().strip())
    for text in texts:
        for piece in PIECES.finditer(text):
            yield piece[0], piece.end() == len(text)


def encode(buffers: Iterator, tokenizer: Tokenizer) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """Yields (split, bytes, token ids, where in these documents or lines end)."""
    process, memory_allowed = psutil.Process(), 0
    for split, buffer in buffers:
        # The encoder is made anew where its cache has grown too large; also at first.
        if process.memory_info().rss > memory_allowed:
            with explaining("--tokenizer_name is not like RoBERTa's: choose another"):
                encoder = gigatoken.Tokenizer.from_json(tokenizer.to_str())
            compare(encoder, tokenizer, text_of_added_tokens(tokenizer))
            memory_allowed = process.memory_info().rss + CACHE
        texts, is_end = zip(*buffer)
        layout = encoder.encode_batch(list(texts)).layout
        ids, bounds = np.asarray(layout.content.data), np.asarray(layout.offsets.data)
        compare(encoder, tokenizer, b"\0".join(texts)[:CHECKED].decode(errors="ignore"))
        yield split, sum(map(len, texts)), ids, bounds[1:][np.array(is_end)]


def compare(encoder: gigatoken.Tokenizer, tokenizer: Tokenizer, sample: str):
    """Raises UserError where gigatoken does not encode a sample as `tokenizers` does, which is much slower."""
    expected = tokenizer.encode(sample, add_special_tokens=False).ids
    if encoder.encode(sample.encode()).tolist() != expected:
        raise UserError(f"gigatoken differs at {sample[:60]!r}: choose another tokenizer")


def text_of_added_tokens(tokenizer: Tokenizer) -> str:
    """A text with each added token behind and before a space, a letter and a line end."""
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    return "".join(f"a {token} b{token}c\n{token}\n" for token in added)


def ahead(items: Iterator) -> Iterator:
    """Yields the items, none of which is None; meanwhile a thread makes the next ones."""
    thread = ThreadPoolExecutor(max_workers=1)
    making = deque(thread.submit(next, items, None) for _ in range(AHEAD))
    while (item := making.popleft().result()) is not None:
        making.append(thread.submit(next, items, None))
        yield item


def create_writers(args, splits: list[str], tokenizer: Tokenizer, folder: str) -> dict:
    """Has `datasets` write its layout around a placeholder row; opens the files of rows to write them anew."""
    import datasets  # here, so that --help need not wait a second for it

    dtype = "uint16" if tokenizer.get_vocab_size() <= 2**16 else "int32"
    length = -1 if args.line_by_line else args.max_seq_length  # -1: rows of any length
    features = datasets.Features(
        input_ids=datasets.List(datasets.Value(dtype), length),
        special_tokens_mask=datasets.List(datasets.Value("bool"), length),
    )
    row = {name: [[0] * args.max_seq_length] for name in features}
    placeholder = datasets.Dataset.from_dict(row, features=features)
    datasets.disable_progress_bars()
    datasets.DatasetDict(dict.fromkeys(splits, placeholder)).save_to_disk(folder)
    return {
        split: SplitWriter(
            path=f"{folder}/{split}/data-00000-of-00001.arrow",
            schema=features.arrow_schema,
            tokenizer=tokenizer,
            max_seq_length=args.max_seq_length,
            packed=not args.line_by_line,
        )
        for split in splits
    }


def name_contents(splits: Iterable[str], folder: str) -> dict[str, str]:
    """Sets each split's `_fingerprint`, by which `datasets` keeps results of map(); returns its rows' SHA-256 by file.

    That of the placeholder is the same in all data sets: results of joined ones would be taken for one another's.
    """
    digests = {}
    for split in splits:
        rows = f"{split}/data-00000-of-00001.arrow"
        digests[rows] = utils.sha256_of(f"{folder}/{rows}")
        utils.update_json(f"{folder}/{split}/state.json", _fingerprint=digests[rows][:16])
    return digests


class SplitWriter:
    """Makes rows of a split's tokens, and writes them to an Arrow stream.

    Packed, two documents become rows of 5 like this:

        documents     a b | c d e f
        one stream    a b </s> c d e f </s>
        cut           a b </s> | c d e | f </s>               every 3 tokens; `f </s>` waits for more
        rows          <s> a b </s> </s> | <s> c d e </s>

    Line by line, each line becomes a row of its own:

        lines         a b | c d e f
        cut           a b | c d e                             `f` is dropped
        rows          <s> a b </s> | <s> c d e </s>
    """

    def __init__(self, path: str, schema: pyarrow.Schema, tokenizer: Tokenizer, max_seq_length: int, packed: bool):
        self.schema, self.packed = schema, packed
        self.stream = pyarrow.ipc.new_stream(path, schema)
        self.bos, self.eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
        self.is_special = np.isin(np.arange(tokenizer.get_vocab_size()), special_ids_of(tokenizer))
        self.room = max_seq_length - 2  # <s> and </s> take two places of a row
        dtype = schema.field("input_ids").type.value_type.to_pandas_dtype()
        self.rest = np.empty(0, dtype)  # tokens that wait until a row is full, or a line has ended
        self.texts = "documents" if packed else "lines"  # what add() gets
        self.counts = dict.fromkeys((self.texts, "tokens", "rows", "dropped_tokens"), 0)
        self.special_in_text = 0  # tokens
        self.first_row = []  # ids

    def add(self, ids: np.ndarray, ends: np.ndarray):
        """Takes token ids (integers [tokens]), and where in them documents or lines end (int [number])."""
        self.counts[self.texts] += len(ends)
        self.counts["tokens"] += len(ids)
        self.special_in_text += np.count_nonzero(self.is_special[ids])
        texts = np.concatenate([self.rest, ids.astype(self.rest.dtype)])
        text_ends = len(self.rest) + ends
        if self.packed:
            tokens = np.insert(texts, text_ends, self.eos)  # a </s> after each document
            row_ends = np.arange(self.room, len(tokens) + 1, self.room)
        else:
            tokens, row_ends = texts, text_ends
        pieces, self.rest = cut_into_rows(tokens, row_ends, self.room)
        self.counts["dropped_tokens"] += len(tokens) - len(self.rest) - len(pieces.flatten())
        rows = add_special_tokens(pieces, self.bos, self.eos)
        self.write(rows)
        self.counts["rows"] += len(rows)

    def write(self, rows: pyarrow.ListArray):
        is_special = self.is_special[rows.values.to_numpy()]
        columns = [rows, pyarrow.ListArray.from_arrays(rows.offsets, is_special)]
        self.stream.write_table(pyarrow.table(columns, names=self.schema.names).cast(self.schema))
        if not self.first_row and len(rows):
            self.first_row = rows[0].as_py()

    def close(self):
        """Finishes the file and the counts."""
        self.stream.close()
        self.counts["dropped_tokens"] += len(self.rest)


def cut_into_rows(tokens: np.ndarray, ends: np.ndarray, room: int) -> tuple[pyarrow.ListArray, np.ndarray]:
    """Cuts the tokens at `ends`; of each piece only the first `room` tokens stay.

    Returns the pieces, and what follows the last end.
    """
    ended, rest = np.split(tokens, [ends.max(initial=0)])
    pieces = pyarrow.ListArray.from_arrays(np.append(0, ends).astype(np.int32), ended)
    return pyarrow.compute.list_slice(pieces, start=0, stop=room), rest


def add_special_tokens(pieces: pyarrow.ListArray, bos: int, eos: int) -> pyarrow.ListArray:
    """The rows: <s>, a piece, </s>."""
    lengths = pieces.value_lengths().to_numpy()
    ends = np.cumsum(lengths)
    starts = ends - lengths
    places = np.column_stack([starts, ends]).ravel()  # start and end of the first piece, of the second, ...
    tokens = np.insert(pieces.flatten().to_numpy(), places, np.tile([bos, eos], len(pieces)))
    offsets = np.append(0, np.cumsum(lengths + 2)).astype(np.int32)
    return pyarrow.ListArray.from_arrays(offsets, tokens)


def raise_empty(args, split: str, writers: dict, sources: list[Source], is_drawn: bool):
    """Raises UserError for a split that has no rows, with what may help; `sources` are those of the split."""
    is_limited = args.max_documents is not None and (split == "train" or is_drawn)
    more = "raise --max_documents" if is_limited else "add text"
    counts, is_text = writers[split].counts, any(source.separated_by for source in sources)
    is_a_part = is_drawn and args.validation_split_percentage != 100
    if split == "train" and is_drawn and not counts["tokens"] and writers["validation"].counts["tokens"]:
        remedy = f"lower --validation_split_percentage, or {more}"
        if args.max_documents == 1:
            remedy = more
        elif sum(source.documents for source in sources) == 1:  # at least one is always held out
            remedy = f"the text is one document: {'set --document_separator, or ' if is_text else ''}add text"
        raise UserError(f"train: nothing, as all documents are held out for validation: {remedy}")
    remedies = []
    if counts["tokens"]:
        if is_a_part and is_text:
            remedies.append("set --document_separator")
        remedies.append("lower --max_seq_length")
    if is_a_part and split == "validation":
        remedies.append("raise --validation_split_percentage")
    remedies = [*remedies, f"or {more}"] if remedies else [more]
    raise UserError(f"{split}: {counted(counts)}: {', '.join(remedies)}")


def tell_what_is_read(corpus: list[Source]):
    """Says at the start what would be late to learn at the end: the data set, or what is taken for a document of a text
    file, where nothing else tells."""
    for source in corpus:
        if not source.is_file:
            log(f"reading --dataset_name {source.path} (--data_files reads files instead)")
    guessed = (source for source in corpus if source.reader is read_txt and source.separator is None)
    source = next((replace(source) for source in guessed if os.path.isfile(source.path)), None)  # no pipe, and no URL
    document = next(read_documents([source]), None) if source else None
    if document is not None and source.separated_by:
        lines = number_of(document.count(b"\n") + 1, "line")
        log(f"{source.path}: --document_separator {source.separated_by}; the first document has {lines}")


def log_how_read(sources: list[Source]):
    separators = Counter(source.separated_by for source in sources if source.separated_by)
    for separator, files in separators.items():
        log(f"{number_of(files, 'text file')} read with --document_separator {separator}")
    empty = sum(source.empty for source in sources)
    if empty:
        log(f"{number_of(empty, 'record')} without text (null or blank) left out")
    files = sum(source.was_read and source.is_wikiextractors for source in sources)
    if files:
        log(f"{number_of(files, 'file')} read as WikiExtractor's: its &lt; &gt; &quot; &amp; are < > \" & again")


def log_rows(split: str, writer: SplitWriter, tokenizer: Tokenizer):
    log(f"{split}: {counted(writer.counts)}")
    if writer.special_in_text:
        log(f"{split}: {writer.special_in_text:,} special tokens, as <s> or </s>, stand in the text itself")
    if writer.first_row:
        start = tokenizer.decode(writer.first_row[:100], skip_special_tokens=False)
        log(f"{split}, first row: {start[:200]!r}")


def number_of(count: int, what: str) -> str:
    """As "1 file" or "2 files"."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def counted(counts: dict) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())


def log_inputs(sources: list[Source]):
    """The closing lines: how much was read, to be compared with what there is."""
    files = [source for source in sources if source.is_file]
    read = [source for source in files if source.was_read]
    if files:
        given = f" (of {len(files)} given)" if len(read) < len(files) else ""
        log(f"read: {sum(source.bytes_read for source in read):,} bytes of {number_of(len(read), 'file')}{given}")
    for source in sources:
        if not source.is_file:
            log(f"read: {source.documents:,} documents of {source.path}")


# -------- tokenizers
def train_tokenizer(sample: Iterator[str], vocab_size: int) -> Tokenizer:
    """Learns a byte-level BPE with RoBERTa's special tokens: 0 to 3, and <mask> as the last."""
    tokenizer = ByteLevelBPETokenizer()  # with all 256 bytes: any text is encoded without loss
    tokenizer.train_from_iterator(
        sample,
        vocab_size=vocab_size - 1,  # <mask> comes last
        min_frequency=0,
        show_progress=sys.stderr.isatty(),
        special_tokens=[BOS, PAD, EOS, UNK],
    )
    tokenizer = as_robertas(tokenizer, ids={})
    learned = tokenizer.get_vocab_size()
    if learned < vocab_size:
        log(f"the text has no more to learn: {learned:,} tokens instead of --vocab_size {vocab_size:,}")
    return tokenizer


def load_tokenizer(name: str) -> Tokenizer:
    """Loads tokenizer.json, or vocab.json and merges.txt, of a directory, or a hub id's."""
    remedy = "give `train`, a hub id, or a directory with tokenizer.json"
    with explaining(f"cannot load the tokenizer {name}: {remedy}"):
        if not os.path.isdir(name):
            tokenizer = load_tokenizer_of_hub(name, remedy)
        elif os.path.exists(f"{name}/tokenizer.json"):
            tokenizer = Tokenizer.from_file(f"{name}/tokenizer.json")
        else:
            tokenizer = load_vocab_and_merges(name)
    # A tokenizer.json of transformers' save_pretrained() may ask for them.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def load_tokenizer_of_hub(name: str, remedy: str) -> Tokenizer:
    """From the cache of earlier runs, or else from the hub."""
    import huggingface_hub

    if os.path.isfile(name):
        raise UserError(f"--tokenizer_name {name} is a file: give its directory")
    try:
        cached = huggingface_hub.try_to_load_from_cache(name, "tokenizer.json")
    except ValueError as error:  # not a hub id
        raise UserError(f"cannot load the tokenizer {name}: there is no such directory: {remedy}") from error
    if isinstance(cached, str):
        return Tokenizer.from_file(cached)
    check_hub(f"cannot load the tokenizer {name}", remedy)
    return Tokenizer.from_pretrained(name)


def load_vocab_and_merges(folder: str) -> Tokenizer:
    """A tokenizer as RoBERTa's was published: vocab.json and merges.txt."""
    if not os.path.exists(f"{folder}/merges.txt"):
        other = utils.other_tokenizer(folder)
        if other is not None:
            name, kind = other
            raise UserError(f"{folder} holds {name} ({kind}), no byte-level BPE: give --tokenizer_name train")
        if os.path.isdir(f"{folder}/tokenizer"):
            raise UserError(f"--tokenizer_name {folder} holds no tokenizer: did you mean {folder}/tokenizer?")
    names = "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"
    paths = [Path(folder, name) for name in names]
    # Ids of special tokens that vocab.json lacks; and settings, two files of them.
    added, *settings = (json.loads(path.read_bytes()) if path.exists() else {} for path in paths)
    for name, tokens in zip(names, (added, *(one.get("additional_special_tokens") or [] for one in settings))):
        if any(token not in SPECIAL for token in tokens):
            raise UserError(f"{folder}/{name} adds tokens: give a directory that has its tokenizer.json, too")
    if settings[1].get("add_prefix_space"):
        raise UserError(f"{paths[2]} has, unlike RoBERTa's, add_prefix_space: choose another")
    tokenizer = as_robertas(ByteLevelBPETokenizer.from_file(f"{folder}/vocab.json", f"{folder}/merges.txt"), added)
    if any(tokenizer.token_to_id(token) != i for token, i in added.items()):
        raise UserError(f"{folder}/added_tokens.json has other ids than follow vocab.json's: give one that has not")
    return tokenizer


def as_robertas(tokenizer: ByteLevelBPETokenizer, ids: dict[str, int]) -> Tokenizer:
    """Gives a byte-level BPE RoBERTa's special tokens; those that its vocabulary lacks in the order of their ids."""
    tokens = sorted(SPECIAL, key=lambda token: ids.get(token, math.inf))
    mask = AddedToken(MASK, lstrip=True)  # it takes the space before it
    tokenizer.add_special_tokens([mask if token == MASK else token for token in tokens])
    return Tokenizer.from_str(tokenizer.to_str())


def add_ends(tokenizer: Tokenizer):
    """Has the tokenizer write <s> and </s> around a text, as its rows have them.

    A tokenizer.json may have other ends or none, as what ByteLevelBPETokenizer.save() writes, and readers of an export
    would take it at its word.
    """
    tokenizer.post_processor = processors.RobertaProcessing(
        sep=(EOS, tokenizer.token_to_id(EOS)),
        cls_token=(BOS, tokenizer.token_to_id(BOS)),
        trim_offsets=True,
        add_prefix_space=False,
    )


def check_tokenizer(name: str, tokenizer: Tokenizer):
    """Refuses settings that gigatoken ignores, that let tokens reach across the cuts of PIECES, or that readers of
    the tokenizer's files take in different ways."""
    splitter, ids = tokenizer.pre_tokenizer, range(tokenizer.get_vocab_size())
    if not (isinstance(tokenizer.model, models.BPE) and isinstance(splitter, pre_tokenizers.ByteLevel)):
        kind = f"{type(tokenizer.model).__name__}, {type(splitter).__name__}"
        raise UserError(f"{name} is no byte-level BPE like RoBERTa's ({kind}): choose another, or give `train`")
    added = tokenizer.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special}
    missing = [token for token in SPECIAL if token not in special]
    differences = {
        "a ByteLevel without use_regex": not splitter.use_regex,
        "add_prefix_space": splitter.add_prefix_space,
        "a normalizer": tokenizer.normalizer is not None,
        "an added token with single_word": any(token.single_word for token in added),
        "an added token with rstrip": any(token.rstrip for token in added),
        "an added token with white space in it": any(re.search(r"\s", token.content) for token in added),
        "gaps between its ids": None in map(tokenizer.id_to_token, ids),
        f"no {' '.join(missing)} as special tokens": bool(missing),
    }
    found = [what for what, is_there in differences.items() if is_there]
    if found:
        raise UserError(f"{name} has, unlike RoBERTa's, {', '.join(found)}: choose another")
    regular = [token.content for token in added if not token.special]
    if regular:
        # PaddleNLP knows vocab.json and special tokens alone: it would split these.
        raise UserError(
            f"{name}: {', '.join(map(repr, regular))} were added by add_tokens(), and PaddleNLP would not find them: "
            "add them by add_special_tokens() (they are never predicted then), or give `train`"
        )


def special_ids_of(tokenizer: Tokenizer) -> list[int]:
    """The ids of what tokenizer.json says is special: <s>, <pad>, </s>, <unk>, <mask>, and what was added."""
    return [i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special]


def training_sample(corpus: list[Source], max_documents: int | None) -> Iterator[str]:
    """About TRAINING_SAMPLE bytes: the first documents of each file or data set; long words cut."""
    for source in corpus:
        if source.is_file and os.path.exists(source.path) and not os.path.isfile(source.path):
            raise UserError(
                f"--tokenizer_name train reads {source.path} twice, which a pipe does not allow: make it a file"
            )
    if max_documents is None:  # smaller files first: what they leave of their share is for the larger ones
        corpus = sorted(corpus, key=stored_size)
    cut = 0
    for document in islice(first_documents(corpus), max_documents):
        start = 0
        if has_long_word(document):
            for word in LONG_WORDS.finditer(document):
                yield document[start : word.end()]
                start = word.end()
                cut += 1
        yield document[start:]
    if cut:
        log(f"{cut:,} words are cut after {LONGEST_WORD:,} characters for learning the tokenizer, not in the rows")


def has_long_word(document: str) -> bool:
    """Whether some word may have LONGEST_WORD characters; much quicker than to look for it.

    Windows of half that length stand side by side: a long word fills at least one of them, wherever it begins.
    """
    half = LONGEST_WORD // 2
    starts = range(0, len(document) - half + 1, half)
    return any(WITHIN_A_WORD.fullmatch(document, start, start + half) for start in starts)


def stored_size(source: Source) -> float:
    """The bytes of a local file that is not compressed; infinite for others, of whose text nothing is known."""
    suffix = os.path.splitext(source.path)[1].lower()
    is_known = source.is_file and os.path.isfile(source.path) and suffix not in STREAMS and source.reader not in TABLES
    return os.path.getsize(source.path) if is_known else math.inf


def first_documents(corpus: list[Source]) -> Iterator[str]:
    """The first documents of each source, TRAINING_SAMPLE bytes in all: an equal share of each, and what those before
    it left of theirs."""
    used = 0
    for number_of_source, source in enumerate(corpus, start=1):
        share = TRAINING_SAMPLE * number_of_source / len(corpus)
        documents = read_documents([replace(source)])  # a copy: what it counts is not in the rows
        while used < share and (document := next(documents, None)) is not None:
            yield document.decode()
            used += len(document) * weight_of(document)


def weight_of(document: bytes) -> int:
    """How many times a byte of a document counts in the sample.

    Learning takes some 110 bytes of memory for each byte of distinct words (8 MB of Chinese: 0.9 GB). In most languages
    words come again; in Chinese and Japanese all between two punctuation marks is one, and nearly each is distinct.
    """
    return UNSPACED if document.count(b" ") * 30 < len(document) else 1


def save_tokenizer(tokenizer: Tokenizer, folder: str, model_max_length: int):
    """Writes what `tokenizers` and transformers (tokenizer.json) and PaddleNLP (all other files) load."""
    os.mkdir(folder)
    tokenizer.save(f"{folder}/tokenizer.json", pretty=False)
    tokenizer.model.save(folder)  # merges.txt, and vocab.json without the added tokens
    vocab = {tokenizer.id_to_token(i): i for i in range(tokenizer.get_vocab_size())}
    Path(folder, "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), "utf-8")
    special = {t.content: for_config(t) for t in tokenizer.get_added_tokens_decoder().values() if t.special}
    config = {
        "bos_token": special[BOS],
        "cls_token": special[BOS],
        "eos_token": special[EOS],
        "sep_token": special[EOS],
        "unk_token": special[UNK],
        "pad_token": special[PAD],
        "mask_token": special[MASK],
        "model_max_length": model_max_length,
        "tokenizer_class": "RobertaBPETokenizer",  # PaddleNLP's name of it
        "add_prefix_space": False,
    }
    further = [described for token, described in special.items() if token not in SPECIAL]
    if further:
        config["additional_special_tokens"] = further
    Path(folder, "tokenizer_config.json").write_text(json.dumps(config))


def for_config(token: AddedToken) -> str | dict:
    """A special token in tokenizer_config.json. As a mere string it would lose the spaces around it in PaddleNLP."""
    if token.content in SPECIAL and token.lstrip == (token.content == MASK):
        return token.content  # of these PaddleNLP knows
    return {
        "__type": "AddedToken",
        "content": token.content,
        "lstrip": token.lstrip,
        "rstrip": token.rstrip,
        "single_word": token.single_word,
        "normalized": token.normalized,
    }


# -------- readers
@dataclass
class Source:
    """A file, or a data set: where it is, how it is read, and what was read of it the last time."""

    path: str
    reader: Callable[[Source], Iterable]  # gives its records: texts, or columns with their names
    text_column: str
    separator: str | None = None  # what the documents of a text file end at; None: to be guessed
    is_file: bool = True

    was_read: bool = False
    empty: int = 0  # records of files with columns whose text is null or white space
    bytes_read: int = 0  # as they are stored, so of a compressed file the compressed ones
    documents: int = 0
    separated_by: str | None = None  # of a text file
    is_wikiextractors: bool = False

    def described(self) -> dict:
        size = {"bytes": self.bytes_read} if self.is_file else {}
        return {"path": self.path, **size, "documents": self.documents}


def read_documents(sources: list[Source]) -> Iterator[bytes]:
    """The documents of files, or of a data set, in UTF-8. An error says what was read, and how far."""
    for source in sources:
        source.documents = source.empty = position = 0
        source.was_read = True
        try:
            for record in source.reader(source):
                document = text_of(record, source.text_column)
                position += 1
                if document:
                    source.documents += 1
                    yield document
                else:
                    source.empty += isinstance(record, dict)
        except (UserError, MemoryError, NameError):  # the last is a mistake in a reader, and not in the file
            raise
        except Exception as error:  # unpacking and fetching raise errors of many kinds
            remedy = "it must be whole, well-formed, in UTF-8, with text in --text_column"
            remedy += "; or download it first" if is_url(source.path) else "; or move it elsewhere"
            if not source.is_file:
                remedy = "check --dataset_config_name, --split and --text_column, or use --data_files"
            elif source.is_wikiextractors and source.reader is read_txt:
                remedy = "it begins as WikiExtractor's output does: give --document_separator if it is something else"
            elif is_url(source.path) and not source.documents:
                remedy = "check the address and the network, or download it first"
            # A hub's message lists the configurations there are.
            reason = " ".join(str(error).split())[:500] or type(error).__name__
            raise UserError(f"cannot read {source.path} after record {position} ({reason}): {remedy}") from error


def text_of(record: bytes | str | dict | None, column: str) -> bytes:
    """The text of a record, or of its column, without line ends around it; b"" for white space alone.

    Its lines end with a line feed, whatever they end with in the record.
    """
    text = record
    if isinstance(record, dict):
        check_column(column, record)
        text = record[column]
    if text is None:
        return b""
    if isinstance(text, str):
        text = text.encode(errors="replace")  # lone surrogates, which JSON can hold and UTF-8 cannot: ?
    if not isinstance(text, bytes):
        raise ValueError(f"no text in column {column!r}, but {type(text).__name__}")
    # The condition is quicker than to look for two characters.
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    text = text.strip(b"\n")
    return b"" if text.decode().isspace() else text  # raises if not UTF-8


def check_column(column: str, columns: Iterable[str]):
    if column not in columns:
        raise ValueError(f"no column {column!r}, but {', '.join(map(repr, columns)):.300}")


def read_txt(source: Source) -> Iterator[bytes]:
    """Documents end at empty lines, at each line or with the file."""
    lines = lines_of(source)
    source.separated_by = source.separator
    if source.separator is None:
        first_lines = take(lines, most=GUESSED_FROM, most_bytes=10 * BUFFER)
        if first_lines[0].startswith((b'<doc id="', b'{"id": "')):  # as of `cat extracted/AA/* > wiki.txt`
            return documents_of_wikiextractor(source, chain(first_lines, lines))
        source.separated_by = guess_separator(first_lines)
        lines = chain(first_lines, lines)
    if source.separated_by == "line":
        return lines
    if source.separated_by == "empty_line":
        return (b"\n".join(group) for is_end, group in groupby(lines, is_blank) if not is_end)
    return iter([b"\n".join(lines)])


def take(lines: Iterator[bytes], most: int, most_bytes: int) -> list[bytes]:
    """The next lines, until they are so many or so large."""
    taken, size = [], 0
    for line in lines:
        taken.append(line)
        size += len(line)
        if len(taken) == most or size >= most_bytes:
            break
    return taken


def guess_separator(lines: list[bytes]) -> str:
    """empty_line where one stands between two others, else line."""
    groups = sum(not is_empty for is_empty, _ in groupby(lines, is_blank))
    return "empty_line" if groups > 1 else "line"


def is_blank(line: bytes) -> bool:
    return BLANK.fullmatch(line) is not None


def read_json_lines(source: Source) -> Iterable:
    """One JSON value a line; or one array, which is read whole."""
    lines = filter(bytes.strip, lines_of(source))
    first = next(lines, b"[]")
    if first.lstrip().startswith(b"["):
        return parse_json(b"\n".join([first, *lines]), source.text_column)
    return (parse_json(line, source.text_column) for line in chain([first], lines))


def read_json(source: Source) -> Iterable:
    """One JSON value a line; or one array or object, which is read whole."""
    lines = filter(bytes.strip, lines_of(source))
    first, second = next(lines, b"[]"), next(lines, None)
    if second is not None and is_record(first):
        return (parse_json(line, source.text_column) for line in chain([first, second], lines))
    is_array = first.lstrip().startswith(b"[")  # of records; members of an object may be lists of them
    value = parse_json(b"\n".join([first, second or b"", *lines]), source.text_column if is_array else None)
    if isinstance(value, str):  # the only record, and not as many as it has characters
        return [value]
    return records_of(value, source.text_column) if isinstance(value, dict) else value


def is_record(line: bytes) -> bool:
    """Whether the line is a whole JSON value and no array, not the beginning of something longer."""
    try:
        return not isinstance(json.loads(line), list)
    except json.JSONDecodeError:
        return False


def records_of(value: dict, column: str) -> Iterable:
    """The records of one object: {"text": [...]}, {"text": {"0": ...}} (pandas), {"data": [...]}, or itself.

    The one list in it must hold objects, or be all that it holds: that of {"title": "A", "tags": ["b"]} is no text.
    """
    texts = value.get(column)
    if isinstance(texts, list):
        return texts
    # pandas has all columns alike; {"id": 1, "text": {"lang": "en", ...}} is one record.
    if isinstance(texts, dict):
        are_columns = all(isinstance(item, dict) and item.keys() == texts.keys() for item in value.values())
        return texts.values() if are_columns else [value]
    lists = [item for item in value.values() if isinstance(item, list)]
    if column in value or len(lists) != 1:
        return [value]
    is_all = len(value) == 1
    holds_objects = bool(lists[0]) and all(isinstance(item, dict) for item in lists[0])
    return lists[0] if is_all or holds_objects else [value]


def parse_json(text: bytes, column: str | None = None):
    """A JSON value. ValueError: two members of an object are called alike, and one of them would be lost.

    Where a column is given, of a record with others that are not read, that is the only name that counts.
    """
    # Looking at each object takes a third longer. Names may also be spelled with escapes, as \u0065 for e.
    is_looked_at = column is None or text.count(f'"{column}"'.encode()) > 1 or b"\\u" in text
    hook = functools.partial(as_record, column) if is_looked_at else None
    # Decoded here, as json.loads() takes some damage to UTF-8 in silence; with the marks of files that were joined.
    return json.loads(text.decode("utf-8-sig"), object_pairs_hook=hook)


def as_record(column: str | None, pairs: list[tuple]) -> dict:
    refuse_repeated([name for name, _ in pairs if column in (None, name)])
    return dict(pairs)


def refuse_repeated(columns: list[str]):
    """Raises ValueError where columns have one name: whoever reads them by name would lose one."""
    repeated = [name for name, count in Counter(columns).items() if count > 1 and name]
    if repeated:
        raise ValueError(f"several columns are called {repeated[0]!r}: rename all but one")


def read_csv(source: Source) -> Iterator[dict]:
    return records_of_table(lines_of(source), delimiter=",")


def read_tsv(source: Source) -> Iterator[dict]:
    """Some are quoted as .csv is (pandas, Excel); in others (GLUE's) a quotation mark is one more character.

    Until a field begins with one, both are read alike; then the lines that follow tell.
    """
    lines = dropwhile(is_blank, lines_of(source))
    header, marked = next(lines, b""), []

    def unmarked_lines() -> Iterator[bytes]:
        for line in chain([header], lines):
            if BEGINS_WITH_MARK.search(line):
                marked.append(line)
                return
            yield line

    yield from records_of_table(unmarked_lines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    if marked:
        first_lines = [header] if marked[0] is header else [header, *marked]
        first_lines += take(lines, most=GUESSED_FROM, most_bytes=10 * BUFFER)
        quoting = csv.QUOTE_MINIMAL if is_quoted(first_lines) else csv.QUOTE_NONE
        yield from records_of_table(chain(first_lines, lines), delimiter="\t", quoting=quoting)


def is_quoted(lines: list[bytes]) -> bool:
    """Whether fields of a .tsv that begin with a quotation mark are quoted.

    They are not where one has no mark at its end, and yet each line has as many fields as the first one: a quoted field
    that goes on in the next line would leave its line short. (One column alone cannot tell, and is read as quoted.)
    """
    rows = [line.split(b"\t") for line in lines if line.strip()]
    numbers_of_fields = {len(row) for row in rows}
    if len(numbers_of_fields) != 1 or numbers_of_fields == {1}:
        return True
    return all(QUOTED.fullmatch(field) for row in rows for field in row if field.startswith(b'"'))


def records_of_table(lines: Iterator[bytes], **dialect) -> Iterator[dict]:
    """The records of lines of fields, whose names are in the first one."""
    csv.field_size_limit(2**31 - 1)
    texts = (line.decode() + "\n" for line in lines)
    reader = csv.DictReader(dropwhile(str.isspace, texts), strict=True, **dialect)
    try:
        refuse_repeated(reader.fieldnames or [])
        for record in reader:
            if None in record or None in record.values():
                raise ValueError(f"the next one has not {len(reader.fieldnames)} fields")
            yield record
    except csv.Error as error:
        raise ValueError(f"{error}, where fields that begin with a quotation mark are quoted") from error


def read_parquet(source: Source) -> Iterator[dict]:
    with open_table(source) as content:
        # Without buffer_size, a column's whole row group would be read at once, compressed: of some files 1 GB.
        file = pyarrow.parquet.ParquetFile(
            content, pre_buffer=False, buffer_size=BLOCK, page_checksum_verification=True
        )
        names = file.schema_arrow.names
        refuse_repeated(names)
        check_column(source.text_column, names)
        for batch in file.iter_batches(64, columns=[source.text_column], use_threads=False):
            yield from batch.to_pylist()


def read_arrow(source: Source) -> Iterator[dict]:
    """A stream, as `datasets` saves and caches them, or a file of Arrow."""
    with open_table(source) as content:
        is_arrow_file = content.read(6) == b"ARROW1"
        content.seek(-min(8, source.bytes_read), os.SEEK_END)
        if not is_arrow_file and content.read(8) != b"\xff\xff\xff\xff\0\0\0\0":
            raise EOFError("it lacks the mark of an Arrow stream's end: rows may be missing")
        content.seek(0)
        reader = pyarrow.ipc.open_file(content) if is_arrow_file else pyarrow.ipc.open_stream(content)
        names = reader.schema.names
        refuse_repeated(names)
        check_column(source.text_column, names)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_arrow_file else reader
        for batch in batches:
            batch = batch.select([source.text_column])
            for start in range(0, len(batch), 64):
                yield from batch.slice(start, 64).to_pylist()


def read_wikiextractor(source: Source) -> Iterator[bytes]:
    return documents_of_wikiextractor(source, lines_of(source))


# As WikiExtractor writes it, which escapes what stands in an article (its first versions did not).
BEGIN_OF_DOC = re.compile(rb'<doc id="[^"]*" (?:revid="[^"]*" )?url="[^"]*" title="')


def documents_of_wikiextractor(source: Source, lines: Iterator[bytes]) -> Iterator[bytes]:
    """WikiExtractor's output: JSON lines, or text between <doc ...> and </doc>; both escaped as HTML is."""
    source.is_wikiextractors = True
    first = next(lines)
    if first.startswith(b"{"):
        for line in chain([first], filter(bytes.strip, lines)):
            yield unescaped(text_of(parse_json(line, source.text_column), source.text_column))
        return
    document = None  # lines
    for line in chain([first], lines):
        if document is None and line.startswith(b"<doc "):
            document = []
        elif document is not None and line.rstrip() == b"</doc>":
            yield unescaped(b"\n".join(document))
            document = None
        elif document is not None and BEGIN_OF_DOC.search(line):
            raise EOFError("a <doc ...> begins where the one before has no </doc>")
        elif document is not None:
            document.append(line)
        elif line.strip():
            raise ValueError(f"{line[:50]!r} stands outside <doc ...> and </doc>")
    if document is not None:
        raise EOFError("the last <doc ...> has no </doc>")


def unescaped(text: bytes) -> bytes:
    """Undoes Python's html.escape, and no more: what is "&amp;nbsp;" here was "&nbsp;" in the article."""
    for escaped, character in ((b"&lt;", b"<"), (b"&gt;", b">"), (b"&quot;", b'"'), (b"&#x27;", b"'")):
        text = text.replace(escaped, character)
    return text.replace(b"&amp;", b"&")  # last: it may stand before the others' names


def read_data_set(source: Source, config: str | None, split: str) -> Iterable:
    """Streams a data set of the hub: memory and disk do not grow with it."""
    import datasets

    if not os.path.isdir(source.path):
        check_hub(f"cannot fetch --dataset_name {source.path}", "give --data_files, or --dataset_name demo")
    pyarrow.set_cpu_count(1)  # more threads of its would only keep the encoder waiting
    data = datasets.load_dataset(source.path, config, split=split, streaming=True)
    # Only the text: pictures and sounds beside it would be decoded, by libraries that are not needed for it.
    return data.select_columns([source.text_column]) if source.text_column in (data.features or {}) else data


def check_hub(problem: str, remedy: str):
    """Refuses at once where the hub cannot be reached: its own client tries for half a minute."""
    import huggingface_hub
    import requests

    hub = huggingface_hub.constants.ENDPOINT
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return
    try:
        requests.head(hub, timeout=10)
    except requests.RequestException as error:
        reason = "no network" if isinstance(error, requests.ConnectionError) else str(error)
        raise UserError(f"{problem}: {hub} cannot be reached ({reason}): {remedy}") from None


def read_demo(source: Source) -> Iterator[str]:
    """English prose in every Python: the language reference and docstrings."""
    yield from topics.values()
    library = Path(os.__file__).parent
    documented = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    for module in sorted(sys.stdlib_module_names):
        for path in sorted([*library.glob(f"{module}.py"), *library.glob(f"{module}/**/*.py")]):
            if {"test", "tests", "idlelib", "lib2to3"}.isdisjoint(path.relative_to(library).parts):
                nodes = ast.walk(ast.parse(path.read_bytes()))
                nodes = (node for node in nodes if isinstance(node, documented))
                yield "\n".join(ast.get_docstring(node) or "" for node in nodes)


READERS = {  # of the types of files
    ".txt": read_txt,
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
TABLES = (read_parquet, read_arrow)  # compress themselves
STREAMS = {  # what unpacks one stream of a compressed file, which may hold several
    ".gz": functools.partial(zlib.decompressobj, wbits=31),  # 31: gzip's header and checksum
    ".bz2": bz2.BZ2Decompressor,
    ".xz": functools.partial(lzma.LZMADecompressor, lzma.FORMAT_XZ),
    # `zstd --long=31` makes windows of 2 GB, of which memory is taken as far as the text reaches.
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj(),
}
TYPES = f"{', '.join(READERS)}, all but the last two also as {', '.join(STREAMS)}, and WikiExtractor's wiki_00"


def reader_of(path: str) -> Callable | None:
    """What reads a file of this name, or of this URL's path."""
    name = os.path.basename(path_of(path)).lower()
    if re.fullmatch(r"(sha\d*|md5|check)sums\.txt", name):  # beside the Pile's files
        return None
    stem, suffix = os.path.splitext(name)
    unpacked_name = stem if suffix in STREAMS else name
    if re.fullmatch(r"wiki_\d+", unpacked_name):
        return read_wikiextractor
    reader = READERS.get(os.path.splitext(unpacked_name)[1])
    return None if reader in TABLES and suffix in STREAMS else reader


# -------- files
def find_files(patterns: list[str], text_column: str, separator: str | None, may_leave_out: bool) -> list[Source]:
    """The files that paths, globs, URLs and directories stand for, in order, each once; says what is left out."""
    found, left_out = {}, {}
    unread = None  # the first pattern that names files, and none that can be read
    for pattern in patterns:
        matches = matches_of(pattern)
        if not matches:
            raise UserError(f"there is nothing at {pattern}: give paths, globs, directories or URLs of {TYPES}")
        files = sorted(path for match in matches for path in ([match] if is_url(match) else files_below(match)))
        if not files:
            raise UserError(f"nothing to read at {pattern}: give {TYPES}")
        if unread is None and not any(map(reader_of, files)):
            unread = pattern
        for path in files:
            (found if reader_of(path) else left_out)[place_of(path)] = path
    if unread is not None and not (found and may_leave_out):
        go_on = ", or --leave_out_other_files True, which reads the others" if found else ""
        raise UserError(f"nothing to read at {unread}: give {TYPES}{go_on}")
    # A hub's cache names each file twice: readable is the link, and not what it leads to.
    left_out = {place: path for place, path in left_out.items() if place not in found}
    tell_left_out(list(left_out.values()), list(found.values()), may_leave_out)
    refuse_packed_twins(found.values())
    return [Source(path, reader_of(path), text_column, separator) for path in found.values()]


def matches_of(pattern: str) -> list[str]:
    """What a path, glob or URL of the command line stands for."""
    is_known = is_url(pattern) or os.path.exists(pattern)
    return [pattern] if is_known else glob.glob(pattern, recursive=True)


def refuse_packed_twins(paths: Iterable[str]):
    """Raises UserError where a file is there packed and unpacked, as `zstd -d` leaves it: it would be read twice."""
    by_stem = {}
    for path in paths:
        stem, suffix = os.path.splitext(path if is_url(path) else os.path.abspath(path))
        other = by_stem.setdefault(stem if suffix.lower() in STREAMS else stem + suffix, path)
        if other is not path:
            raise UserError(f"{other} and {path} are one text twice, by their names: give one of them")


def files_below(path: str, seen: set | None = None) -> Iterator[str]:
    """A file, or all below a directory that are not hidden; links are followed, but into no directory twice."""
    if not os.path.isdir(path):
        if not is_made_by_datasets(path):
            yield path
        return
    seen = set() if seen is None else seen
    if os.path.realpath(path) in seen:
        return
    seen.add(os.path.realpath(path))
    names = os.listdir(path)
    if {"data_card.json", "dataset_dict.json"} <= set(names):
        raise UserError(f"{path} is a data set of create_data.py, and holds no text: give the text, without it")
    check_complete(path)
    for name in names:
        if not name.startswith("."):  # hidden, as Jupyter's checkpoints of files that stand beside them
            yield from files_below(os.path.join(path, name), seen)


def is_made_by_datasets(path: str) -> bool:
    """Whether a file describes the rows of a data set, or holds what `datasets` computed of them."""
    folder, name = os.path.split(path)
    if name == "dataset_infos.json":  # of a data set of the hub, in Parquet or JSON
        return True
    if name == "dataset_dict.json":
        return any(Path(folder).glob("*/state.json"))
    if name not in ("state.json", "dataset_info.json") and not re.fullmatch(r"cache-\w+\.arrow", name):
        return False
    # save_to_disk() writes both, also for a split without rows; the cache of load_dataset() has the second alone.
    described_by = {other for other in ("state.json", "dataset_info.json") if os.path.exists(f"{folder}/{other}")}
    if name in described_by:
        return len(described_by) == 2 or any(Path(folder).glob("*.arrow"))
    return bool(described_by)


def check_complete(folder: str):
    """Refuses a directory of save_to_disk() that lacks one of its files, or holds some of an earlier one."""
    if not (os.path.exists(f"{folder}/state.json") and any(Path(folder).glob("*.arrow"))):
        return
    with explaining(f"{folder}/state.json, which save_to_disk() writes beside rows, is damaged: save them anew"):
        state = json.loads(Path(folder, "state.json").read_bytes())
    if not isinstance(state, dict) or "_data_files" not in state:  # somebody else's
        return
    named = {file["filename"] for file in state["_data_files"]}
    there = {path.name for path in Path(folder).glob("*.arrow") if not path.name.startswith("cache-")}
    for name in sorted(named - there):
        raise UserError(f"{folder} lacks {name}, which its state.json names: save it anew")
    for name in sorted(there - named):
        raise UserError(f"{folder} holds {name}, which its state.json does not name: delete it, or save all anew")


def tell_left_out(left_out: list[str], read: list[str], may_leave_out: bool):
    """Counts and names the files that are not read; refuses where they are larger than those that are."""
    if not left_out:
        return
    size, size_read = size_of(left_out), size_of(read)
    names = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
    told = f"{number_of(len(left_out), 'file')} of {size:,} bytes left out, of a type that is not read: {names}"
    if size > size_read and not may_leave_out:
        raise UserError(f"{told}; those that are read have {size_read:,}: give others, or --leave_out_other_files True")
    log(told)


def size_of(paths: list[str]) -> int:
    """Bytes of the files that are there; nothing of URLs and dangling links."""
    return sum(os.path.getsize(path) for path in paths if os.path.exists(path))


def is_url(path: str) -> bool:
    """Whether it is a URL, and no local path that looks like one."""
    return re.match(r"[a-z][a-z0-9+.-]*://", path, re.IGNORECASE) is not None and not os.path.exists(path)


def place_of(path: str) -> str:
    """What two names of one file have in common."""
    return path if is_url(path) else os.path.realpath(path)


def path_of(path: str) -> str:
    """A path, or that in a URL, without what follows a question mark."""
    if not is_url(path):
        return path
    with explaining(f"{path} is no URL that can be read: give another"):
        return unquote(urlsplit(path).path)


def lines_of(source: Source) -> Iterator[bytes]:
    """The lines of a file, unpacked, without their ends; the last one is empty where the text ends with a line."""
    lines = split_lines(with_line_feeds(text_blocks(source)))
    yield next(lines).removeprefix(b"\xef\xbb\xbf")  # the byte-order mark
    yield from lines


def text_blocks(source: Source) -> Iterator[bytes]:
    """The content of a file in blocks, unpacked."""
    suffix = os.path.splitext(path_of(source.path))[1].lower()
    if suffix not in STREAMS:
        return stored_blocks(source)
    return unpack(stored_blocks(source), STREAMS[suffix])


def stored_blocks(source: Source) -> Iterator[bytes]:
    """The bytes of a file as they are stored; EOFError where they are fewer, or more, than its size."""
    source.bytes_read = 0
    with open_stored(source.path) as (file, size):
        while block := file.read(BLOCK):
            source.bytes_read += len(block)
            yield block
    if size is not None and source.bytes_read != size:
        raise EOFError(f"{source.bytes_read:,} bytes came of {size:,}")


@contextlib.contextmanager
def open_stored(path: str) -> Iterator[tuple]:
    """Opens a path or URL; yields the file, and its size in bytes, or None where it is not known."""
    if not is_url(path):  # with Python's own open(): fsspec takes `a::b` and `file:a` for something else
        with open(path, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            yield file, status.st_size if stat.S_ISREG(status.st_mode) else None
    elif path.lower().startswith(("http://", "https://")):
        import requests

        # The timeout is for connecting and between two arrivals, not for the whole file.
        as_stored = {"Accept-Encoding": "identity"}
        with requests.get(path, stream=True, timeout=SILENCE, headers=as_stored) as response:
            if not response.ok:
                raise ValueError(f"HTTP status {response.status_code} {response.reason}")
            size = response.headers.get("Content-Length")
            yield response.raw, int(size) if size else None
    else:
        with fsspec.open(path, "rb") as file:
            yield file, getattr(file, "size", None)


@contextlib.contextmanager
def open_table(source: Source) -> Iterator:
    """A file that can be read from any place; one from the network is copied to a temporary file first."""
    if is_url(source.path):
        with tempfile.TemporaryFile() as file:
            file.writelines(stored_blocks(source))
            file.seek(0)
            yield file
    else:
        with open(source.path, "rb") as file:
            source.bytes_read = os.fstat(file.fileno()).st_size
            yield file


def unpack(blocks: Iterator[bytes], new_stream: Callable) -> Iterator[bytes]:
    """Unpacks streams that stand one after another, with zeros behind them; EOFError where the last one does not end.

    Not by gzip's, bz2's, lzma's and zstandard's own files: at damage behind the first stream those of bz2 and
    lzma end as at the file's end, and that of zstandard does wherever a file is cut.
    """
    stream = None
    for block in blocks:
        # Little by little, as a few bytes may stand for many: 4 of zstd's for 128 KB.
        for start in range(0, len(block), UNPACKED):
            packed = block[start : start + UNPACKED]
            while packed:
                if stream is None or stream.eof:
                    packed = packed.lstrip(b"\0") if stream else packed
                    if not packed:
                        break
                    stream = new_stream()
                text = stream.decompress(packed)
                for begin in range(0, len(text), BLOCK):
                    yield text[begin : begin + BLOCK]
                packed = stream.unused_data if stream.eof else b""
    if stream is None or not stream.eof:
        raise EOFError("it ends within a compressed stream")


def with_line_feeds(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """CRLF and CR become line feeds."""
    held = b""  # a CR at the end of a block: is a line feed next?
    for block in blocks:
        block = held + block
        held = b"\r" if block.endswith(b"\r") else b""
        block = block[: len(block) - len(held)]
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        yield block
    if held:
        yield b"\n"


def split_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The lines in blocks of text. (Quicker than splitlines(), which compares each byte with two characters.)"""
    begun = []  # parts of a line that has not ended: joined once, however many they are
    for block in blocks:
        end, *lines = block.split(b"\n")
        begun.append(end)
        if lines:
            yield b"".join(begun)
            begun = [lines.pop()]
            yield from lines
    yield b"".join(begun)


# -------- arguments
def find_text(args) -> tuple[list[Source], dict[str, list[Source]]]:
    """What is trained on, and what is held out, by its split; no file is both."""
    find = functools.partial(
        find_files,
        text_column=args.text_column,
        separator=args.document_separator,
        may_leave_out=args.leave_out_other_files,
    )
    patterns = defaultdict(list)
    for pattern in args.validation_files or []:
        split, path = named_pattern(pattern)
        patterns[split].append(path)
    held_out = {split: find(paths) for split, paths in patterns.items()}
    sources = find(args.data_files) if args.data_files else [data_set_of(args)]
    places = {place_of(source.path) for source in chain(*held_out.values())}
    corpus = [source for source in sources if not source.is_file or place_of(source.path) not in places]
    if not corpus:
        raise UserError("--data_files and --validation_files are the same files: nothing is left to train on")
    tell_of_held_out_names([source.path for source in corpus if source.is_file and not is_url(source.path)])
    if len(corpus) < len(sources):
        log(f"{number_of(len(sources) - len(corpus), 'file')} of --data_files held out: left out of train")

    readers = {source.reader for source in chain(corpus, *held_out.values())}
    if args.document_separator and read_txt not in readers:
        raise UserError("--document_separator is for text files, and none is given: leave it out")
    if args.text_column != "text" and readers <= {read_txt, read_demo}:
        raise UserError("--text_column is for files with columns, and none is given: leave it out")
    return corpus, held_out


def tell_of_held_out_names(paths: list[str]):
    """Says which files of a corpus are called like its validation or test sets, and are trained on all the same."""
    if not paths:
        return
    common = os.path.commonpath(map(os.path.abspath, paths))
    held_out = re.compile(r"(?:^|[^a-z])(?:val|valid|validation|dev|test|eval)(?:[^a-z]|$)", re.IGNORECASE)
    found = [path for path in paths if held_out.search(os.path.relpath(path, common))]
    if 0 < len(found) < len(paths):
        log(
            f"{number_of(len(found), 'file')} called like held-out text, and trained on: {utils.shorten(found)}; "
            "--validation_files holds files out"
        )


def named_pattern(pattern: str) -> tuple[str, str]:
    """The split of one of --validation_files, NAME=PATH or PATH, and its path; `year=2020/a.txt` may be a path."""
    name, sign, path = pattern.partition("=")
    if not sign or matches_of(pattern):
        return "validation", pattern
    if re.fullmatch(r"[A-Za-z0-9_]+", name):
        return f"validation_{name}", path
    if matches_of(path):
        raise UserError(f"--validation_files {pattern}: a name is of letters from a to z, digits and _: take another")
    return "validation", pattern


def data_set_of(args) -> Source:
    """The data set of --dataset_name; Wikipedia's configuration by default."""
    name, config = args.dataset_name, args.dataset_config_name
    if name == "demo":
        return Source("demo", read_demo, args.text_column, is_file=False)
    if name == "wikipedia":  # of the original page; it can no longer be loaded
        name = WIKIPEDIA
        config = f"{DUMP}.{(config or 'en').rpartition('.')[2]}"
        print(f"warning: wikipedia is gone: reading {name} {config}", file=sys.stderr)
    if name == WIKIPEDIA:
        config = config or f"{DUMP}.en"
    reader = functools.partial(read_data_set, config=config, split=args.split)
    return Source(name, reader, args.text_column, is_file=False)


def check_name_of(output_dir: str):
    """Refuses a path that `datasets` would not find again: it takes :: and :// for something else."""
    try:
        found = fsspec.core.url_to_fs(output_dir)[1]
    except (ValueError, ImportError, TypeError):  # a protocol that it does not know, or that needs more than a path
        found = ""
    if os.path.realpath(found) != os.path.realpath(output_dir):
        raise UserError(f"--output_dir {output_dir}: load_from_disk() would look elsewhere: choose a plain name")


def check_output_dir(path: str, may_overwrite: bool):
    """Refuses where anything lies that create_data.py did not write, or may not replace."""
    there = [str(file) for file in Path(path).rglob("*") if file.is_symlink() or not file.is_dir()]
    if not there and not os.path.isfile(path):
        return
    if not os.path.exists(f"{path}/data_card.json"):
        raise UserError(f"{path} exists, and is no data set of create_data.py: choose another")
    if not may_overwrite:
        raise UserError(f"{path} exists: choose another, or --overwrite_output_dir True")
    with explaining(f"{path}/data_card.json does not list the data set's files: choose another --output_dir"):
        written = json.loads(Path(path, "data_card.json").read_bytes())["files"]
    own = {"data_card.json", "dataset_dict.json", *written}
    others = [file for file in there if os.path.relpath(file, path) not in own]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise UserError(f"{others[0]}{more} would be lost, which create_data.py did not write: move it elsewhere")


def refuse_unused(args, given: set[str]):
    """Refuses flags that would do nothing beside the others."""
    reads_files = args.data_files or args.validation_files
    is_hubs = not args.data_files and args.dataset_name != "demo"
    plain = [pattern for pattern in args.validation_files or [] if named_pattern(pattern)[0] == "validation"]
    is_drawn = not args.validation_files or args.validation_split_percentage is not None
    used = {
        "dataset_config_name": (is_hubs, "it is of a data set of the hub"),
        "split": (is_hubs, "it is of a data set of the hub"),
        "document_separator": (reads_files, "it is for text files"),
        "text_column": (reads_files or is_hubs, "the demo has no columns"),
        "leave_out_other_files": (reads_files, "it is for --data_files and --validation_files"),
        "validation_split_percentage": (not plain, "--validation_files are held out instead"),
        "seed": (is_drawn and args.validation_split_percentage not in (0, 100), "nothing is drawn"),
        "vocab_size": (args.tokenizer_name == "train", "it is for --tokenizer_name train"),
    }
    for flag, (is_used, reason) in used.items():
        if flag in given and not is_used:
            raise UserError(f"--{flag} does nothing here ({reason}): leave it out")


def parse_arguments(argv: list | None):
    parser = utils.ArgumentParser("Turn text into rows of tokens for masked language modelling.")
    group = parser.add_argument_group
    add = group("source of the text").add_mutually_exclusive_group().add_argument
    add(
        "--data_files",
        nargs="+",
        metavar="PATH",
        help="Text to read: files, globs, directories with all that is not hidden below them, and URLs "
        "(with --tokenizer_name train fetched twice, text in part). "
        f"Types: {TYPES}. Where <s>, </s>, <pad>, <unk> or <mask> stand in the text, they become these special "
        "tokens; it is said.",
    )
    add(
        "--dataset_name",
        default=WIKIPEDIA,
        metavar="NAME",
        help="Data set to read instead, streamed from the Hugging Face hub, or from a directory in its form; "
        "`demo` is 3 MB of English that every Python has, without a download.",
    )
    add = group("data").add_argument
    add("--output_dir", default="wiki", metavar="DIR", help="Directory to write; it appears when it is complete.")
    add(
        "--overwrite_output_dir",
        type=boolean,
        default=False,
        help="True: the data set in --output_dir is replaced when the new one is complete; refused where files of "
        "others lie in it.",
    )
    add(
        "--validation_files",
        nargs="+",
        metavar="[NAME=]PATH",
        help="Text that is held out, given as in --data_files, instead of a drawn share: split `validation`, or with a "
        "NAME `validation_NAME`, evaluated by itself. What equals a document of it is left out of train.",
    )
    add(
        "--leave_out_other_files",
        type=boolean,
        default=False,
        help="True: files of types that are not read, which are counted and named, may be larger than those that are, "
        "or all that a path or glob stands for.",
    )
    add(
        "--document_separator",
        choices=["empty_line", "line", "file"],
        help="What a text file's documents end at; without it, what WikiExtractor's do where it begins as "
        "they do (<doc or JSON), empty lines where it has them within 10,000 lines and 20 MB, else each line.",
    )
    add(
        "--dataset_config_name",
        metavar="NAME",
        help=f"Configuration of the data set; without it, its only one, and of Wikipedia {DUMP}.en. "
        f"German is {DUMP}.de, with --tokenizer_name train.",
    )
    add("--split", default="train", metavar="NAME", help="Split of the data set whose documents are read.")
    add("--text_column", default="text", metavar="NAME", help="Column that holds the text, of files with columns.")
    add(
        "--max_documents",
        type=number(int, 1, sys.maxsize),
        metavar="N",
        help="Documents to take, the first ones, to try a command on a part; without it, all.",
    )
    add(
        "--validation_split_percentage",
        type=number(float, 0, 100),
        metavar="X",
        help="Documents to draw for `validation`, in percent, at least one; without it, 1, and none with "
        "--validation_files. 100: nothing to train on, only to evaluate.",
    )
    add(
        "--seed",
        type=number(int, 0, 2**63),
        default=42,
        metavar="N",
        help="Draws the documents that are held out: the same seed and text give the same ones.",
    )
    add = group("tokens").add_argument
    add(
        "--tokenizer_name",
        "---tokenizer_name",  # so the original page has it once
        default="roberta-base",
        metavar="NAME",
        help="Byte-level BPE like RoBERTa's: a directory, a hub id, or `train`, which learns one from the first "
        f"documents of each file, {TRAINING_SAMPLE // 10**6} MB in all "
        f"({TRAINING_SAMPLE // UNSPACED // 10**6} MB of text without spaces, as Chinese): for another language than "
        "English, take that.",
    )
    add(
        "--vocab_size",
        type=number(int, 262, 1_000_000),
        default=50265,
        metavar="N",
        help="Tokens that `train` learns; more make fewer tokens of a text, and a larger model.",
    )
    add(
        "--max_seq_length",
        type=number(int, 4, 1_000_000),
        default=512,
        metavar="N",
        help="Tokens in a row, with <s> and </s>; the time and memory of attention grow with its square.",
    )
    add(
        "--line_by_line",
        type=boolean,
        default=False,
        help="True: each line is a row, of any length, and loses what is beyond --max_seq_length. False: documents are "
        "joined and cut into full rows, without padding.",
    )
    add(
        "--preprocessing_num_workers",
        type=number(int, 1, 256),
        default=os.cpu_count(),
        metavar="N",
        help="Threads that encode.",
    )
    args = parser.parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    refuse_unused(args, {name for name in vars(args) if any(word.split("=")[0] == f"--{name}" for word in words)})
    return args


if __name__ == "__main__":
    utils.command_line(main)
