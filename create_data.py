"""Turn text into rows of tokens for masked language modelling, in one pass.

    python create_data.py --dataset_name demo --tokenizer_name train --output_dir demo_data
    python create_data.py --data_files corpus/*.txt --output_dir data
    python create_data.py --output_dir wiki  # all of Wikipedia

The output is what `datasets.load_from_disk` reads: splits train and validation, columns
input_ids and special_tokens_mask. Beside them are the tokenizer and data_card.json.
"""

import ast
import csv
import functools
import gc
import glob
import io
import json
import os
import random
import re
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
from utils import UserError, boolean, explaining, log, number

WIKIPEDIA, DUMP = "wikimedia/wikipedia", "20231101"
SPECIAL = BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
BUFFER = 2_000_000  # bytes of a split that are encoded and written at a time
AHEAD = 4  # buffers that are filled, and as many that are encoded, before they are needed
CACHE = 200_000_000  # bytes that gigatoken's cache, which it never empties, may take
CHECKED = 500  # bytes of each buffer that `tokenizers` encodes, too: it takes 50 times as long
TRAINING_SAMPLE = 256_000_000  # bytes that `--tokenizer_name train` learns from
GUESSED_FROM = 10_000  # lines of a text file in which an empty one is looked for

# Cuts a long text into pieces of 250,000 bytes or more that have the tokens of the whole: at once, a
# text takes some 50 times its size. RoBERTa's pre-tokenizer looks forward only, and always begins a
# new word at white space behind a character that is none. So a cut is before ASCII white space, behind
# a visible ASCII character or the last byte of a longer one (0x80 to 0xbf). Left out of the latter are
# the bytes that white characters end with:
#   0x80 to 0x8a  U+2000 to U+200A; 0x80 also U+1680 and U+3000, 0x85 also U+0085
#   0x8e          U+180E, white before Unicode 6.3
#   0x9f, 0xa0    U+205F, U+00A0
#   0xa8, 0xa9    U+2028, U+2029
#   0xaf          U+202F
PIECES = re.compile(rb"(?s).{250000}.*?[!-~\x8b-\x8d\x8f-\x9e\xa1-\xa7\xaa-\xae\xb0-\xbf](?=\s)|.+")
BLANK = re.compile(rb"(?:\s|\xc2\xa0|\xe3\x80\x80)*+")  # with the no-break and the ideographic space


def main(argv: list | None = None):
    args = parse_arguments(argv)
    os.environ["RAYON_NUM_THREADS"] = str(args.preprocessing_num_workers)  # gigatoken's
    corpus = find_corpus(args)
    held_out = find_files(args.validation_files or [], args.text_column, args.document_separator)
    with utils.atomic_directory(args.output_dir) as folder:
        check_output_dir(args.output_dir, args.overwrite_output_dir)
        if args.tokenizer_name == "train":
            sample = training_sample(corpus, args.max_documents)
            tokenizer = train_tokenizer(sample, args.vocab_size)
        else:
            tokenizer = load_tokenizer(args.tokenizer_name)
        check_tokenizer(args.tokenizer_name, tokenizer)
        splits = write_rows(args, corpus, held_out, tokenizer, folder)
        save_tokenizer(tokenizer, f"{folder}/tokenizer", model_max_length=max(512, args.max_seq_length))
        files = sorted(Path(folder).glob("*/*"))
        card = {
            "source": [source.path for source in corpus],
            "arguments": vars(args),
            "splits": splits,
            "files": {str(p.relative_to(folder)): {"sha256": utils.sha256_of(p)} for p in files},
        }
        Path(folder, "data_card.json").write_text(json.dumps(card, indent=2))
    log(f"written: {args.output_dir}")


