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
from itertools import chain, dropwhile, groupby, islice
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet
from tqdm import tqdm

import utils
from utils import UserError, boolean, explaining, number, require, say

WIKIPEDIA, DUMP = "wikimedia/wikipedia", "20231101"
SPLITS = ("train", "validation")
ARROW = "data-00000-of-00001.arrow"  # the file of a split
SPECIAL = BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
BUFFER = 2_000_000  # bytes of a split that are encoded and written at a time
AHEAD = 4  # buffers that are read, and as many that are encoded, before they are needed
PIECE = 250_000  # bytes: a longer text is encoded in pieces
# ASCII that is no space, or the last byte of a longer character that is none.
NO_SPACE = rb"[!-~\x8b-\x8d\x8f-\x9e\xa1-\xa7\xaa-\xae\xb0-\xbf]"
CACHE_MB = 250  # what gigatoken's cache, which it never empties, may take
CHECKED_FIRST, CHECKED = 20_000, 500  # bytes of the first and each other buffer that are encoded twice
TRAINING_SAMPLE = 256_000_000  # bytes that `--tokenizer_name train` learns from, about
SEARCHED = 10_000  # lines of a text file in which an empty one is looked for
BLOCK = 250_000  # bytes of a file that are read at a time
WHITE = string.whitespace.encode() + "\u00a0\u3000".encode()  # with the no-break and the ideographic space
# Lone surrogates, which JSON can hold and UTF-8 cannot, become U+FFFD.
codecs.register_error("to_fffd", lambda error: ("\ufffd".encode() * (error.end - error.start), error.end))


def main(argv: list | None = None) -> None:
    args, start = parse_arguments(argv), time.perf_counter()
    os.environ["RAYON_NUM_THREADS"] = str(args.preprocessing_num_workers)  # gigatoken's threads
    corpus = find_files(args.data_files) if args.data_files else [args.dataset_name]
    held_out = find_files(args.validation_files or [])
    with utils.atomic_directory(args.output_dir) as folder:
        check_output_dir(args.output_dir, args.overwrite_output_dir)
        tokenizer, longest = load_tokenizer(args, corpus)
        length = args.max_seq_length = args.max_seq_length or min(512, longest)
        require(4 <= length <= longest, f"--max_seq_length {length} is above the tokenizer's limit {longest}")
        splits = write_rows(args, corpus, held_out, tokenizer, folder)
        check_splits(args, splits)
        card = {
            "command": shlex.join(["python", "create_data.py", *(sys.argv[1:] if argv is None else argv)]),
            "source": corpus,
            "splits": splits,
            "tokenizer": save_tokenizer(tokenizer, args, f"{folder}/tokenizer"),
            "arguments": vars(args),
            "versions": {name: version(name) for name in ("datasets", "gigatoken", "numpy", "pyarrow", "tokenizers")},
        }
        Path(folder, "data_card.json").write_text(json.dumps(card, indent=2), encoding="utf-8")
    print_summary(args, splits, time.perf_counter() - start)


# ---------------------------------------------------------------- from documents to rows


def write_rows(args, corpus: list, held_out: list, tokenizer, folder: str) -> dict:
    """Writes the rows of both splits below `folder`; returns what it counted in each."""
    encoder, writers = Encoder(tokenizer), create_writers(args, tokenizer, folder)
    counts = {split: writer.counts for split, writer in writers.items()}
    gc.freeze()  # the collector need not walk what the imports made: 0.1 s
    sys.setswitchinterval(5e-4)  # seconds: the encoding thread need not wait for the others
    # Two more threads: one reads documents and fills buffers, the other encodes them.
    documents = assign_splits(args, corpus, held_out)
    buffers = ahead(fill_buffers(documents, args.line_by_line, encoder, counts))
    with tqdm(desc="encoding", unit="B", unit_scale=True, disable=None) as progress:
        for split, size, ids, ends in ahead(encode_buffers(buffers, encoder)):
            writers[split].add(ids, ends)
            progress.update(size)
    for writer in writers.values():
        writer.close()
    return counts


