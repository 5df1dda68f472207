"""Turn text into rows of tokens for masked language modelling: one streaming pass, memory bounded.

    python create_data.py --dataset_name demo --tokenizer_name train --vocab_size 8192 --output_dir demo_data
    python create_data.py --data_files corpus/*.txt --tokenizer_name roberta-base --output_dir data
    python create_data.py --output_dir wiki  # all of Wikipedia

The output is what `datasets.load_from_disk` reads (splits train and validation, columns input_ids and
special_tokens_mask), with the tokenizer in OUTPUT_DIR/tokenizer and a record of the run in data_card.json.
"""

import ast
import codecs
import csv
import functools
import gc
import glob
import hashlib
import io
import json
import os
import random
import re
import shlex
import string
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet
from tqdm import tqdm

import utils
from utils import UserError, boolean, explaining, number, require, say

WIKIPEDIA, DUMP = "wikimedia/wikipedia", "20231101"
SPLITS = ("train", "validation")
PACKED = (".gz", ".bz2", ".xz")
SPECIAL = BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
BUFFER = 2_000_000  # bytes of a split that are encoded and written at a time
AHEAD = 4  # buffers that are read, and as many that are encoded, before they are needed
PIECE = 250_000  # bytes: a longer text is encoded in pieces
# ASCII that is no space, or the last byte of a longer character that is none (U+0085 to U+3000 end in other bytes).
NO_SPACE = rb"[!-~\x8b-\x8d\x8f-\x9e\xa1-\xa7\xaa-\xae\xb0-\xbf]"
CACHE_MB = 250  # what gigatoken's cache, which it never empties, may take
RENEWED_AFTER = 5  # buffers that it lives at least, as memory may have grown by a long document
CHECKED_FIRST, CHECKED = 20_000, 500  # bytes of the first and of each other buffer that are encoded twice
TRAINING_SAMPLE = 256_000_000  # bytes that `--tokenizer_name train` learns from, about
SEARCHED = 2_000_000  # bytes of a text file in which an empty line is looked for
BLOCK = 250_000  # bytes of a text file that are read at a time
LINE = 2_000_000  # bytes: a longer line is read in parts
WHITE = rb"(?:\s|\xc2\xa0|\xe3\x80\x80)*"  # with the no-break and the ideographic space
SEPARATORS = {  # what documents of a text file end at; the last matches nowhere
    "empty_line": re.compile(rb"\n" + WHITE + rb"(?=\n)"),
    "line": re.compile(rb"\n"),
    "file": re.compile(rb"\n(?!)"),
}
LONG_DOCUMENT, LONG_ON_AVERAGE = 10_000_000, 50_000  # bytes: such documents earn a warning
HUB_REMEDY = "; check --dataset_config_name {}, --split {}, or use --data_files or --dataset_name demo"
REPLACE = "choose another --output_dir, or --overwrite_output_dir True to replace it"
open_text = functools.partial(fsspec.open, mode="rt", compression="infer", encoding="utf-8-sig")
# Lone surrogates, which JSON can hold and UTF-8 cannot, become U+FFFD.
codecs.register_error("to_fffd", lambda error: ("\ufffd".encode() * (error.end - error.start), error.end))


def main(argv: list | None = None) -> None:
    args, start = parse_arguments(argv), time.perf_counter()
    os.environ["RAYON_NUM_THREADS"] = str(args.preprocessing_num_workers)  # gigatoken's threads
    corpus = find_files(args.data_files) if args.data_files else [args.dataset_name]
    held_out = find_files(args.validation_files or [])
    with utils.atomic_directory(args.output_dir) as folder:
        if os.path.isdir(args.output_dir) and os.listdir(args.output_dir):
            is_data = os.path.exists(f"{args.output_dir}/dataset_dict.json")
            require(is_data, f"{args.output_dir} is not empty, and no data set: choose another --output_dir")
            require(args.overwrite_output_dir, f"{args.output_dir} holds a data set: {REPLACE}")
        tokenizer, longest = load_tokenizer(args, corpus)
        encoder = Encoder(tokenizer)
        length = args.max_seq_length or min(512, longest or 512)
        require(length <= (longest or length), f"--max_seq_length {length} is above the tokenizer's limit {longest}")
        written = write_rows(args, corpus, held_out, encoder, folder, length)
        filled = filled_length(args, written["splits"], length)
        if filled < length:
            say(f"not every split fills a row of {length} tokens: --max_seq_length {filled} instead")
            length = filled
            written = write_rows(args, corpus, held_out, encoder, folder, length)
        card = {
            "command": shlex.join(["python", "create_data.py", *(sys.argv[1:] if argv is None else argv)]),
            "source": corpus,
            **written,
            "tokenizer": save_tokenizer(tokenizer, args.tokenizer_name, f"{folder}/tokenizer", length),
            "arguments": {**vars(args), "max_seq_length": length},
            "versions": {name: version(name) for name in ("datasets", "gigatoken", "numpy", "pyarrow", "tokenizers")},
        }
        Path(folder, "data_card.json").write_text(json.dumps(card, indent=2), encoding="utf-8")
    print_summary(args, card, tokenizer, time.perf_counter() - start)