# -------- from documents to rows
def write_rows(args, corpus: list, held_out: list, tokenizer: Tokenizer, folder: str) -> dict:
    """Writes both splits; prints and returns what it counted in each."""
    gc.freeze()  # the collector need not walk what the imports made: 0.1 s
    sys.setswitchinterval(5e-4)  # seconds, not 5e-3: the thread that encodes waits less for the others
    writers = create_writers(args, tokenizer, folder)

    # One more thread reads documents and fills buffers, another encodes them, this one writes.
    documents = assign_splits(args, corpus, held_out)
    buffers = ahead(fill_buffers(documents, args.line_by_line))
    with tqdm(desc="encoding", unit="B", unit_scale=True, disable=None) as progress:
        for split, size, ids, ends in ahead(encode(buffers, tokenizer)):
            writers[split].add(ids, ends)
            progress.update(size)

    separators = Counter(source.separated_by for source in [*corpus, *held_out] if source.separated_by)
    for separator, files in separators.items():
        log(f"{files} text files read with --document_separator {separator}")
    for split, writer in writers.items():
        counts = writer.close()
        found = ", ".join(f"{count:,} {what}" for what, count in counts.items())
        log(f"{split}: {found}")
        may_be_empty = split == "train" and args.validation_split_percentage == 100
        if not counts["rows"] and not may_be_empty:
            raise UserError(f"{split}: {found}: lower --max_seq_length, set --document_separator, or add text")
    return {split: writer.counts for split, writer in writers.items()}


def assign_splits(args, corpus: list, held_out: list) -> Iterator[tuple[str, bytes]]:
    """Yields (split, document). Held out are files, or else documents: those drawn, or the last."""
    for document in read_documents(held_out):
        yield "validation", document
    share = 0 if held_out else args.validation_split_percentage / 100
    draw, any_held_out = random.Random(args.seed), bool(held_out)
    documents = islice(read_documents(corpus), args.max_documents)
    for document, following in pairwise(chain(documents, [None])):
        is_last_chance = following is None and not any_held_out
        if draw.random() < share or is_last_chance:
            any_held_out = True
            yield "validation", document
        else:
            yield "train", document


def fill_buffers(documents: Iterator, line_by_line: bool) -> Iterator[tuple[str, list]]:
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
            memory_allowed = process.memory_info().rss + CACHE
        texts, is_end = zip(*buffer)
        layout = encoder.encode_batch(list(texts)).layout
        ids, bounds = np.asarray(layout.content.data), np.asarray(layout.offsets.data)

        # Is gigatoken right? The much slower `tokenizers` must agree on a sample of each buffer.
        sample = b"\0".join(texts)[:CHECKED].decode(errors="ignore")
        expected = tokenizer.encode(sample, add_special_tokens=False).ids
        if encoder.encode(sample.encode()).tolist() != expected:
            raise UserError(f"gigatoken differs at {sample[:60]!r}: choose another tokenizer")
        yield split, sum(map(len, texts)), ids, bounds[1:][np.array(is_end)]


def ahead(items: Iterator) -> Iterator:
    """Yields the items; meanwhile a thread makes the next ones."""
    thread = ThreadPoolExecutor(max_workers=1)
    making = deque(thread.submit(next, items, None) for _ in range(AHEAD))
    while (item := making.popleft().result()) is not None:
        making.append(thread.submit(next, items, None))
        yield item