def assign_splits(args, corpus: list, held_out: list) -> Iterator[tuple]:
    """Yields (split, document): held out are files, or else a draw's documents, or else the last."""
    for document in read_documents(args, held_out):
        yield "validation", document
    share = 0 if held_out else args.validation_split_percentage / 100
    draw, last, any_held_out = random.Random(args.seed), None, bool(held_out)
    for document in islice(read_documents(args, corpus), args.max_documents):
        if draw.random() < share:
            any_held_out = True
            yield "validation", document
        else:
            if last:
                yield "train", last
            last = document  # to train on, unless it stays the last and none was held out
    if last:
        yield "train" if any_held_out else "validation", last


def fill_buffers(documents: Iterator[tuple], line_by_line: bool, encoder, counts: dict) -> Iterator[tuple]:
    """Yields (split, [(text, whether a document or line ends with it)]), about BUFFER bytes."""
    buffers, size = {split: [] for split in SPLITS}, Counter()
    for split, document in documents:
        counts[split]["documents"] += 1
        counts[split]["bytes"] += len(document)
        for piece in pieces(document, line_by_line, encoder):
            buffers[split].append(piece)
            size[split] += len(piece[0])
            if size[split] >= BUFFER:
                yield split, buffers[split]
                buffers[split], size[split] = [], 0
    for split, buffer in buffers.items():
        if buffer:
            yield split, buffer


def pieces(document: bytes, line_by_line: bool, encoder) -> Iterator[tuple]:
    """Yields (piece, whether it is the last) of the document, or of each line that is not blank."""
    for text in document.split(b"\n") if line_by_line else [document]:
        start = 0
        while start + PIECE < len(text) and (place := encoder.safe_cut.search(text, start + PIECE)):
            yield text[start : place.end()], False
            start = place.end()
        if not line_by_line or text.decode().strip():
            yield text[start:], True


def encode_buffers(buffers: Iterator[tuple], encoder) -> Iterator[tuple]:
    """Yields (split, bytes of text, token ids, where in them documents or lines end)."""
    for split, buffer in buffers:
        texts, is_end = zip(*buffer)
        ids, lengths = encoder.encode(list(texts))
        yield split, sum(map(len, texts)), ids, np.cumsum(lengths)[np.array(is_end)]


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


def create_writers(args, tokenizer, folder: str) -> dict:
    """Has `datasets` write a placeholder and what describes it; opens its files for all rows."""
    import datasets

    dtype = "uint16" if tokenizer.get_vocab_size() <= 2**16 else "int32"
    length = -1 if args.line_by_line else args.max_seq_length
    features = datasets.Features(
        input_ids=datasets.List(datasets.Value(dtype), length=length),
        special_tokens_mask=datasets.List(datasets.Value("bool"), length=length),
    )
    row = {name: [[0] * args.max_seq_length] for name in features}
    placeholder = datasets.Dataset.from_dict(row, features=features)
    datasets.disable_progress_bars()
    datasets.DatasetDict(dict.fromkeys(SPLITS, placeholder)).save_to_disk(folder)
    return {split: SplitWriter(f"{folder}/{split}", features.arrow_schema, tokenizer, args) for split in SPLITS}