# ---------------------------------------------------------------- from documents to rows


def write_rows(args, corpus: list, held_out: list, encoder, folder: str, length: int) -> dict:
    """Writes the rows of both splits below `folder`; returns what the data card says of them."""
    writers = create_writers(folder, encoder.tokenizer, length, packed=not args.line_by_line)
    gc.freeze()  # the collector need not walk what the imports made: 0.1 s
    sys.setswitchinterval(5e-4)  # seconds: the encoding thread need not wait for the others
    sizes = {split: Counter() for split in SPLITS}  # documents by their number of bytes
    documents = assign_splits(args, corpus, held_out)
    # Two more threads: one reads documents and fills buffers, the other encodes them, while this one writes.
    buffers = ahead(fill_buffers(documents, args.line_by_line, encoder, sizes))
    with tqdm(desc="encoding", unit="B", unit_scale=True, disable=None) as progress:
        for split, size, ids, ends in ahead(encode_buffers(buffers, encoder)):
            writers[split].add(ids, ends)
            progress.update(size)
    lengths = sorted((sizes["train"] + sizes["validation"]).elements())
    return {
        "bytes": sum(lengths),
        "longest_document": max(lengths, default=0),
        "median_document": lengths[len(lengths) // 2] if lengths else 0,
        "files": {os.path.relpath(writer.path, folder): writer.close() for writer in writers.values()},
        "splits": {split: {"documents": sizes[split].total(), **writers[split].counts} for split in SPLITS},
    }


def assign_splits(args, corpus: list, held_out: list) -> Iterator[tuple]:
    """Yields (split, document). If no files are held out, documents are: by a draw for each, or else the last."""
    hashes, args.in_both = set(), 0
    for document in read_documents(args, held_out):
        hashes.add(hash(document))
        yield "validation", document
    share = 0 if held_out else args.validation_split_percentage / 100
    draw, last, any_held_out = random.Random(args.seed), None, bool(held_out)
    for document in islice(read_documents(args, corpus), args.max_documents):
        args.in_both += bool(hashes) and hash(document) in hashes
        if draw.random() < share:
            any_held_out = True
            yield "validation", document
        else:
            if last:
                yield "train", last
            last = document  # to train on, unless it stays the last and none was held out
    if last:
        yield "train" if any_held_out else "validation", last


def fill_buffers(assigned: Iterator[tuple], line_by_line: bool, encoder, sizes: dict) -> Iterator[tuple]:
    """Yields (split, many texts in UTF-8, for each whether a document or line ends with it, not a piece of one)."""
    buffers, size = {split: ([], []) for split in SPLITS}, Counter()
    for split, document in assigned:
        sizes[split][len(document)] += 1
        lines = [line for line in document.split(b"\n") if line.decode().strip()] if line_by_line else [document]
        for piece, ends in chain.from_iterable(pieces(line, encoder) for line in lines):
            buffers[split][0].append(piece)
            buffers[split][1].append(ends)
            size[split] += len(piece)
            if size[split] >= BUFFER:
                yield split, *buffers[split]
                buffers[split], size[split] = ([], []), 0
    yield from ((split, *buffer) for split, buffer in buffers.items() if buffer[0])


def encode_buffers(buffers: Iterator[tuple], encoder) -> Iterator[tuple]:
    """Yields (split, bytes of text, token ids, where in them documents or lines end)."""
    for split, texts, ends in buffers:
        ids, lengths = encoder.encode(texts)
        encoder.check(b"\0".join(texts))
        yield split, sum(map(len, texts)), ids, np.cumsum(lengths)[ends]


def pieces(text: bytes, encoder) -> Iterator[tuple]:
    """Yields (piece, whether it is the last)."""
    start = 0
    while start + PIECE < len(text) and (place := encoder.safe_cut.search(text, start + PIECE)):
        yield text[start : place.end()], False
        start = place.end()
    yield text[start:], True


def ahead(items: Iterator) -> Iterator:
    """Yields the items; a thread makes the next ones while this one is used."""
    thread = ThreadPoolExecutor(1)
    try:
        making = deque(thread.submit(next, items, None) for _ in range(AHEAD))
        while (item := making.popleft().result()) is not None:
            making.append(thread.submit(next, items, None))
            yield item
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


def create_writers(folder: str, tokenizer, length: int, packed: bool) -> dict:
    """Has `datasets` write one row, as a placeholder, and what describes it; opens its file to write all rows."""
    import datasets

    dtype = "uint16" if tokenizer.get_vocab_size() <= 2**16 else "int32"
    fixed = length if packed else -1
    features = datasets.Features(
        input_ids=datasets.List(datasets.Value(dtype), length=fixed),
        special_tokens_mask=datasets.List(datasets.Value("bool"), length=fixed),
    )
    placeholder = datasets.Dataset.from_dict({name: [[0] * length] for name in features}, features=features)
    datasets.disable_progress_bars()
    datasets.DatasetDict(dict.fromkeys(SPLITS, placeholder)).save_to_disk(folder)
    schema = features.arrow_schema
    return {split: SplitWriter(f"{folder}/{split}", schema, tokenizer, length, packed) for split in SPLITS}


class SplitWriter:
    """Makes rows of a split's tokens and writes them to a file, an Arrow stream."""

    def __init__(self, folder: str, schema, tokenizer, length: int, packed: bool):
        self.path, self.schema, self.packed = f"{folder}/data-00000-of-00001.arrow", schema, packed
        self.file = HashedFile(io.FileIO(self.path, "w"))
        self.stream = pyarrow.ipc.new_stream(self.file, schema)
        self.bos, self.eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
        special = {tokenizer.token_to_id(token) for token in SPECIAL}
        self.is_special = np.array([i in special for i in range(tokenizer.get_vocab_size())])
        self.room = length - 2  # <s> and </s> take two places of a row
        self.rest = np.empty(0, dtype=schema.field("input_ids").type.value_type.to_pandas_dtype())
        self.counts = dict.fromkeys(("tokens", "rows", "dropped_tokens"), 0)

    def add(self, ids: np.ndarray, ends: np.ndarray) -> None:
        """Takes a buffer's token ids (integers [tokens]) and where in them documents or lines end (int [number])."""
        self.counts["tokens"] += len(ids)
        ids, ends = np.concatenate([self.rest, ids.astype(self.rest.dtype)]), len(self.rest) + ends
        if self.packed:  # the documents, a </s> after each, are one stream, and every `room` tokens of it are a row
            ids = np.insert(ids, ends, self.eos)
            ids, self.rest = np.split(ids, [len(ids) // self.room * self.room])
            ids = np.pad(ids.reshape(-1, self.room), ((0, 0), (1, 1)), constant_values=(self.bos, self.eos)).ravel()
            lengths = np.full(len(ids) // (self.room + 2), self.room)
        else:
            ids, self.rest = np.split(ids, [ends[-1] if len(ends) else 0])
            lengths = np.diff(ends, prepend=0)
            fits = np.arange(len(ids)) - np.repeat(ends - lengths, lengths) < self.room  # by its place in the line
            self.counts["dropped_tokens"] += len(ids) - int(fits.sum())
            lengths = np.minimum(lengths, self.room)
            ends = np.cumsum(lengths)
            places = np.stack([ends - lengths, ends], axis=1).ravel()
            ids = np.insert(ids[fits], places, np.tile([self.bos, self.eos], len(ends)))
        starts = np.append(0, np.cumsum(lengths + 2)).astype(np.int32)
        columns = [pyarrow.ListArray.from_arrays(starts, values) for values in (ids, self.is_special[ids])]
        self.stream.write_table(pyarrow.table(columns, names=self.schema.names).cast(self.schema))
        self.counts["rows"] += len(lengths)

    def close(self) -> dict:
        self.stream.close()
        self.file.close()
        self.counts["dropped_tokens"] += len(self.rest)
        return {"bytes": os.path.getsize(self.path), "sha256": self.file.sha256.hexdigest()}


class HashedFile(io.BufferedWriter):
    """Its SHA-256 is known without reading it again."""

    def __init__(self, file):
        super().__init__(file)
        self.sha256 = hashlib.sha256()

    def write(self, data) -> int:
        self.sha256.update(data)
        return super().write(data)


# ---------------------------------------------------------------- tokenizer


class Encoder:
    """gigatoken, compared with `tokenizers` on a sample of each buffer."""

    def __init__(self, tokenizer):
        self.tokenizer, self.definition = tokenizer, tokenizer.to_str()
        self.to_check, self.draw = CHECKED_FIRST, random.Random(0)
        self.renew()

    def renew(self) -> None:
        import gigatoken

        self.gigatoken = None  # its cache goes before the new one's comes
        with explaining("gigatoken cannot read the tokenizer: use one like RoBERTa's"):
            self.gigatoken = gigatoken.Tokenizer.from_json(self.definition)
        self.buffers, self.memory_without_cache = 0, memory_in_use()

    def encode(self, texts: list) -> tuple:
        """Returns the texts' token ids (uint32 [all]) and their numbers of tokens (int64 [len(texts)])."""
        if self.buffers >= RENEWED_AFTER and memory_in_use() - self.memory_without_cache > CACHE_MB:
            self.renew()
        self.buffers += 1
        layout = self.gigatoken.encode_batch(texts).layout
        ids, bounds = np.asarray(layout.content.data), np.asarray(layout.offsets.data)
        return ids[bounds[0] : bounds[-1]], np.diff(bounds)

    @functools.cached_property
    def safe_cut(self) -> re.Pattern:
        """Matches the end of a piece: where a text is cut there, its pieces have the tokens of the whole.

        That is after a word, as RoBERTa's pre-tokenizer, which looks forward only, always cuts before white space; and
        within a word of letters and digits, between two that no token has side by side (the first not after an
        apostrophe, where the pre-tokenizer might know a contraction).
        """
        characters = string.ascii_letters + string.digits
        pairs = {token[i : i + 2] for token in self.tokenizer.get_vocab() for i in range(len(token) - 1)}
        after = {first: "".join(second for second in characters if first + second not in pairs) for first in characters}
        within = "|".join(f"{first}(?=[{seconds}])" for first, seconds in after.items() if seconds)
        within = f"|(?<=[a-zA-Z0-9])(?:{within})" if within else ""
        return re.compile(NO_SPACE + rb"(?=\s)" + within.encode())

    def check(self, text: bytes) -> None:
        start = self.draw.randrange(max(1, len(text) - self.to_check))
        sample = text[start : start + self.to_check].decode(errors="ignore")
        self.to_check = CHECKED
        expected = self.tokenizer.encode(sample, add_special_tokens=False).ids
        same = self.gigatoken.encode(sample.encode()).tolist() == expected
        require(same, f"gigatoken and tokenizers encode {sample[:60]!r} differently: use another tokenizer")


def memory_in_use() -> float:
    """Resident memory in MB; elsewhere than on Linux, the largest so far."""
    if sys.platform != "linux":
        return utils.peak_memory()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def check_kind(name: str, tokenizer) -> None:
    """Refuses what gigatoken does not follow, and what allows no cut at Encoder.safe_cut."""
    from tokenizers import models, pre_tokenizers

    model, splitter = tokenizer.model, tokenizer.pre_tokenizer
    unknown = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    found = [f"{kind} of its model" for kind in unknown if getattr(model, kind, False)]
    if tokenizer.normalizer or not isinstance(model, models.BPE):
        found.append(f"{type(model).__name__} with normalizer {tokenizer.normalizer}")
    is_byte_level = isinstance(splitter, pre_tokenizers.ByteLevel)
    if not is_byte_level or splitter.add_prefix_space or not splitter.use_regex:
        found.append(f"pre_tokenizer {splitter}")
    if None in map(tokenizer.id_to_token, range(tokenizer.get_vocab_size())):
        found.append("gaps between its tokens' ids")
    for token in tokenizer.get_added_tokens_decoder().values():
        if token.single_word or token.rstrip or re.search(r"\s", token.content):
            found.append(f"token {token!r}")
    require(not found, f"gigatoken may not follow {name} ({''.join(found[:1]):.300}): use a tokenizer like RoBERTa's")


def load_tokenizer(args, corpus: list) -> tuple:
    """Learns a tokenizer, or loads that of a directory or hub id; returns it and the longest row it is for, or 0."""
    from tokenizers import AddedToken, Tokenizer, processors
    from tokenizers.implementations import ByteLevelBPETokenizer

    name, config = args.tokenizer_name, Path(args.tokenizer_name, "tokenizer_config.json")
    require(not os.path.isfile(name), f"--tokenizer_name {name} is a file: give its directory")
    with explaining(f"cannot load the tokenizer {name}: give `train`, a hub id, or a directory with tokenizer.json"):
        if name == "train":
            tokenizer = ByteLevelBPETokenizer()  # with all 256 bytes, so any text is encoded without loss
            sample, first = training_sample(args, corpus), [BOS, PAD, EOS, UNK]  # ids 0 to 3; <mask> is the last
            tokenizer.train_from_iterator(sample, args.vocab_size - 1, 0, sys.stderr.isatty(), first)
        elif not os.path.isdir(name):
            tokenizer = Tokenizer.from_pretrained(name)
        elif os.path.exists(f"{name}/tokenizer.json"):
            tokenizer = Tokenizer.from_file(f"{name}/tokenizer.json")
        else:
            tokenizer = ByteLevelBPETokenizer.from_file(f"{name}/vocab.json", f"{name}/merges.txt")
        longest = int(json.loads(config.read_bytes()).get("model_max_length") or 0) if config.exists() else 0
        require(longest == 0 or longest >= 4, f"{config}: model_max_length is {longest}")
    if isinstance(tokenizer, ByteLevelBPETokenizer):  # give it what makes it RoBERTa's
        tokenizer.add_special_tokens([BOS, PAD, EOS, UNK, AddedToken(MASK, lstrip=True)])
        bos, eos = ((token, tokenizer.token_to_id(token)) for token in (BOS, EOS))
        tokenizer.post_processor = processors.RobertaProcessing(eos, bos, True, False)
    tokenizer.no_truncation()  # which transformers' save_pretrained() may have stored
    tokenizer.no_padding()
    missing = [token for token in (BOS, PAD, EOS, MASK) if tokenizer.token_to_id(token) is None]
    require(not missing, f"the tokenizer {name} has no {' '.join(missing)}: use one of RoBERTa's kind")
    check_kind(name, tokenizer)
    say(f"tokenizer: {name}, {tokenizer.get_vocab_size():,} tokens")
    return tokenizer, longest


def training_sample(args, corpus: list) -> Iterator[str]:
    """About TRAINING_SAMPLE bytes: documents drawn evenly from files, the first ones of a data set."""
    draw, used, size = random.Random(0), 0, 0
    if args.data_files:
        size = sum(map(len, islice(read_documents(args, corpus), args.max_documents)))
    for text in islice(read_documents(args, corpus), args.max_documents):
        if used >= TRAINING_SAMPLE and not args.data_files:
            break
        if draw.random() * size < TRAINING_SAMPLE:
            used += len(text)
            yield text.decode()
    say(f"the tokenizer is learned from {used:,} bytes")


def save_tokenizer(tokenizer, name: str, folder: str, length: int) -> dict:
    """Writes the files that `tokenizers`, transformers and PaddleNLP load; returns what the data card says of it."""
    os.mkdir(folder)
    tokenizer.save(f"{folder}/tokenizer.json", pretty=False)
    tokenizer.model.save(folder)  # merges.txt, and vocab.json without the added tokens
    vocab = {tokenizer.id_to_token(i): i for i in range(tokenizer.get_vocab_size())}
    config = {"tokenizer_class": "RobertaBPETokenizer", "model_max_length": max(512, length)}  # PaddleNLP's class
    config.update(bos_token=BOS, cls_token=BOS, eos_token=EOS, sep_token=EOS, unk_token=UNK, pad_token=PAD)
    config.update(mask_token=MASK, add_prefix_space=False)
    for file, content in (("vocab", vocab), ("tokenizer_config", config)):
        Path(folder, f"{file}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return {"name": name, "vocab_size": len(vocab), "sha256": utils.sha256_of(f"{folder}/tokenizer.json")}


# ---------------------------------------------------------------- readers


def find_files(patterns: list) -> list:
    """The files that paths, globs, URLs and directories stand for, in order, each once."""
    found, skipped = {}, Counter()  # found: path by real path
    for pattern in patterns:
        is_known = "://" in pattern or os.path.lexists(pattern)
        matches = [pattern] if is_known else sorted(glob.glob(pattern, recursive=True))
        files = [file for match in matches for file in files_at(match, skipped)]
        paths = [file for file in files if reader_of(file) and ("://" in file or os.path.isfile(file))]
        require(paths, f"nothing to read at {pattern}: no file, or none of {TYPES}")
        skipped[f"files in {pattern} of other types than {TYPES}"] += len(files) - len(paths)
        for path in dict.fromkeys(paths):  # `**` matches a directory and what is in it
            real = path if "://" in path else os.path.realpath(path)
            skipped["files that were named or linked twice"] += real in found
            found.setdefault(real, path)
    for what, count in (+skipped).items():
        say(f"not read: {count} {what}")
    return list(found.values())


def files_at(path: str, skipped: Counter) -> list:
    """A file, or all below a directory; links are followed, but into no directory twice."""
    if not os.path.isdir(path):
        return [path]
    visited, found = set(), []
    for parent, folders, names in os.walk(path, followlinks=True):
        if os.path.realpath(parent) in visited or "dataset_dict.json" in names:
            skipped["directories that hold prepared data or were read before"] += 1
            folders.clear()
        else:
            visited.add(os.path.realpath(parent))
            found += [f"{parent}/{name}" for name in names]
    return sorted(found)


def read_documents(args, paths: list) -> Iterator[bytes]:
    """The documents of files, or of a data set, in UTF-8, without line ends around them. Errors say what was read."""
    for path in paths:
        reader, position = reader_of(path) or read_data_set, 0
        try:
            for position, record in enumerate(reader(path, args), start=1):
                if text := in_utf8(text_of(record, args.text_column, f"{path}, record {position}")):
                    yield text
        except UserError:
            raise
        except UnicodeDecodeError as error:
            problem = f"not UTF-8 ({error.reason}): convert it (iconv)"
            raise UserError(f"{path}, record {position} or later: {problem}") from None
        except csv.Error as error:
            remedy = "quote fields with quotes or line ends in them, and double these quotes"
            raise UserError(f"{path}, after record {position}: malformed CSV ({error}): {remedy}") from None
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {position + error.lineno}: malformed JSON ({error.msg})") from None
        except Exception as error:  # what unpacks files and fetches them raises errors of many kinds
            is_hub = reader is read_data_set  # whose message lists the configurations there are
            reason = " ".join(str(error).split())[: 500 if is_hub else 300]
            remedy = HUB_REMEDY.format(args.dataset_config_name, args.split) if is_hub else ""
            raise UserError(f"cannot read {path} after record {position} ({reason}){remedy}") from error


def in_utf8(text: str | bytes | None) -> bytes:
    """Nothing for white space; raises UnicodeDecodeError for bytes that are not UTF-8."""
    if not isinstance(text, bytes):
        return text.encode(errors="to_fffd").strip(b"\r\n") if text and not text.isspace() else b""
    start, is_white = 0, True
    while start < len(text):  # a piece at a time, as wide text takes four times the memory as a str
        part = text[start : start + PIECE]
        characters, used = codecs.utf_8_decode(part, "strict", start + len(part) == len(text))
        start, is_white = start + used, is_white and characters.isspace()
    return b"" if is_white else text.strip(b"\r\n")


def text_of(record, column: str, where: str) -> str | bytes | None:
    """The text of a record: a string, UTF-8 of a reader, or a mapping whose `column` is a string or None."""
    text = record[column] if isinstance(record, dict) and column in record else record
    if not isinstance(text, str | None) and not isinstance(record, bytes):  # a column of bytes is no text
        found = ", ".join(map(str, record)) if isinstance(text, dict) else type(text).__name__
        raise UserError(f"{where}: no text in column {column!r}, but {found:.300}: see --text_column")
    return text


def read_txt(path: str, args) -> Iterator[bytes]:
    """Reads blocks, as a line may be long, too. Lines end with \\n or \\r\\n."""
    with fsspec.open(path, compression="infer") as raw, io.BufferedReader(raw) as file:
        start = re.sub(rb"\A" + WHITE + rb"\n", b"", file.read(SEARCHED).removeprefix(codecs.BOM_UTF8))
        guess = "empty_line" if SEPARATORS["empty_line"].search(start.strip()) else "line"
        separator = args.separators[path] = args.document_separator or guess
        document, rest = io.BytesIO(), b""
        for block in chain([start], iter(lambda: file.read(BLOCK), b""), [b"\n"]):
            text = rest + block
            if b"\r" in text:
                text = text.replace(b"\r\n", b"\n")
            *ended, last = SEPARATORS[separator].split(text)
            for part in ended:
                document.write(part)
                yield document.getvalue()
                document = io.BytesIO()
            lines, line_end, line = last.rpartition(b"\n")
            # The last line waits for its end, with the line end before it; but not a long one.
            waits = len(line) < LINE or line.endswith(b"\r")
            lines, rest = (lines, line_end + line) if waits else (last, b"")
            document.write(lines)
        yield document.getvalue()


def read_json(path: str, args) -> Iterator:
    """One JSON value a line, or one array, which is read whole."""
    with open_text(path) as start:
        is_array = start.read(1000).lstrip().startswith("[")
    with open_text(path) as lines:
        if is_array:
            yield from json.load(lines)
        else:
            yield from ("" if line.isspace() else json.loads(line.rstrip()) for line in lines)


def read_csv(path: str, args) -> Iterator:
    csv.field_size_limit(2**31 - 1)
    with fsspec.open(path, compression="infer") as raw, io.BufferedReader(raw, BLOCK) as file:
        first = file.readline().removeprefix(codecs.BOM_UTF8)
        # In latin-1, the bytes go through the parser as they are.
        lines = map(functools.partial(str, encoding="latin-1"), chain([first], file))
        reader = csv.reader(lines, strict=True)
        records = filter(None, reader)  # without empty lines
        names = [name.encode("latin-1").decode() for name in next(records, [])]
        for record in records:
            if len(record) != len(names):
                counts = f"{len(record)} fields, where the first line has {len(names)}"
                raise UserError(f"{path}, line {reader.line_num}: {counts}: quote what has commas")
            fields = dict(zip(names, record))
            yield fields[args.text_column].encode("latin-1") if args.text_column in fields else fields


def read_parquet(path: str, args) -> Iterator:
    with fsspec.open(path, "rb") as source:
        file = pyarrow.parquet.ParquetFile(source, pre_buffer=False)
        columns = [args.text_column] if args.text_column in file.schema_arrow.names else None
        yield from texts_of(file.iter_batches(64, columns=columns, use_threads=False), args.text_column)


def texts_of(batches, column: str) -> Iterator:
    """A column of strings in UTF-8, which is quicker than as str; where it is of another type, the whole records."""
    text = pyarrow.string(), pyarrow.large_string()
    for batch in batches:
        is_text = column in batch.schema.names and batch.schema.field(column).type in text
        yield from (batch[column].cast(pyarrow.large_binary()) if is_text else batch).to_pylist()


def read_data_set(name: str, args) -> Iterator:
    """Streams a data set of the hub, so memory and disk do not grow with it."""
    import datasets

    if name == "demo":
        return demo_documents()
    pyarrow.set_cpu_count(1)  # more threads of its would only keep the encoder waiting
    stream = datasets.load_dataset(name, args.dataset_config_name, split=args.split, streaming=True)
    if args.text_column in (stream.column_names or []):
        stream = stream.select_columns([args.text_column])
    return texts_of(stream.with_format("arrow").iter(256), args.text_column)


def demo_documents() -> Iterator[str]:
    """English prose in every Python: the language reference's topics and the standard library's docstrings."""
    from pydoc_data.topics import topics

    yield from topics.values()
    library = Path(os.__file__).parent
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for module in sorted(sys.stdlib_module_names):
        for path in sorted([library / f"{module}.py", *(library / module).rglob("*.py")]):
            if path.is_file() and not {"test", "tests", "idlelib", "lib2to3"} & set(path.relative_to(library).parts):
                nodes = ast.walk(ast.parse(path.read_bytes()))
                yield "\n".join(ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented))


READERS = {".txt": read_txt, ".jsonl": read_json, ".json": read_json, ".csv": read_csv, ".parquet": read_parquet}
TYPES = f"{', '.join(READERS)}, all but the last also as {', '.join(PACKED)}"


def reader_of(path: str):
    """The function that reads files of such a name, or None."""
    name, suffix = os.path.splitext(path.lower())
    if suffix in PACKED and not name.endswith(".parquet"):
        suffix = os.path.splitext(name)[1]
    return READERS.get(suffix)


# ---------------------------------------------------------------- arguments, checks and reports


def parse_arguments(argv: list | None):
    parser = utils.ArgumentParser("Turn text into rows of tokens for masked language modelling.")
    # What reading notes: what each text file's documents end at, and how many are trained on and held out.
    parser.set_defaults(separators={}, in_both=0)
    add = parser.add_argument_group("source of the text").add_mutually_exclusive_group().add_argument
    add("--data_files", nargs="+", metavar="PATH", help=f"files, globs, URLs, directories of {TYPES}")
    add("--dataset_name", default=WIKIPEDIA, help="data set on the hub, or `demo`")
    add = parser.add_argument_group("data").add_argument
    add("--output_dir", default="wiki", help="directory to write")
    add("--overwrite_output_dir", type=boolean, default=False, help="replace a data set that is there")
    add("--validation_files", nargs="+", metavar="PATH", help="what to hold out, instead of a drawn share")
    add("--document_separator", choices=list(SEPARATORS), help="between texts of a file")
    add("--dataset_config_name", help=f"configuration of a data set ({DUMP}.en of Wikipedia)")
    add("--split", default="train", help="split of a data set")
    add("--text_column", default="text", help="column with the text")
    add("--max_documents", type=number(int, 1), help="take so many documents only")
    add("--validation_split_percentage", type=number(float, 0, 100), default=1, help="held out; one at least")
    add("--seed", type=number(int, 0, 2**63), default=42, help="draws the documents held out")
    add = parser.add_argument_group("tokens").add_argument
    kinds = "directory with tokenizer.json or vocab.json and merges.txt, hub id, or `train`"
    add("--tokenizer_name", "---tokenizer_name", default="roberta-base", help=kinds)  # ---: the original page's
    add("--vocab_size", type=number(int, 262), default=50265, help="tokens that `train` learns")
    add("--max_seq_length", type=number(int, 4), help="tokens in a row (512, or what the text fills)")
    add("--line_by_line", type=boolean, default=False, help="a row for each line, not packed")
    add("--preprocessing_num_workers", type=number(int, 1), default=os.cpu_count(), help="threads")
    args = parser.parse_args(argv)
    with explaining("--output_dir is not UTF-8: choose another name"):
        args.output_dir.encode()
    require(not os.path.isfile(args.output_dir), f"{args.output_dir} is a file: choose another --output_dir")
    config = args.dataset_config_name or f"{DUMP}.en"
    if args.dataset_name == "wikipedia":  # on the original page; it can no longer be loaded
        args.dataset_name, config = WIKIPEDIA, f"{DUMP}.{config.rpartition('.')[2]}"
        warning = f"warning: wikipedia {args.dataset_config_name} is gone: using {WIKIPEDIA} {config}"
        print(warning, file=sys.stderr)
    if args.dataset_name == WIKIPEDIA and not args.data_files:
        args.dataset_config_name = config
    return args


def filled_length(args, splits: dict, length: int) -> int:
    """Checks that there is text; returns the row length, or if none was given a shorter one that both splits fill."""
    trained_on, held_out = (splits[split]["documents"] for split in SPLITS)
    require(held_out, "the corpus is empty, or --validation_files are: there is nothing but white space")
    require(trained_on or not args.validation_files, "the corpus is empty: there is nothing but white space")
    remedy = "add text, or divide it (--document_separator line)"
    is_wanted = args.validation_split_percentage == 100
    require(trained_on or is_wanted, f"all of it ({held_out} documents) is held out: {remedy}")
    lowered = length
    for split, counts in splits.items():
        if counts["documents"] and not counts["rows"]:
            tokens = counts["tokens"] + counts["documents"] + 2  # with </s> after each, and a row's own <s> and </s>
            filled = [n for n in (16, 32, 64, 128, 256) if n <= tokens and not args.max_seq_length]
            require(filled, f"{split} is too small for a row of {length} tokens: add text, or lower --max_seq_length")
            lowered = min(lowered, filled[-1])
    return lowered


def print_summary(args, card: dict, tokenizer, seconds: float) -> None:
    import datasets

    size, longest = card["bytes"], card["longest_document"]
    documents = sum(counts["documents"] for counts in card["splits"].values())
    is_odd = longest > LONG_DOCUMENT or (not args.document_separator and size > LONG_ON_AVERAGE * documents)
    if args.separators and is_odd:
        problem = f"{documents} documents in {size:,} bytes, the longest of {longest:,} bytes"
        print(f"warning: {problem}: check what they end at (--document_separator)", file=sys.stderr)
    if args.in_both:
        problem = f"{args.in_both} documents that are trained on are in --validation_files, too"
        print(f"warning: {problem}", file=sys.stderr)
    for separator, count in Counter(args.separators.values()).items():
        say(f"documents end at: {separator} in {count} files (--document_separator sets it)")
    for split, counts in card["splits"].items():
        say(f"{split:10} " + ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items()))
    say(f"{documents:,} documents, of {card['median_document']:,} bytes in the median")
    say(f"{seconds:.1f} s, {size / 1e6 / seconds:.1f} MB of text a second, {utils.peak_memory():,.0f} MB of memory")
    data = datasets.load_from_disk(args.output_dir)
    rows = data["train"] if len(data["train"]) else data["validation"]
    say(f"first row: {tokenizer.decode(rows[0]['input_ids'], skip_special_tokens=False)[:200]!r}")
    say(f"written: {args.output_dir}")


if __name__ == "__main__":
    utils.command_line(main)
