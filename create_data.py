"""Turn text into rows of tokens for masked language modelling, in one pass.

    python create_data.py --dataset_name demo --tokenizer_name train --output_dir demo_data
    python create_data.py --data_files corpus/*.txt --output_dir data
    python create_data.py --output_dir wiki  # all of Wikipedia

The output is what `datasets.load_from_disk` reads: splits train and validation, columns
input_ids and special_tokens_mask. Beside them are the tokenizer and data_card.json.
"""

import ast
import csv
import gc
import glob
import io
import json
import os
import random
import re
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, dropwhile, groupby, islice, pairwise
from pathlib import Path
from pydoc_data.topics import topics

import fsspec
import gigatoken
import numpy as np
import psutil
import pyarrow.parquet
from tokenizers import AddedToken, Tokenizer, processors
from tokenizers.implementations import ByteLevelBPETokenizer
from tqdm import tqdm

import utils
from utils import UserError, boolean, explaining, log, number, require

WIKIPEDIA, DUMP = "wikimedia/wikipedia", "20231101"
SPLITS = ("train", "validation")
SPECIAL = BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
BUFFER = 2_000_000  # bytes encoded and written at a time
# Cuts long texts before white space, as RoBERTa's pre-tokenizer does: behind ASCII, or a byte
# that ends other characters, but no white ones.
PIECES = re.compile(rb"(?s).{250000}.*?[!-~\x8b-\x8d\x8f-\x9e\xa1-\xa7\xaa-\xae\xb0-\xbf](?=\s)|.+")
CACHE = 200_000_000  # bytes that gigatoken's cache, which it never empties, may take
CHECKED = 500  # bytes of each buffer that `tokenizers` encodes, too
TRAINING_SAMPLE = 256_000_000  # bytes that `--tokenizer_name train` learns from
is_blank = re.compile(rb"(?:\s|\xc2\xa0|\xe3\x80\x80)*+").fullmatch  # and wide spaces


def main(argv: list | None = None):
    args = parse_arguments(argv)
    os.environ["RAYON_NUM_THREADS"] = str(args.preprocessing_num_workers)  # gigatoken's
    corpus = find_files(args.data_files) if args.data_files else [args.dataset_name]
    held_out = find_files(args.validation_files or [])
    with utils.atomic_directory(args.output_dir) as folder:
        there = os.listdir(args.output_dir) if os.path.exists(args.output_dir) else []
        may_replace = args.overwrite_output_dir and "dataset_dict.json" in there
        remedy = "choose another, or, if a data set, --overwrite_output_dir True"
        require(may_replace or not there, f"{args.output_dir} exists: {remedy}")
        tokenizer = load_tokenizer(args, corpus)
        splits = write_rows(args, corpus, held_out, tokenizer, folder)
        save_tokenizer(tokenizer, args, f"{folder}/tokenizer")
        files = sorted(Path(folder).glob("*/*"))
        card = {
            "source": corpus,
            "arguments": vars(args),
            "splits": splits,
            "files": {str(p.relative_to(folder)): {"sha256": utils.sha256_of(p)} for p in files},
        }
        Path(folder, "data_card.json").write_text(json.dumps(card, indent=2))
    log(f"written: {args.output_dir}")


def write_rows(args, corpus: list, held_out: list, tokenizer, folder: str) -> dict:
    """Writes both splits; prints and returns what it counted in each."""
    gc.freeze()  # imports are no garbage
    sys.setswitchinterval(5e-4)  # the encoder seldom waits
    writers = create_writers(args, tokenizer, folder)
    documents = assign_splits(args, corpus, held_out)
    # One more thread fills buffers, another encodes them.
    buffers = ahead(fill_buffers(documents, args.line_by_line))
    with tqdm(desc="encoding", unit="B", unit_scale=True, disable=None) as progress:
        for split, size, ids, ends in ahead(encode(buffers, tokenizer)):
            writers[split].add(ids, ends)
            progress.update(size)
    for separator, files in Counter(args.separators.values()).items():
        log(f"{files} text files read with --document_separator {separator}")
    for split, writer in writers.items():
        writer.stream.close()
        counts = writer.counts
        counts["dropped_tokens"] += len(writer.rest)
        found = ", ".join(f"{count:,} {what}" for what, count in counts.items())
        log(f"{split}: {found}")
        may_be_empty = split == "train" and args.validation_split_percentage == 100
        remedy = "lower --max_seq_length, set --document_separator, or add text"
        require(counts["rows"] or may_be_empty, f"{split}: {found}: {remedy}")
    return {split: writer.counts for split, writer in writers.items()}