class SplitWriter:
    """Makes rows of a split's tokens and writes them to its file, an Arrow stream."""

    def __init__(self, folder: str, schema, tokenizer, args):
        self.schema, self.packed = schema, not args.line_by_line
        self.stream = pyarrow.ipc.new_stream(f"{folder}/{ARROW}", schema)
        special = [tokenizer.token_to_id(token) for token in SPECIAL]
        self.is_special = np.isin(np.arange(tokenizer.get_vocab_size()), special)
        self.bos, self.eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
        self.room = args.max_seq_length - 2  # <s> and </s> take two places of a row
        self.rest = np.empty(0, schema.field("input_ids").type.value_type.to_pandas_dtype())
        self.counts = dict.fromkeys(("documents", "bytes", "tokens", "rows", "dropped_tokens"), 0)

    def add(self, ids: np.ndarray, ends: np.ndarray) -> None:
        """Takes token ids (integers [tokens]) and where documents or lines end (int [number])."""
        self.counts["tokens"] += len(ids)
        ids, ends = np.concatenate([self.rest, ids.astype(self.rest.dtype)]), len(self.rest) + ends
        if self.packed:  # documents, a </s> after each, are one stream; `room` tokens are a row
            ids = np.insert(ids, ends, self.eos)
            ids, self.rest = np.split(ids, [len(ids) // self.room * self.room])
            rows = ids.reshape(-1, self.room)
            ids = np.pad(rows, ((0, 0), (1, 1)), constant_values=(self.bos, self.eos)).ravel()
            lengths = np.full(len(rows), self.room)
        else:
            ids, self.rest = np.split(ids, [ends[-1] if len(ends) else 0])
            lengths = np.diff(ends, prepend=0)
            place_in_line = np.arange(len(ids)) - np.repeat(ends - lengths, lengths)
            fits = place_in_line < self.room
            self.counts["dropped_tokens"] += len(ids) - int(fits.sum())
            lengths = np.minimum(lengths, self.room)
            ids = np.insert(ids[fits], np.cumsum(lengths) - lengths, self.bos)
            ids = np.insert(ids, np.cumsum(lengths + 1), self.eos)
        starts = np.append(0, np.cumsum(lengths + 2)).astype(np.int32)
        columns = [pyarrow.ListArray.from_arrays(starts, values) for values in (ids, self.is_special[ids])]
        self.stream.write_table(pyarrow.table(columns, names=self.schema.names).cast(self.schema))
        self.counts["rows"] += len(lengths)

    def close(self) -> None:
        self.stream.close()
        self.counts["dropped_tokens"] += len(self.rest)


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
        self.memory_without_cache = memory_in_use()

    def encode(self, texts: list) -> tuple:
        """Returns the texts' token ids (uint32 [all]) and numbers of tokens (int64 [len(texts)])."""
        if memory_in_use() - self.memory_without_cache > CACHE_MB:
            self.renew()
        layout = self.gigatoken.encode_batch(texts).layout
        ids, bounds = np.asarray(layout.content.data), np.asarray(layout.offsets.data)
        text = b"\0".join(texts)
        start = self.draw.randrange(max(1, len(text) - self.to_check))
        sample = text[start : start + self.to_check].decode(errors="ignore")
        self.to_check = CHECKED
        expected = self.tokenizer.encode(sample, add_special_tokens=False).ids
        same = self.gigatoken.encode(sample.encode()).tolist() == expected
        require(same, f"gigatoken and tokenizers encode {sample[:60]!r} differently: use another tokenizer")
        return ids[bounds[0] : bounds[-1]], np.diff(bounds)

    @functools.cached_property
    def safe_cut(self) -> re.Pattern:
        """Matches the end of a piece: where a text is cut there, its tokens stay.

        That is before white space, where RoBERTa's pre-tokenizer, which looks forward only, always cuts; and between
        two letters or digits that no token has side by side (not after an apostrophe: contractions).
        """
        characters = string.ascii_letters + string.digits
        pairs = {token[i : i + 2] for token in self.tokenizer.get_vocab() for i in range(len(token) - 1)}
        cuts = [NO_SPACE.decode("latin-1") + r"(?=\s)"]
        for first in characters:
            seconds = "".join(second for second in characters if first + second not in pairs)
            cuts += [f"(?<=[a-zA-Z0-9]){first}(?=[{seconds}])"] if seconds else []
        return re.compile("|".join(cuts).encode("latin-1"))


def memory_in_use() -> float:
    """Resident memory in MB; elsewhere than on Linux, the largest so far."""
    if sys.platform != "linux":
        return utils.peak_memory()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def load_tokenizer(args, corpus: list) -> tuple:
    """Learns a tokenizer, or loads that of a directory or hub id; returns it and its longest row."""
    from tokenizers import AddedToken, Tokenizer, processors
    from tokenizers.implementations import ByteLevelBPETokenizer

    name, config = args.tokenizer_name, Path(args.tokenizer_name, "tokenizer_config.json")
    with explaining(f"cannot load the tokenizer {name}: give `train`, a hub id, or a directory with tokenizer.json"):
        if name == "train":
            tokenizer = ByteLevelBPETokenizer()  # with all 256 bytes: any text is encoded without loss
            sample, first = training_sample(args, corpus), [BOS, PAD, EOS, UNK]  # ids 0 to 3
            tokenizer.train_from_iterator(sample, args.vocab_size - 1, 0, sys.stderr.isatty(), first)
        elif not os.path.isdir(name):
            tokenizer = Tokenizer.from_pretrained(name)
        elif os.path.exists(f"{name}/tokenizer.json"):
            tokenizer = Tokenizer.from_file(f"{name}/tokenizer.json")
        else:
            tokenizer = ByteLevelBPETokenizer.from_file(f"{name}/vocab.json", f"{name}/merges.txt")
        settings = json.loads(config.read_bytes()) if config.exists() else {}
        longest = int(settings.get("model_max_length") or 10**9)
    if isinstance(tokenizer, ByteLevelBPETokenizer):  # give it what makes it RoBERTa's
        tokenizer.add_special_tokens([BOS, PAD, EOS, UNK, AddedToken(MASK, lstrip=True)])
        bos, eos = ((token, tokenizer.token_to_id(token)) for token in (BOS, EOS))
        tokenizer.post_processor = processors.RobertaProcessing(eos, bos, True, False)
    tokenizer.no_truncation()  # which transformers' save_pretrained() may have stored
    tokenizer.no_padding()
    check_kind(name, tokenizer)
    say(f"tokenizer: {name}, {tokenizer.get_vocab_size():,} tokens")
    return tokenizer, longest


def check_kind(name: str, tokenizer) -> None:
    """Refuses what gigatoken does not follow, and what allows no cut at Encoder.safe_cut."""
    from tokenizers import models, pre_tokenizers

    splitter = tokenizer.pre_tokenizer
    is_byte_level = isinstance(tokenizer.model, models.BPE) and isinstance(splitter, pre_tokenizers.ByteLevel)
    expected = {
        "ByteLevel BPE": is_byte_level,
        "no normalizer": tokenizer.normalizer is None,
        "add_prefix_space False": is_byte_level and not splitter.add_prefix_space,
        "use_regex True": is_byte_level and splitter.use_regex,
        "ids without gaps": None not in map(tokenizer.id_to_token, range(tokenizer.get_vocab_size())),
        " ".join(SPECIAL): None not in map(tokenizer.token_to_id, SPECIAL),
    }
    for token in tokenizer.get_added_tokens_decoder().values():
        is_plain = not (token.single_word or token.rstrip or re.search(r"\s", token.content))
        expected[f"{token.content!r} without single_word, rstrip or spaces"] = is_plain
    lacking = ", ".join(what for what, is_there in expected.items() if not is_there)
    require(not lacking, f"{name} is not like RoBERTa's tokenizer ({lacking}): choose another --tokenizer_name")


def training_sample(args, corpus: list) -> Iterator[str]:
    """About TRAINING_SAMPLE bytes: the first documents of each file, or of a data set."""
    documents = used = 0
    for files, path in enumerate(corpus, start=1):
        for document in read_documents(args, [path]):
            if documents == args.max_documents or used >= TRAINING_SAMPLE * files / len(corpus):
                break
            yield document.decode()
            documents += 1
            used += len(document)
    say(f"the tokenizer is learned from {used:,} bytes")


def save_tokenizer(tokenizer, args, folder: str) -> dict:
    """Writes what `tokenizers`, transformers and PaddleNLP load; returns what the card says of it."""
    os.mkdir(folder)
    tokenizer.save(f"{folder}/tokenizer.json", pretty=False)
    tokenizer.model.save(folder)  # merges.txt, and vocab.json without the added tokens
    vocab = {tokenizer.id_to_token(i): i for i in range(tokenizer.get_vocab_size())}
    config = {"tokenizer_class": "RobertaBPETokenizer"}  # PaddleNLP's
    config.update(model_max_length=max(512, args.max_seq_length), bos_token=BOS, cls_token=BOS, eos_token=EOS)
    config.update(sep_token=EOS, unk_token=UNK, pad_token=PAD, mask_token=MASK, add_prefix_space=False)
    for file, content in (("vocab", vocab), ("tokenizer_config", config)):
        Path(folder, f"{file}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    sha256 = utils.sha256_of(f"{folder}/tokenizer.json")
    return {"name": args.tokenizer_name, "vocab_size": len(vocab), "sha256": sha256}


# ---------------------------------------------------------------- readers


def find_files(patterns: list) -> list:
    """The files that paths, globs, URLs and directories stand for, each once."""
    found, skipped = [], 0
    for pattern in patterns:
        is_known = "://" in pattern or os.path.exists(pattern)
        matches = [pattern] if is_known else glob.glob(pattern, recursive=True)
        files = sorted({file for match in matches for file in files_at(match)})
        readable = [file for file in files if reader_of(file)]
        require(readable, f"nothing to read at {pattern}: no file, or none of {TYPES}")
        found += readable
        skipped += len(files) - len(readable)
    if skipped:
        say(f"not read: {skipped} files of other types than {TYPES}")
    by_real_path = {}
    for path in found:
        by_real_path.setdefault(path if "://" in path else os.path.realpath(path), path)
    return list(by_real_path.values())


def files_at(path: str) -> Iterator[str]:
    """A file, or those below a directory; without prepared data and linked directories."""
    if not os.path.isdir(path):
        yield path
    for folder, folders, names in os.walk(path):
        if "dataset_dict.json" in names:
            folders.clear()
        else:
            yield from filter(os.path.isfile, (os.path.join(folder, name) for name in names))


def read_documents(args, paths: list) -> Iterator[bytes]:
    """The documents of files, or of a data set, in UTF-8. Errors say what was read."""
    for path in paths:
        reader, position = reader_of(path) or read_data_set, 0
        try:
            texts = (utf8_of(record, args.text_column) for record in reader(path, args))
            for position, text in enumerate(texts, start=1):  # noqa: B007
                if text:
                    yield text
        except Exception as error:  # unpacking and fetching raise errors of many kinds
            # What is exactly a ValueError is raised here, and says the remedy.
            remedy = "" if type(error) is ValueError else ": it must be well-formed and in UTF-8"
            if reader is read_data_set:
                options = f"--dataset_config_name {args.dataset_config_name}, --split {args.split}"
                remedy = f": check {options}, or use --data_files or --dataset_name demo"
            reason = " ".join(str(error).split())[:500]  # the hub's lists the configurations
            raise UserError(f"cannot read {path} after record {position} ({reason}){remedy}") from error


def utf8_of(record, column: str) -> bytes:
    """The text of a record, or of its column, without line ends around it; nothing for white space."""
    text = record.get(column, record) if isinstance(record, dict) else record
    if isinstance(text, str | None):
        text = (text or "").encode(errors="to_fffd")
    if not isinstance(text, bytes):
        found = ", ".join(text) if isinstance(text, dict) else type(text).__name__
        raise ValueError(f"no text in column {column!r}, but {found:.300}: see --text_column")
    start, is_white = 0, True
    while start < len(text):  # a piece at a time, as wide text takes four times the memory as a str
        part = text[start : start + PIECE]
        characters, used = codecs.utf_8_decode(part, "strict", start + len(part) == len(text))
        start, is_white = start + used, is_white and characters.isspace()
    return b"" if is_white else text.strip(b"\r\n")


def lines_of(path: str) -> Iterator[bytes]:
    with fsspec.open(path, compression="infer") as raw, io.BufferedReader(raw, BLOCK) as file:
        yield file.readline().removeprefix(codecs.BOM_UTF8)
        yield from file


def read_txt(path: str, args) -> Iterator[bytes]:
    """Documents end at empty lines, at each line or with the file."""
    separator = args.document_separator
    if separator is None:
        start = groupby(islice(lines_of(path), SEARCHED), is_blank)
        separator = "empty_line" if sum(not is_empty for is_empty, _ in start) > 1 else "line"
    args.separators[path] = separator
    documents = lines = lines_of(path)
    if separator == "file":
        documents = map(joined, [lines])
    elif separator == "empty_line":
        documents = (joined(group) for is_empty, group in groupby(lines, is_blank) if not is_empty)
    # The condition is quicker than to look for two characters.
    yield from (text.replace(b"\r\n", b"\n") if b"\r" in text else text for text in documents)


def is_blank(line: bytes) -> bool:
    return not line.lstrip(WHITE)


def joined(lines: Iterator[bytes]) -> bytes:
    """Without having all lines of a long document in memory besides."""
    document = io.BytesIO()
    document.writelines(lines)
    return document.getvalue()


def read_json(path: str, args) -> Iterator:
    """One JSON value a line, or one array, which is read whole."""
    lines = dropwhile(bytes.isspace, lines_of(path))
    first = next(lines, b"")
    if first.lstrip().startswith(b"["):
        yield from json.loads(b"".join([first, *lines]))
    else:
        yield from (json.loads(line.strip()) if line.strip() else "" for line in chain([first], lines))


def read_csv(path: str, args) -> Iterator[dict]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(map(bytes.decode, dropwhile(bytes.isspace, lines_of(path))), strict=True)
    for record in reader:
        if None in record or None in record.values():
            problem = f"line {reader.line_num} has not {len(reader.fieldnames)} fields"
            raise ValueError(f"{problem}: quote those with commas")
        yield record


def read_parquet(path: str, args) -> Iterator[dict]:
    with fsspec.open(path, "rb") as source:
        file = pyarrow.parquet.ParquetFile(source, pre_buffer=False)
        columns = [args.text_column] if args.text_column in file.schema_arrow.names else None
        for batch in file.iter_batches(64, columns=columns, use_threads=False):
            yield from batch.to_pylist()


def read_data_set(name: str, args) -> Iterator:
    """Streams a data set of the hub, so memory and disk do not grow with it."""
    import datasets

    if name == "demo":
        return demo_documents()
    pyarrow.set_cpu_count(1)  # more threads of its would only keep the encoder waiting
    return iter(datasets.load_dataset(name, args.dataset_config_name, split=args.split, streaming=True))


def demo_documents() -> Iterator[str]:
    """English prose in every Python: the language reference and the standard library's docstrings."""
    from pydoc_data.topics import topics

    yield from topics.values()
    library = Path(os.__file__).parent
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for module in sorted(sys.stdlib_module_names):
        for path in sorted([library / f"{module}.py", *(library / module).rglob("*.py")]):
            left_out = {"test", "tests", "idlelib", "lib2to3"} & set(path.relative_to(library).parts)
            if path.is_file() and not left_out:
                nodes = ast.walk(ast.parse(path.read_bytes()))
                yield "\n".join(ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented))


READERS = {".txt": read_txt, ".jsonl": read_json, ".json": read_json, ".csv": read_csv, ".parquet": read_parquet}
TYPES = f"{', '.join(READERS)}, all but the last also as .gz, .bz2, .xz"


def reader_of(path: str):
    """The function that reads files of such a name, or None."""
    unpacked = re.sub(r"\.(gz|bz2|xz)$", "", path.lower())
    return READERS.get(os.path.splitext(unpacked)[1])


# ---------------------------------------------------------------- arguments, checks and reports


def parse_arguments(argv: list | None):
    parser = utils.ArgumentParser("Turn text into rows of tokens for masked language modelling.")
    parser.set_defaults(separators={})  # what documents of each text file end at
    add = parser.add_argument_group("source of the text").add_mutually_exclusive_group().add_argument
    add("--data_files", nargs="+", metavar="PATH", help=f"files, globs, URLs, directories of {TYPES}")
    add("--dataset_name", default=WIKIPEDIA, help="data set on the hub, or `demo`")
    add = parser.add_argument_group("data").add_argument
    add("--output_dir", default="wiki", help="directory to write")
    add("--overwrite_output_dir", type=boolean, default=False, help="replace a data set")
    add("--validation_files", nargs="+", metavar="PATH", help="held out, instead of a drawn share")
    add("--document_separator", choices=["empty_line", "line", "file"], help="between texts of a file")
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
    add("--max_seq_length", type=number(int, 4), help="tokens in a row (512, or the tokenizer's longest)")
    add("--line_by_line", type=boolean, default=False, help="a row for each line, not packed")
    add("--preprocessing_num_workers", type=number(int, 1), default=os.cpu_count(), help="threads")
    args = parser.parse_args(argv)
    with explaining("--output_dir is not UTF-8: choose another name"):
        args.output_dir.encode()
    config = args.dataset_config_name or f"{DUMP}.en"
    if args.dataset_name == "wikipedia":  # on the original page; it can no longer be loaded
        gone, config = f"wikipedia {config}", f"{DUMP}.{config.rpartition('.')[2]}"
        args.dataset_name = WIKIPEDIA
        print(f"warning: {gone} is gone: using {WIKIPEDIA} {config}", file=sys.stderr)
    if args.dataset_name == WIKIPEDIA and not args.data_files:
        args.dataset_config_name = config
    return args


def check_output_dir(path: str, overwrite: bool) -> None:
    if os.path.isfile(path) or (os.path.isdir(path) and os.listdir(path)):
        is_data = os.path.exists(f"{path}/dataset_dict.json")
        require(is_data, f"{path} is no data set: choose another --output_dir")
        remedy = "choose another --output_dir, or --overwrite_output_dir True"
        require(overwrite, f"{path} holds a data set: {remedy}")


def check_splits(args, splits: dict) -> None:
    """Each split has rows, but that all text may be held out."""
    all_held_out = args.validation_split_percentage == 100 and not args.validation_files
    for split, counts in splits.items():
        found = f"{split}: {counts['documents']} documents of {counts['tokens']} tokens"
        remedy = "add text, or divide it with --document_separator line"
        if counts["documents"]:
            remedy = f"lower --max_seq_length, {remedy}"
        is_wanted = split == "train" and all_held_out
        require(counts["rows"] or is_wanted, f"{found} fill no row of {args.max_seq_length}: {remedy}")


def print_summary(args, splits: dict, seconds: float) -> None:
    for separator, count in Counter(args.separators.values()).items():
        say(f"documents end at: {separator} in {count} files (--document_separator sets it)")
    for split, counts in splits.items():
        say(f"{split:10} " + ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items()))
    speed = sum(counts["bytes"] for counts in splits.values()) / 1e6 / seconds
    say(f"{seconds:.1f} s, {speed:.1f} MB of text a second, {utils.peak_memory():,.0f} MB of memory")
    say(f"written: {args.output_dir}")


if __name__ == "__main__":
    utils.command_line(main)