def create_writers(args, tokenizer: Tokenizer, folder: str) -> dict:
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
    datasets.DatasetDict(dict.fromkeys(["train", "validation"], placeholder)).save_to_disk(folder)
    return {
        split: SplitWriter(
            path=f"{folder}/{split}/data-00000-of-00001.arrow",
            schema=features.arrow_schema,
            tokenizer=tokenizer,
            max_seq_length=args.max_seq_length,
            packed=not args.line_by_line,
        )
        for split in ["train", "validation"]
    }


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
        special_ids = [tokenizer.token_to_id(token) for token in SPECIAL]
        self.is_special = np.isin(np.arange(tokenizer.get_vocab_size()), special_ids)
        self.room = max_seq_length - 2  # <s> and </s> take two places of a row
        dtype = schema.field("input_ids").type.value_type.to_pandas_dtype()
        self.rest = np.empty(0, dtype)  # tokens that wait until a row is full, or a line has ended
        self.counts = dict.fromkeys(("documents", "tokens", "rows", "dropped_tokens"), 0)

    def add(self, ids: np.ndarray, ends: np.ndarray):
        """Takes token ids (integers [tokens]), and where in them documents or lines end (int [number])."""
        self.counts["documents"] += len(ends)
        self.counts["tokens"] += len(ids)
        tokens = np.concatenate([self.rest, ids.astype(self.rest.dtype)])
        ends = len(self.rest) + ends
        if self.packed:
            tokens = join_documents(tokens, ends, self.eos)
            ends = np.arange(self.room, len(tokens) + 1, self.room)
        pieces, self.rest = cut_into_rows(tokens, ends, self.room)
        self.counts["dropped_tokens"] += len(tokens) - len(self.rest) - len(pieces.flatten())
        rows = add_special_tokens(pieces, self.bos, self.eos)
        self.write(rows)
        self.counts["rows"] += len(rows)

    def write(self, rows: pyarrow.ListArray):
        is_special = self.is_special[rows.values.to_numpy()]
        columns = [rows, pyarrow.ListArray.from_arrays(rows.offsets, is_special)]
        self.stream.write_table(pyarrow.table(columns, names=self.schema.names).cast(self.schema))

    def close(self) -> dict:
        """Finishes the file; returns the counts."""
        self.stream.close()
        self.counts["dropped_tokens"] += len(self.rest)
        return self.counts


def join_documents(tokens: np.ndarray, ends: np.ndarray, eos: int) -> np.ndarray:
    """The stream of documents, with a </s> after each."""
    return np.insert(tokens, ends, eos)


def cut_into_rows(tokens: np.ndarray, ends: np.ndarray, room: int) -> tuple[pyarrow.ListArray, np.ndarray]:
    """Cuts the tokens at `ends`, each piece after `room` tokens; returns the pieces and what follows the last end."""
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
    return as_robertas(tokenizer)


def load_tokenizer(name: str) -> Tokenizer:
    """Loads tokenizer.json, or vocab.json and merges.txt, of a directory, or a hub id's."""
    remedy = "give `train`, a hub id, or a directory with tokenizer.json"
    with explaining(f"cannot load the tokenizer {name}: {remedy}"):
        if not os.path.isdir(name):
            tokenizer = Tokenizer.from_pretrained(name)
        elif os.path.exists(f"{name}/tokenizer.json"):
            tokenizer = Tokenizer.from_file(f"{name}/tokenizer.json")
        else:
            tokenizer = as_robertas(ByteLevelBPETokenizer.from_file(f"{name}/vocab.json", f"{name}/merges.txt"))
    # transformers' save_pretrained() may have stored both.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def as_robertas(tokenizer: ByteLevelBPETokenizer) -> Tokenizer:
    """Gives a byte-level BPE RoBERTa's special tokens, and the <s> and </s> around a text."""
    mask = AddedToken(MASK, lstrip=True)  # it takes the space before it
    tokenizer.add_special_tokens([BOS, PAD, EOS, UNK, mask])
    tokenizer.post_processor = processors.RobertaProcessing(
        sep=(EOS, tokenizer.token_to_id(EOS)),
        cls_token=(BOS, tokenizer.token_to_id(BOS)),
        trim_offsets=True,
        add_prefix_space=False,
    )
    return Tokenizer.from_str(tokenizer.to_str())


def check_tokenizer(name: str, tokenizer: Tokenizer):
    """Refuses what gigatoken ignores, and what has tokens across the cuts of PIECES."""
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
    lacking = [what for what, is_there in expected.items() if not is_there]
    if lacking:
        raise UserError(f"{name} is not like RoBERTa's ({', '.join(lacking)}): choose another")


def training_sample(corpus: list, max_documents: int | None) -> Iterator[str]:
    """About TRAINING_SAMPLE bytes: the first documents of each file or data set."""
    return islice(first_documents(corpus), max_documents)


def first_documents(corpus: list) -> Iterator[str]:
    used = 0
    for files, source in enumerate(corpus, start=1):
        for document in read_documents([source]):
            if used >= TRAINING_SAMPLE * files / len(corpus):
                break
            yield document.decode()
            used += len(document)