def assign_splits(args, corpus: list, held_out: list) -> Iterator:
    """Yields (split, document). Held out are files, drawn documents, or the last."""
    for document in read_documents(args, held_out):
        yield "validation", document
    share = 0 if held_out else args.validation_split_percentage / 100
    draw, any_held_out = random.Random(args.seed), bool(held_out)
    documents = islice(read_documents(args, corpus), args.max_documents)
    for document, following in pairwise(chain(documents, [None])):
        is_held_out = draw.random() < share or (following is None and not any_held_out)
        any_held_out |= is_held_out
        yield "validation" if is_held_out else "train", document


def fill_buffers(documents: Iterator, line_by_line: bool) -> Iterator:
    """Yields (split, [(piece of text, whether a document or line ends with it)])."""
    buffers, size = defaultdict(list), Counter()
    for split, document in documents:
        for piece in pieces(document, line_by_line):
            buffers[split].append(piece)
            size[split] += len(piece[0])
            if size[split] >= BUFFER:
                yield split, buffers.pop(split)
                size[split] = 0
    yield from buffers.items()


def pieces(document: bytes, line_by_line: bool) -> Iterator:
    """Yields (piece, whether it is the last) of a document, or of each line."""
    texts = [document]
    if line_by_line:
        texts = (line for line in document.split(b"\n") if line.decode().strip())
    for text in texts:
        for piece in PIECES.finditer(text):
            yield piece[0], piece.end() == len(text)


def encode(buffers: Iterator, tokenizer) -> Iterator:
    """Yields (split, bytes, token ids, where in these documents or lines end)."""
    process, memory_allowed = psutil.Process(), 0
    for split, buffer in buffers:
        if process.memory_info().rss > memory_allowed:  # also at first
            with explaining("--tokenizer_name is not like RoBERTa's: choose another"):
                encoder = gigatoken.Tokenizer.from_json(tokenizer.to_str())
            memory_allowed = process.memory_info().rss + CACHE
        texts, is_end = zip(*buffer)
        layout = encoder.encode_batch(list(texts)).layout
        ids, bounds = np.asarray(layout.content.data), np.asarray(layout.offsets.data)
        # Is gigatoken right? The much slower `tokenizers` must agree on a sample.
        sample = b"\0".join(texts)[:CHECKED].decode(errors="ignore")
        expected = tokenizer.encode(sample, add_special_tokens=False).ids
        same = encoder.encode(sample.encode()).tolist() == expected
        require(same, f"gigatoken differs at {sample[:60]!r}: choose another tokenizer")
        yield split, sum(map(len, texts)), ids, bounds[1:][np.array(is_end)]


def ahead(items: Iterator) -> Iterator:
    """Yields the items; meanwhile a thread makes the next four."""
    thread = ThreadPoolExecutor(1)
    making = deque(thread.submit(next, items, None) for _ in range(4))
    while (item := making.popleft().result()) is not None:
        making.append(thread.submit(next, items, None))
        yield item


def create_writers(args, tokenizer, folder: str) -> dict:
    """Has `datasets` write a placeholder; opens its files anew."""
    import datasets

    kind = "uint16" if tokenizer.get_vocab_size() <= 2**16 else "int32"
    length = -1 if args.line_by_line else args.max_seq_length
    features = datasets.Features(
        input_ids=datasets.List(datasets.Value(kind), length),
        special_tokens_mask=datasets.List(datasets.Value("bool"), length),
    )
    row = {name: [[0] * args.max_seq_length] for name in features}
    placeholder = datasets.Dataset.from_dict(row, features=features)
    datasets.disable_progress_bars()
    datasets.DatasetDict(dict.fromkeys(SPLITS, placeholder)).save_to_disk(folder)
    return {name: SplitWriter(f"{folder}/{name}", features.arrow_schema, tokenizer, args) for name in SPLITS}


class SplitWriter:
    """Writes the tokens of a split as rows of an Arrow stream."""

    def __init__(self, folder: str, schema, tokenizer, args):
        self.schema, self.packed = schema, not args.line_by_line
        self.stream = pyarrow.ipc.new_stream(f"{folder}/data-00000-of-00001.arrow", schema)
        self.bos, _, self.eos, *_ = special = list(map(tokenizer.token_to_id, SPECIAL))
        self.is_special = np.isin(np.arange(tokenizer.get_vocab_size()), special)
        self.room = args.max_seq_length - 2  # beside <s> and </s>
        self.rest = np.empty(0, schema.field(0).type.value_type.to_pandas_dtype())
        self.counts = dict.fromkeys(("documents", "tokens", "rows", "dropped_tokens"), 0)

    def add(self, ids: np.ndarray, ends: np.ndarray):
        """Takes token ids, and where in these documents or lines end."""
        self.counts["documents"] += len(ends)
        self.counts["tokens"] += len(ids)
        ends = len(self.rest) + ends
        ids = np.concatenate([self.rest, ids.astype(self.rest.dtype)])
        if self.packed:  # documents, a </s> after each, are one stream, cut into rows
            ids = np.insert(ids, ends, self.eos)
            ends = np.arange(self.room, len(ids) + 1, self.room)
        ids, self.rest = np.split(ids, [ends.max(initial=0)])
        rows = pyarrow.ListArray.from_arrays(np.append(0, ends).astype(np.int32), ids)
        rows = pyarrow.compute.list_slice(rows, 0, self.room)  # lines may be longer
        self.counts["dropped_tokens"] += len(ids) - len(rows.flatten())
        ids, lengths = rows.flatten().to_numpy(), rows.value_lengths().to_numpy()
        ends = np.cumsum(lengths)
        places = np.column_stack([ends - lengths, ends]).ravel()
        ids = np.insert(ids, places, np.tile([self.bos, self.eos], len(ends)))
        starts = np.append(0, np.cumsum(lengths + 2)).astype(np.int32)
        columns = [pyarrow.ListArray.from_arrays(starts, x) for x in (ids, self.is_special[ids])]
        self.stream.write_table(pyarrow.table(columns, names=self.schema.names).cast(self.schema))
        self.counts["rows"] += len(lengths)


# -------- tokenizer
def load_tokenizer(args, corpus: list):
    """Learns a tokenizer, or loads one, which must be like RoBERTa's."""
    name, first = args.tokenizer_name, [BOS, PAD, EOS, UNK]  # ids 0 to 3
    remedy = "give `train`, a hub id, or a directory with tokenizer.json"
    with explaining(f"cannot load the tokenizer {name}: {remedy}"):
        if name == "train":
            sample = islice(training_sample(args, corpus), args.max_documents)
            tokenizer = ByteLevelBPETokenizer()
            tokenizer.train_from_iterator(sample, args.vocab_size - 1, 0, sys.stderr.isatty(), first)
        elif not os.path.isdir(name):
            tokenizer = Tokenizer.from_pretrained(name)
        elif os.path.exists(f"{name}/tokenizer.json"):
            tokenizer = Tokenizer.from_file(f"{name}/tokenizer.json")
        else:
            tokenizer = ByteLevelBPETokenizer.from_file(f"{name}/vocab.json", f"{name}/merges.txt")
    if isinstance(tokenizer, ByteLevelBPETokenizer):  # give it what makes it RoBERTa's
        tokenizer.add_special_tokens([*first, AddedToken(MASK, lstrip=True)])
        bos, eos = ((token, tokenizer.token_to_id(token)) for token in (BOS, EOS))
        tokenizer.post_processor = processors.RobertaProcessing(eos, bos, True, False)
    tokenizer.no_truncation()  # that transformers stored
    tokenizer.no_padding()
    # Refused is what gigatoken ignores, or cannot encode in PIECES.
    splitter, ids = tokenizer.pre_tokenizer, range(tokenizer.get_vocab_size())
    added = tokenizer.get_added_tokens_decoder().values()
    expected = {
        "ByteLevel with use_regex": getattr(splitter, "use_regex", False),
        "no add_prefix_space": not getattr(splitter, "add_prefix_space", True),
        "no normalizer": tokenizer.normalizer is None,
        "no single_word": not any(token.single_word for token in added),
        "ids without gaps": None not in map(tokenizer.id_to_token, ids),
        " ".join(SPECIAL): None not in map(tokenizer.token_to_id, SPECIAL),
    }
    lacking = ", ".join(what for what, is_there in expected.items() if not is_there)
    require(not lacking, f"{name} is not like RoBERTa's ({lacking}): choose another")
    return tokenizer