def save_tokenizer(tokenizer: Tokenizer, folder: str, model_max_length: int):
    """Writes what `tokenizers` and transformers (tokenizer.json) and PaddleNLP (all other files) load."""
    os.mkdir(folder)
    tokenizer.save(f"{folder}/tokenizer.json", pretty=False)
    tokenizer.model.save(folder)  # merges.txt, and vocab.json without the added tokens
    vocab = {tokenizer.id_to_token(i): i for i in range(tokenizer.get_vocab_size())}
    Path(folder, "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), "utf-8")
    config = {
        "bos_token": BOS,
        "cls_token": BOS,
        "eos_token": EOS,
        "sep_token": EOS,
        "unk_token": UNK,
        "pad_token": PAD,
        "mask_token": MASK,
        "model_max_length": model_max_length,
        "tokenizer_class": "RobertaBPETokenizer",  # PaddleNLP's name of it
        "add_prefix_space": False,
    }
    Path(folder, "tokenizer_config.json").write_text(json.dumps(config))


# -------- readers
@dataclass
class Source:
    """A file, or a data set: where it is, and how it is read."""

    path: str
    reader: Callable[["Source"], Iterable]  # gives its records: texts, or columns with their names
    text_column: str
    separator: str | None = None  # what the documents of a text file end at; None: to be guessed
    separated_by: str | None = None  # noted where a text file is read


def find_corpus(args) -> list[Source]:
    """The files of --data_files, or the data set."""
    if args.data_files:
        return find_files(args.data_files, args.text_column, args.document_separator)
    if args.dataset_name == "demo":
        return [Source("demo", read_demo, args.text_column)]
    name, config = data_set_of(args)
    reader = functools.partial(read_data_set, config=config, split=args.split)
    return [Source(name, reader, args.text_column)]


def find_files(patterns: list, text_column: str, separator: str | None) -> list[Source]:
    """The files that paths, globs, URLs and directories stand for, in order, each once."""
    found = {}
    for pattern in patterns:
        is_known = "://" in pattern or os.path.exists(pattern)
        matches = [pattern] if is_known else glob.glob(pattern, recursive=True)
        below = [str(path) for match in matches for path in Path(match).rglob("*")]
        files = [path for path in [*matches, *below] if not os.path.isdir(path)]
        readable = sorted(filter(reader_of, files))
        if not readable:
            raise UserError(f"nothing to read at {pattern}: give {TYPES}")
        found |= {os.path.realpath(path): path for path in readable}
    return [Source(path, reader_of(path), text_column, separator) for path in found.values()]


def read_documents(sources: list) -> Iterator[bytes]:
    """The documents of files, or of a data set, in UTF-8. An error says what was read, and how far."""
    for source in sources:
        position = 0
        try:
            for record in source.reader(source):
                document = text_of(record, source.text_column)
                position += 1
                if document:
                    yield document
        except Exception as error:  # unpacking and fetching raise errors of many kinds
            remedy = "it must be well-formed, in UTF-8, with text in --text_column"
            if not reader_of(source.path):
                remedy = "check --dataset_config_name and --split, or use --data_files"
            reason = " ".join(str(error).split())[:500]  # a hub's lists the configurations there are
            raise UserError(f"cannot read {source.path} after record {position} ({reason}): {remedy}") from error


def text_of(record: bytes | str | dict | None, column: str) -> bytes:
    """The text of a record, or of its column, without line ends around it; b"" for white space alone."""
    text = record.get(column, record) if isinstance(record, dict) else record
    if text is None:
        return b""
    if isinstance(text, str):
        text = text.encode(errors="replace")  # lone surrogates, which JSON can hold and UTF-8 cannot: ?
    if not isinstance(text, bytes):
        found = ", ".join(text) if isinstance(text, dict) else type(text).__name__
        raise ValueError(f"no text in column {column!r}, but {found:.300}")
    text = text.strip(b"\r\n")
    return b"" if text.decode().isspace() else text  # raises if not UTF-8


def lines_of(path: str) -> Iterator[bytes]:
    with fsspec.open(path, compression="infer") as raw, io.BufferedReader(raw, 2**18) as file:
        yield file.readline().removeprefix(b"\xef\xbb\xbf")  # the byte-order mark
        yield from file


def is_blank(line: bytes) -> bool:
    return BLANK.fullmatch(line) is not None


def read_txt(source: Source) -> Iterator[bytes]:
    """Documents end at empty lines, at each line or with the file."""
    source.separated_by = source.separator
    if source.separator is None:
        source.separated_by = guess_separator(islice(lines_of(source.path), GUESSED_FROM))
    lines = lines_of(source.path)
    if source.separated_by == "line":
        documents = lines
    elif source.separated_by == "empty_line":
        documents = (b"".join(group) for is_end, group in groupby(lines, is_blank) if not is_end)
    else:
        documents = [b"".join(lines)]
    for text in documents:
        # The condition is quicker than to look for two characters.
        yield text.replace(b"\r\n", b"\n") if b"\r" in text else text


def guess_separator(lines: Iterator[bytes]) -> str:
    """empty_line where one stands between two others, else line."""
    groups = sum(not is_empty for is_empty, _ in groupby(lines, is_blank))
    return "empty_line" if groups > 1 else "line"


def read_json(source: Source) -> Iterable:
    """One JSON value a line, or one array, which is read whole."""
    lines = filter(bytes.strip, lines_of(source.path))
    first = next(lines, b"[]")
    if first.lstrip().startswith(b"["):
        return json.loads(b"".join([first, *lines]))
    return map(json.loads, chain([first], lines))


def read_csv(source: Source) -> Iterator[dict]:
    csv.field_size_limit(2**31 - 1)
    lines = dropwhile(bytes.isspace, lines_of(source.path))
    reader = csv.DictReader(map(bytes.decode, lines), strict=True)
    for record in reader:
        if None in record or None in record.values():
            raise ValueError(f"line {reader.line_num} has not {len(reader.fieldnames)} fields")
        yield record


def read_parquet(source: Source) -> Iterator[dict]:
    with fsspec.open(source.path, "rb") as content:
        file = pyarrow.parquet.ParquetFile(content, pre_buffer=False)
        columns = [source.text_column] if source.text_column in file.schema_arrow.names else None
        for batch in file.iter_batches(64, columns=columns, use_threads=False):
            yield from batch.to_pylist()


def read_data_set(source: Source, config: str | None, split: str) -> Iterable:
    """Streams a data set of the hub: memory and disk do not grow with it."""
    import datasets

    pyarrow.set_cpu_count(1)  # more threads of its would only keep the encoder waiting
    return datasets.load_dataset(source.path, config, split=split, streaming=True)


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
    ".jsonl": read_json,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
TYPES = f"{', '.join(READERS)}, all but the last also as .gz, .bz2, .xz"


def reader_of(path: str) -> Callable | None:
    unpacked = re.sub(r"\.(gz|bz2|xz)$", "", path.lower())
    return READERS.get(os.path.splitext(unpacked)[1])


# -------- arguments
def data_set_of(args) -> tuple[str, str | None]:
    """The data set's name on the hub and its configuration; Wikipedia's by default."""
    config = args.dataset_config_name or f"{DUMP}.en"
    if args.dataset_name == "wikipedia":  # of the original page; it can no longer be loaded
        config = f"{DUMP}.{config.rpartition('.')[2]}"
        print(f"warning: wikipedia is gone: reading {WIKIPEDIA} {config}", file=sys.stderr)
        return WIKIPEDIA, config
    if args.dataset_name == WIKIPEDIA:
        return WIKIPEDIA, config
    return args.dataset_name, args.dataset_config_name


def check_output_dir(path: str, may_overwrite: bool):
    there = os.listdir(path) if os.path.exists(path) else []
    if not there or (may_overwrite and "dataset_dict.json" in there):
        return
    raise UserError(f"{path} exists: choose another, or, if a data set, --overwrite_output_dir True")


def parse_arguments(argv: list | None):
    parser = utils.ArgumentParser("Turn text into rows of tokens.")
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
    return parser.parse_args(argv)


if __name__ == "__main__":
    utils.command_line(main)