def training_sample(args, corpus: list) -> Iterator[str]:
    """About TRAINING_SAMPLE bytes: the first documents of each file or data set."""
    used = 0
    for files, path in enumerate(corpus, start=1):
        for document in read_documents(args, [path]):
            if used >= TRAINING_SAMPLE * files / len(corpus):
                break
            yield document.decode()
            used += len(document)


def save_tokenizer(tokenizer, args, folder: str):
    """Writes what `tokenizers`, transformers and PaddleNLP load."""
    os.mkdir(folder)
    tokenizer.save(f"{folder}/tokenizer.json", pretty=False)
    tokenizer.model.save(folder)  # merges.txt
    vocab = {tokenizer.id_to_token(i): i for i in range(tokenizer.get_vocab_size())}
    Path(folder, "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), "utf-8")
    config = dict(bos_token=BOS, cls_token=BOS, eos_token=EOS, sep_token=EOS, unk_token=UNK)
    config.update(pad_token=PAD, mask_token=MASK, model_max_length=max(512, args.max_seq_length))
    config.update(tokenizer_class="RobertaBPETokenizer", add_prefix_space=False)  # PaddleNLP's
    Path(folder, "tokenizer_config.json").write_text(json.dumps(config))


# -------- readers
def find_files(patterns: list) -> list:
    """The files that paths, globs, URLs and directories stand for, each once."""
    found = {}
    for pattern in patterns:
        is_known = "://" in pattern or os.path.exists(pattern)
        matches = [pattern] if is_known else glob.glob(pattern, recursive=True)
        below = [str(path) for match in matches for path in Path(match).rglob("*")]
        files = [path for path in [*matches, *below] if not os.path.isdir(path)]
        readable = sorted(filter(reader_of, files))
        require(readable, f"nothing to read at {pattern}: give {TYPES}")
        found |= {os.path.realpath(path): path for path in readable}
    return list(found.values())


def read_documents(args, paths: list) -> Iterator[bytes]:
    """The documents of files, or of a data set."""
    for path in paths:
        reader, position = reader_of(path) or read_data_set, 0
        try:
            for record in reader(path, args):
                document = text_of(record, args.text_column)
                position += 1
                if document:
                    yield document
        except Exception as error:
            remedy = "it must be well-formed, in UTF-8, with text in --text_column"
            if reader is read_data_set:
                remedy = "check --dataset_config_name and --split, or use --data_files"
            reason = " ".join(str(error).split())[:500]
            raise UserError(f"cannot read {path} after record {position} ({reason}): {remedy}") from error


def text_of(record, column: str) -> bytes:
    """The text of a record, or of its column; b"" for white space alone."""
    text = record.get(column, record) if isinstance(record, dict) else record
    if isinstance(text, str | None):
        text = (text or "").encode(errors="replace")  # lone surrogates: ?
    if not isinstance(text, bytes):
        found = ", ".join(text) if isinstance(text, dict) else type(text).__name__
        raise ValueError(f"no text in column {column!r}, but {found:.300}")
    text = text.strip(b"\r\n")
    return b"" if text.decode().isspace() else text  # raises if not UTF-8


def lines_of(path: str) -> Iterator[bytes]:
    with fsspec.open(path, compression="infer") as raw, io.BufferedReader(raw, 2**18) as file:
        yield file.readline().removeprefix(b"\xef\xbb\xbf")  # the byte-order mark
        yield from file


def read_txt(path: str, args) -> Iterator[bytes]:
    """Documents end at empty lines, at each line or with the file."""
    separator = args.document_separator
    if separator is None:
        start = groupby(islice(lines_of(path), 10_000), is_blank)
        separator = "empty_line" if sum(not is_empty for is_empty, _ in start) > 1 else "line"
    args.separators[path] = separator
    documents = lines = lines_of(path)
    if separator != "line":
        ends = is_blank if separator == "empty_line" else lambda line: False
        documents = (b"".join(group) for is_end, group in groupby(lines, ends) if not is_end)
    for text in documents:
        yield text.replace(b"\r\n", b"\n") if b"\r" in text else text


def read_json(path: str, args) -> Iterable:
    """One JSON value a line, or one array, which is read whole."""
    lines = filter(bytes.strip, lines_of(path))
    first = next(lines, b"[]")
    if first.lstrip().startswith(b"["):
        return json.loads(b"".join([first, *lines]))
    return map(json.loads, chain([first], lines))


def read_csv(path: str, args) -> Iterator[dict]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(map(bytes.decode, dropwhile(bytes.isspace, lines_of(path))), strict=True)
    for record in reader:
        if None in record or None in record.values():
            raise ValueError(f"line {reader.line_num} has not {len(reader.fieldnames)} fields")
        yield record


def read_parquet(path: str, args) -> Iterator[dict]:
    with fsspec.open(path, "rb") as source:
        file = pyarrow.parquet.ParquetFile(source, pre_buffer=False)
        columns = [args.text_column] if args.text_column in file.schema_arrow.names else None
        for batch in file.iter_batches(64, columns=columns, use_threads=False):
            yield from batch.to_pylist()


def read_data_set(name: str, args) -> Iterable:
    """Streams a data set of the hub: memory and disk do not grow with it."""
    import datasets

    if name == "demo":
        return demo_documents()
    pyarrow.set_cpu_count(1)  # more would keep the encoder waiting
    return datasets.load_dataset(name, args.dataset_config_name, split=args.split, streaming=True)


def demo_documents() -> Iterator[str]:
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


READERS = {".txt": read_txt, ".jsonl": read_json, ".json": read_json, ".csv": read_csv, ".parquet": read_parquet}
TYPES = f"{', '.join(READERS)}, all but the last also as .gz, .bz2, .xz"


def reader_of(path: str):
    unpacked = re.sub(r"\.(gz|bz2|xz)$", "", path.lower())
    return READERS.get(os.path.splitext(unpacked)[1])


def parse_arguments(argv: list | None):
    parser = utils.ArgumentParser("Turn text into rows of tokens.")
    parser.set_defaults(separators={})  # of each text file
    group = parser.add_argument_group
    add = group("source of the text").add_mutually_exclusive_group().add_argument
    add("--data_files", nargs="+", help=f"files, globs, URLs, directories of {TYPES}")
    add("--dataset_name", default=WIKIPEDIA, help="data set on the hub, or `demo`")
    add = group("data").add_argument
    add("--output_dir", default="wiki", help="directory to write")
    add("--overwrite_output_dir", type=boolean, default=False, help="replace a data set")
    add("--validation_files", nargs="+", help="held out instead of a share")
    add("--document_separator", choices=["empty_line", "line", "file"], help="in text files")
    add("--dataset_config_name", help="configuration of the data set")
    add("--split", default="train", help="split of a data set")
    add("--text_column", default="text", help="column with the text")
    add("--max_documents", type=number(int, 1), help="take so many only")
    add("--validation_split_percentage", type=number(float, 0, 100), default=1, help="held out")
    add("--seed", type=number(int, 0, 2**63), default=42, help="draws what is held out")
    add = group("tokens").add_argument
    # The original page has three hyphens once.
    add("--tokenizer_name", "---tokenizer_name", default="roberta-base", help="hub id, directory or `train`")
    add("--vocab_size", type=number(int, 262), default=50265, help="tokens to `train`")
    add("--max_seq_length", type=number(int, 4), default=512, help="tokens in a row")
    add("--line_by_line", type=boolean, default=False, help="a row for each line")
    add("--preprocessing_num_workers", type=number(int, 1), default=os.cpu_count(), help="threads")
    args = parser.parse_args(argv)
    config = args.dataset_config_name or f"{DUMP}.en"
    if args.dataset_name == "wikipedia":  # of the original page
        args.dataset_name, config = WIKIPEDIA, f"{DUMP}.{config.rpartition('.')[2]}"
        print(f"warning: wikipedia is gone: reading {WIKIPEDIA} {config}", file=sys.stderr)
    if args.dataset_name == WIKIPEDIA:
        args.dataset_config_name = config
    return args


if __name__ == "__main__":
    utils.command_line(main)
