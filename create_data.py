"""Turn text into rows of tokens for masked language modelling: one streaming pass, memory bounded.

    python create_data.py --dataset_name demo --tokenizer_name train --vocab_size 8192 \
        --max_seq_length 128 --output_dir demo_data                                        # no download at all
    python create_data.py --data_files corpus/*.txt --tokenizer_name roberta-base --output_dir data
    python create_data.py --output_dir wiki                                                # all of Wikipedia

The output is what `datasets.load_from_disk` reads (splits train and validation, columns input_ids and
special_tokens_mask), with the tokenizer in OUTPUT_DIR/tokenizer and a record of the run in data_card.json.
"""

import ast
import codecs
import contextlib
import csv
import functools
import gc
import glob
import gzip
import hashlib
import io
import itertools
import json
import os
import pathlib
import shlex
import shutil
import sys
import sysconfig
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import numpy as np

from utils import (
    ArgumentParser,
    UserError,
    all_tokens,
    atomic_directory,
    boolean,
    brief,
    command_line,
    number,
    peak_memory,
    recover_directory,
)

RETIRED_DATASET = "wikipedia"  # a script data set, and its dumps: neither can be loaded any more
DEFAULT_DATASET, DEFAULT_DUMP = "wikimedia/wikipedia", "20231101"
SPLITS = ("train", "validation")
BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"  # RoBERTa's ids 0 to 3, and the last id
BATCH_CHARACTERS = 4_000_000  # text encoded at a time
ROWS_PER_RECORD_BATCH = 2048  # rows written at a time: 2 MB at 512 tokens
ENCODER_LIFETIME = 500_000_000  # bytes of text after which gigatoken, which never empties its cache, is made anew
TRAINING_SAMPLE = 256_000_000  # characters that `--tokenizer_name train` learns from, at most
CHECKED_BYTES, CHECKED_SHARE = 50_000, 0.001  # text compared with `tokenizers`: so much, and this share of all
GOLDEN_RATIO = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio, the increment of splitmix64


@functools.cache  # once for each message: some corpora are read twice
def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


# ---------------------------------------------------------------- documents


def open_binary(path: str):
    return gzip.open(path) if path.endswith(".gz") else open(path, "rb")


@contextlib.contextmanager
def open_text(path: str, newline: str | None = None):
    """Opens a UTF-8 file or its .gz form, without the byte-order mark; CRLF becomes LF unless newline is ""."""
    with open_binary(path) as binary:
        yield io.TextIOWrapper(binary, encoding="utf-8-sig", newline=newline)


def has_empty_line_inside(path: str) -> bool:
    with open_text(path) as lines:
        texts = (True for empty, _ in itertools.groupby(lines, str.isspace) if not empty)
        return next(texts, False) and next(texts, False)


def read_txt(path: str, column: str) -> Iterator[str]:
    """A document ends at an empty line; in a file without empty lines, each line is one."""
    line_is_document = not has_empty_line_inside(path)
    if line_is_document:
        warn(f"{path} has no empty lines between documents: each line is taken as one document")
    with open_text(path) as lines:
        if line_is_document:
            documents = (line for line in lines if not line.isspace())
        else:
            documents = ("".join(group) for empty, group in itertools.groupby(lines, str.isspace) if not empty)
        yield from (document.removesuffix("\n") for document in documents)


def read_json(path: str, column: str) -> Iterator:
    """One JSON value a line; a .json file may instead hold one array, which is read whole."""
    with open_text(path) as lines:
        first = next((line for line in lines if not line.isspace()), "")
        lines.seek(0)
        if ".json" in pathlib.Path(path).suffixes and first.lstrip().startswith("["):
            yield from json.load(lines)
        else:
            yield from ("" if line.isspace() else json.loads(line.rstrip()) for line in lines)


def read_csv(path: str, column: str) -> Iterator[dict]:
    csv.field_size_limit(2**31 - 1)
    with open_text(path, newline="") as lines:
        yield from csv.DictReader(lines, strict=True)


def read_parquet(path: str, column: str) -> Iterator[dict]:
    from pyarrow import parquet

    with open_binary(path) as source, tempfile.TemporaryFile() as unpacked:
        if path.endswith(".gz"):  # Parquet is read from its end
            shutil.copyfileobj(source, unpacked)
            source = unpacked
        file = parquet.ParquetFile(source)
        text_of(dict.fromkeys(file.schema_arrow.names), column, path)
        for batch in file.iter_batches(batch_size=256, columns=[column]):
            yield from batch.to_pylist()


READERS = {".txt": read_txt, ".jsonl": read_json, ".json": read_json, ".csv": read_csv, ".parquet": read_parquet}
TYPES = f"{', '.join(READERS)}, each also as .gz"


def reader_of(path: str) -> Callable | None:
    return READERS.get(pathlib.Path(path.removesuffix(".gz")).suffix)


def text_of(record, column: str, where: str) -> str:
    """The text of a record: a string, or a mapping whose `column` is a string or None."""
    text = record
    if isinstance(record, dict):
        if column not in record:
            raise UserError(
                f"{where}: no column {column!r}, but {', '.join(map(str, record))}: name one with --text_column"
            )
        text = record[column] or ""
    if not isinstance(text, str):
        raise UserError(f"{where}: text is expected in column {column!r}, not a {type(text).__name__}")
    return text


def file_documents(paths: list, column: str) -> Iterator[str]:
    for path in paths:
        position = 0
        try:
            for position, record in enumerate(reader_of(path)(path, column), start=1):
                yield text_of(record, column, f"{path}, record {position}")
        except UnicodeDecodeError:
            raise UserError(f"{path}: byte {undecodable_byte(path)} is not UTF-8; convert it (iconv does)") from None
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {position + error.lineno}: malformed JSON ({error.msg})") from None
        except (OSError, EOFError, zlib.error, csv.Error, ValueError, RecursionError) as error:
            raise UserError(f"cannot read {path} beyond record {position}: {brief(error)}") from None


def undecodable_byte(path: str) -> int:
    """The offset of the first byte that is not UTF-8 (in the uncompressed text of a .gz file)."""
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
    with open_binary(path) as binary:
        for block in itertools.chain(iter(lambda: binary.read(2**20), b""), [b""]):
            waiting = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                return offset - waiting + error.start
            offset += len(block)
    return offset


def find_files(patterns: list) -> list:
    """The files that paths, globs and directories (searched through) stand for, in order."""
    paths = []
    for pattern in patterns:
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        found = []
        for path in matches:
            inside = sorted(glob.glob(f"{glob.escape(path)}/**", recursive=True)) if os.path.isdir(path) else []
            found += filter(reader_of, filter(os.path.isfile, inside)) if inside else [path]
        if not found:
            raise UserError(f"no such file, or nothing to read in it: {pattern} (types: {TYPES})")
        paths += dict.fromkeys(found)  # `**` matches a directory and what is in it
    for path in paths:
        if reader_of(path) is None:
            raise UserError(f"{path}: unknown type of file; the types are {TYPES}")
    return paths


def demo_documents() -> Iterator[str]:
    """English prose in every Python: the language reference's topics and the standard library's docstrings."""
    from pydoc_data.topics import topics

    yield from topics.values()
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for module in sorted(sys.stdlib_module_names):
        for path in sorted([library / f"{module}.py", *(library / module).rglob("*.py")]):
            if not path.is_file() or {"test", "tests", "idlelib", "lib2to3"} & set(path.relative_to(library).parts):
                continue
            nodes = ast.walk(ast.parse(path.read_bytes()))
            yield "\n".join(ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented))


def hub_documents(name: str, config: str | None, column: str) -> Iterator[str]:
    """Streams the train split: nothing is stored, so memory and disk do not grow with the data set."""
    import datasets

    try:
        stream = datasets.load_dataset(name, config, split="train", streaming=True)
        columns = stream.column_names or list(next(iter(stream)))
        text_of(dict.fromkeys(columns), column, f"data set {name}")
        for batch in stream.select_columns([column]).iter(batch_size=256):
            for text in batch[column]:
                yield text_of({column: text}, column, f"data set {name}")
    except UserError:
        raise
    except Exception as error:  # the hub's client, and what it stands on, raise errors of many kinds
        raise UserError(
            f"cannot read the data set {name}, {config or 'no configuration'} ({brief(error)}): check the name "
            "and the connection (HF_ENDPOINT names a mirror), or use --data_files FILE or --dataset_name demo"
        ) from error


def open_corpus(args) -> tuple:
    """Returns (a function that iterates over the documents from the start, its name, its bytes or None)."""
    if args.data_files:
        paths = find_files(args.data_files)
        plain = all(path.endswith((".txt", ".jsonl")) for path in paths)
        size = sum(map(os.path.getsize, paths)) if plain else None
        return lambda: file_documents(paths, args.text_column), paths, size
    if args.dataset_name == "demo":
        return demo_documents, "demo", None
    name, config = args.dataset_name, args.dataset_config_name
    if name == RETIRED_DATASET:
        language = (config or "en").rpartition(".")[2]
        name, replaced, config = DEFAULT_DATASET, config, f"{DEFAULT_DUMP}.{language}"
        warn(f"the data set {RETIRED_DATASET} / {replaced} can no longer be loaded; using {name} / {config} instead")
    elif name == DEFAULT_DATASET:
        config = config or f"{DEFAULT_DUMP}.en"
    return lambda: hub_documents(name, config, args.text_column), f"{name}/{config}", None


# ---------------------------------------------------------------- tokenizer


def build_tokenizer(vocab: dict, merges: list):
    """RoBERTa's byte-level BPE: `vocab` maps token to id, `merges` lists pairs of tokens, the first merged first."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.BPE(vocab, [tuple(pair) for pair in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token in (BOS, PAD, EOS, UNK) if token in vocab])
    tokenizer.add_special_tokens([AddedToken(MASK, lstrip=True)] if MASK in vocab else [])
    if BOS in vocab and EOS in vocab:
        tokenizer.post_processor = processors.RobertaProcessing((EOS, vocab[EOS]), (BOS, vocab[BOS]), True, False)
    return tokenizer


def train_tokenizer(documents: Iterable, vocab_size: int, corpus_bytes: int | None):
    """Learns a byte-level BPE from at most TRAINING_SAMPLE characters: documents drawn evenly where the corpus's size
    is known, the first ones elsewhere. The vocabulary holds all 256 bytes, so any text is encoded without loss."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    share, used = min(1, TRAINING_SAMPLE / (corpus_bytes or 1)), 0

    def sample() -> Iterator[str]:
        nonlocal used
        for i, document in enumerate(documents):
            if used >= TRAINING_SAMPLE:
                return
            if drawn(np.array([i]), share):
                used += len(document)
                yield utf8(document).decode()

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=[BOS, PAD, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(sample(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    learned = len(model["vocab"]) + 1
    if learned < vocab_size:
        warn(f"the text gives a vocabulary of {learned} tokens only, not {vocab_size}")
    print(f"tokenizer: {learned:,} tokens learned from {used:,} characters")
    return build_tokenizer({**model["vocab"], MASK: learned - 1}, model["merges"])


def load_tokenizer(name: str, max_seq_length: int) -> tuple:
    """Returns the tokenizer in a directory (tokenizer.json, or vocab.json and merges.txt) or, where there is none, of a
    hub id; and its definition, the content of tokenizer.json."""
    from tokenizers import Tokenizer

    folder, config = pathlib.Path(name), {}
    try:
        if not folder.is_dir():
            definition = Tokenizer.from_pretrained(name).to_str(pretty=True)
        elif (folder / "tokenizer.json").exists():
            definition = (folder / "tokenizer.json").read_text(encoding="utf-8")
        else:
            merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
            vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
            pairs = [line.split() for line in merges if line and not line.startswith("#version")]
            definition = build_tokenizer(vocab, pairs).to_str(pretty=True)
        if (folder / "tokenizer_config.json").exists():
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_str(definition)
        tokenizer.no_truncation()  # which transformers' save_pretrained() may have stored
        tokenizer.no_padding()
    except Exception as error:  # tokenizers raises bare Exceptions, the hub's client errors of many kinds
        raise UserError(
            f"cannot load the tokenizer {name} ({brief(error)}): give `train`, a hub id, or a directory with "
            "tokenizer.json or vocab.json + merges.txt"
        ) from error
    if type(tokenizer.model).__name__ != "BPE":
        raise UserError(f"the tokenizer {name} is not a byte-level BPE, as RoBERTa's is")
    if missing := [token for token in (BOS, PAD, EOS, MASK) if tokenizer.token_to_id(token) is None]:
        raise UserError(f"the tokenizer {name} has no {' '.join(missing)}; use one of RoBERTa's kind")
    if max_seq_length > (longest := config.get("model_max_length") or max_seq_length):
        raise UserError(f"--max_seq_length {max_seq_length} is above the model_max_length {longest} of {name}")
    return tokenizer, definition


def save_tokenizer(definition: str, folder: pathlib.Path, max_seq_length: int) -> str:
    """Writes the files that `tokenizers`, transformers and PaddleNLP load; returns tokenizer.json's SHA-256."""
    folder.mkdir()
    (folder / "tokenizer.json").write_text(definition, encoding="utf-8")
    parsed = json.loads(definition)
    vocab = all_tokens(parsed)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in parsed["model"]["merges"]]
    config = {
        "tokenizer_class": "RobertaBPETokenizer",  # PaddleNLP's name; transformers takes tokenizer.json
        "model_max_length": max(512, max_seq_length),
        "add_prefix_space": False,
        **{"bos_token": BOS, "cls_token": BOS, "eos_token": EOS, "sep_token": EOS},
        **{"unk_token": UNK, "pad_token": PAD, "mask_token": MASK},
    }
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return hashlib.sha256(definition.encode()).hexdigest()


# ---------------------------------------------------------------- from documents to rows


def utf8(text: str) -> bytes:
    """Encodes text; lone surrogates, which JSON can hold and UTF-8 cannot, become U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def drawn(numbers: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Whether each of the numbers is in a random subset of this share: a function of (seed, number) alone."""
    with np.errstate(over="ignore"):  # splitmix64 (Steele et al., 2014)
        x = (numbers.astype(np.uint64) + np.uint64(seed)) * np.uint64(GOLDEN_RATIO)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)) < share * 2**53


def batches_of(documents: Iterable, line_by_line: bool) -> Iterator[tuple]:
    """Yields (texts as UTF-8, for each the number of its document); white space alone is no text and no document.

    A text is a document, or with line_by_line a line of one.
    """
    texts, owners, characters, number_of_document = [], [], 0, 0
    for document in documents:
        lines = document.split("\n") if line_by_line else [document]
        lines = [utf8(line) for line in lines if line and not line.isspace()]
        texts += lines
        owners += [number_of_document] * len(lines)
        number_of_document += bool(lines)
        characters += len(document)
        if characters >= BATCH_CHARACTERS and texts:
            yield texts, np.array(owners)
            texts, owners, characters = [], [], 0
    if texts:
        yield texts, np.array(owners)


class Encoder:
    """gigatoken, checked against `tokenizers` on a sample of the text in every run."""

    def __init__(self, tokenizer, definition: str):
        self.reference, self.definition = tokenizer, definition
        self.encoded_bytes = self.checked_bytes = self.expires = 0

    def __call__(self, texts: list) -> tuple:
        """Returns the texts' token ids (uint32 [all]) and their numbers of tokens (int64 [len(texts)])."""
        import gigatoken

        if self.encoded_bytes >= self.expires:
            try:
                self.gigatoken = gigatoken.Tokenizer.from_json(self.definition)
            except RuntimeError as error:
                raise UserError(
                    f"gigatoken cannot read the tokenizer ({brief(error)}): take one of RoBERTa's kind"
                ) from error
            self.expires = self.encoded_bytes + ENCODER_LIFETIME
        layout = self.gigatoken.encode_batch(texts).layout
        ids, bounds = np.asarray(layout.content.data), np.asarray(layout.offsets.data)
        for text, start, end in zip(texts, bounds[:-1], bounds[1:]):
            if self.checked_bytes > CHECKED_BYTES + CHECKED_SHARE * self.encoded_bytes:
                break
            self._check(text, ids[start:end])
        self.encoded_bytes += sum(map(len, texts))
        return ids[bounds[0] : bounds[-1]], np.diff(bounds)

    def _check(self, text: bytes, ids: np.ndarray) -> None:
        if len(text) > CHECKED_BYTES:  # of a long one, its beginning
            text = text[:CHECKED_BYTES].decode(errors="ignore").encode()
            ids = self.gigatoken.encode(text)
        self.checked_bytes += len(text)
        expected = self.reference.encode(text.decode(), add_special_tokens=False).ids
        if expected != ids.tolist():
            raise UserError(
                f"gigatoken and tokenizers encode the document that begins {text.decode()[:60]!r} differently: "
                f"this tokenizer, or this version of gigatoken ({version('gigatoken')}), cannot be used"
            )


class SplitWriter:
    """Cuts a split's tokens into rows and writes them, ROWS_PER_RECORD_BATCH at a time, to an Arrow stream."""

    def __init__(self, path: str, schema, tokenizer, max_seq_length: int, packed: bool):
        import pyarrow

        self.schema, self.stream = schema, pyarrow.ipc.new_stream(path, schema)
        self.pending = schema.empty_table()
        self.bos, self.eos, pad = map(tokenizer.token_to_id, (BOS, EOS, PAD))
        self.is_special = np.zeros(tokenizer.get_vocab_size(), dtype=bool)
        self.is_special[[self.bos, self.eos, pad]] = True
        self.room, self.packed = max_seq_length - 2, packed  # <s> and </s> take two places of a row
        self.remainder = np.empty(0, dtype=schema.field("input_ids").type.value_type.to_pandas_dtype())
        self.counts = dict.fromkeys(("documents", "tokens", "rows", "dropped_tokens"), 0)

    def add(self, documents: int, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Takes the texts of so many documents: their ids (integers [sum of lengths]) and lengths (int [texts])."""
        self.counts["documents"] += documents
        self.counts["tokens"] += len(ids)
        ids = ids.astype(self.remainder.dtype)
        if self.packed:
            stream = np.concatenate([self.remainder, np.insert(ids, np.cumsum(lengths), self.eos)])
            lengths = np.full(len(stream) // self.room, self.room)
            ids, self.remainder = np.split(stream, [lengths.sum()])
            self.counts["dropped_tokens"] = len(self.remainder)
        else:
            place = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            self.counts["dropped_tokens"] += int(np.sum(place >= self.room))
            ids, lengths = ids[place < self.room], np.minimum(lengths, self.room)
        bounds = np.repeat(np.cumsum(lengths), 2)
        bounds[::2] -= lengths  # the start and the end of each row
        self._write(np.insert(ids, bounds, np.tile([self.bos, self.eos], len(lengths))), lengths + 2)

    def _write(self, values: np.ndarray, lengths: np.ndarray) -> None:
        import pyarrow

        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        columns = []
        for field, flat in zip(self.schema, (values, self.is_special[values])):
            if self.packed:
                columns.append(pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat), type=field.type))
            else:
                columns.append(pyarrow.ListArray.from_arrays(offsets, pyarrow.array(flat), type=field.type))
        self.counts["rows"] += len(lengths)
        self.pending = pyarrow.concat_tables([self.pending, pyarrow.table(columns, schema=self.schema)])
        while self.pending.num_rows >= ROWS_PER_RECORD_BATCH:
            self._write_batch()

    def _write_batch(self) -> None:
        self.stream.write_table(self.pending.slice(0, ROWS_PER_RECORD_BATCH).combine_chunks())
        self.pending = self.pending.slice(ROWS_PER_RECORD_BATCH)

    def close(self) -> None:
        if self.pending.num_rows:
            self._write_batch()
        self.stream.close()


def create_layout(folder: str, max_seq_length: int, vocab_size: int, packed: bool) -> tuple:
    """Has `datasets` write its layout around one placeholder row; returns the schema and the paths of the rows."""
    import datasets

    length = max_seq_length if packed else -1
    features = datasets.Features(
        input_ids=datasets.List(datasets.Value("uint16" if vocab_size <= 2**16 else "int32"), length=length),
        special_tokens_mask=datasets.List(datasets.Value("bool"), length=length),
    )
    row = {"input_ids": [[0] * max_seq_length], "special_tokens_mask": [[False] * max_seq_length]}
    placeholder = datasets.Dataset.from_dict(row, features=features)
    datasets.disable_progress_bars()
    datasets.DatasetDict(dict.fromkeys(SPLITS, placeholder)).save_to_disk(folder)
    datasets.enable_progress_bars()
    paths = {split: os.path.join(folder, split, "data-00000-of-00001.arrow") for split in SPLITS}
    return features.arrow_schema, paths


def write_rows(documents: Iterable, tokenizer, definition: str, folder: str, args, corpus_bytes: int | None) -> dict:
    """Encodes the documents and writes both splits below `folder`; returns what the data card says of them."""
    from tqdm import tqdm

    packed, seen = not args.line_by_line, 0
    schema, paths = create_layout(folder, args.max_seq_length, tokenizer.get_vocab_size(), packed)
    gc.freeze()  # the collector need not walk what the imports made: 0.1 s
    train, validation = (SplitWriter(paths[s], schema, tokenizer, args.max_seq_length, packed) for s in SPLITS)
    encode, fingerprint = Encoder(tokenizer, definition), hashlib.sha256()
    batches = one_ahead(batches_of(documents, args.line_by_line))
    with tqdm(total=corpus_bytes, unit="B", unit_scale=True, disable=None, desc="encoding") as progress:
        for (texts, owners), is_last in batches:
            ids, lengths = encode(texts)
            held_out = drawn(np.arange(seen, owners[-1] + 1), args.validation_split_percentage / 100, args.seed)
            if is_last and not validation.counts["documents"] and not held_out.any():
                held_out[-1] = True
            text_held_out = held_out[owners - seen]
            token_held_out = np.repeat(text_held_out, lengths)
            for writer, chosen in ((train, False), (validation, True)):
                documents_here = int(np.sum(held_out == chosen))
                writer.add(documents_here, ids[token_held_out == chosen], lengths[text_held_out == chosen])
            seen = owners[-1] + 1
            fingerprint.update(np.fromiter(map(len, texts), dtype=np.int64).tobytes() + b"".join(texts))
            progress.update(sum(map(len, texts)))
            progress.set_postfix_str(f"{(train.counts['tokens'] + validation.counts['tokens']) / 1e6:.1f} M tokens")
    for split, writer in zip(SPLITS, (train, validation)):
        writer.close()
        check_not_empty(split, writer.counts, args.max_seq_length, seen)
    return {
        "fingerprint": f"sha256:{fingerprint.hexdigest()}",
        "bytes": encode.encoded_bytes,
        "splits": {split: writer.counts for split, writer in zip(SPLITS, (train, validation))},
    }


def one_ahead(items: Iterator) -> Iterator[tuple]:
    """Yields (item, whether it is the last); while it is used, a thread makes the one after the next."""
    with ThreadPoolExecutor(1) as thread:
        item, making = next(items, None), thread.submit(next, items, None)
        while item is not None:
            following, making = making.result(), thread.submit(next, items, None)
            yield item, following is None
            item = following


def check_not_empty(split: str, counts: dict, max_seq_length: int, documents: int) -> None:
    if not documents:
        raise UserError("the corpus is empty: no document holds anything but white space")
    if not counts["rows"]:
        raise UserError(
            f"the corpus is too small: the {split} split's {counts['documents']} documents ({counts['tokens']:,} "
            f"tokens) do not fill a row of {max_seq_length}. Lower --max_seq_length, change "
            "--validation_split_percentage, or add text"
        )


# ---------------------------------------------------------------- arguments


def parse_arguments(argv: list | None):
    parser = ArgumentParser("Turn text into rows of tokens for masked language modelling.")
    add = parser.add_argument_group("data").add_argument
    add("--output_dir", default="wiki", help="directory to write")
    add("--overwrite_output_dir", type=boolean, default=False, help="replace a data set that is there")
    add("--data_files", nargs="+", metavar="PATH", help=f"files, globs, directories of {TYPES}; no hub")
    add("--dataset_name", default=DEFAULT_DATASET, help="a data set on the hub, or `demo`: no download")
    add("--dataset_config_name", help=f"the data set's configuration ({DEFAULT_DUMP}.en for Wikipedia)")
    add("--text_column", default="text", help="the column with the text, where there are columns")
    add(
        "--validation_split_percentage",
        type=number(float, 0, 99),
        default=1,
        help="percent of the documents held out for evaluation, at least one document",
    )
    add("--seed", type=number(int, 0, 2**63), default=42, help="draws the documents held out")
    add = parser.add_argument_group("tokens").add_argument
    add(
        "--tokenizer_name",
        "---tokenizer_name",  # as the original page's command has it
        default="roberta-base",
        help="a directory with tokenizer.json or vocab.json + merges.txt, a hub id, or `train` to learn one",
    )
    add("--vocab_size", type=number(int, 262), default=50265, help="tokens that `train` learns")
    add("--max_seq_length", type=number(int, 4), default=512, help="tokens in a row, <s> and </s> too")
    add("--line_by_line", type=boolean, default=False, help="a row for each line, cut at max_seq_length, not packed")
    add("--preprocessing_num_workers", type=number(int, 1), default=os.cpu_count(), help="encoding threads")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- main


def check_output(args) -> None:
    path = args.output_dir
    if not path or os.path.isfile(path):
        raise UserError(f"{path!r} is not the name of a directory: choose another --output_dir")
    if os.path.ismount(os.path.realpath(path)):
        raise UserError(f"{path} is a mount point, which cannot be replaced whole: name a directory inside it")
    recover_directory(path)
    if os.path.isdir(path) and os.listdir(path):
        if not os.path.exists(os.path.join(path, "dataset_dict.json")):
            raise UserError(f"{path} is not empty and not a data set: choose another --output_dir")
        if not args.overwrite_output_dir:
            raise UserError(f"{path} exists: choose another --output_dir, or replace it: --overwrite_output_dir True")


def print_summary(args, card: dict, tokenizer, seconds: float) -> None:
    import datasets

    for split, counts in card["splits"].items():
        print(f"{split:10} " + ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items()))
    size = sum(path.stat().st_size for path in pathlib.Path(args.output_dir).rglob("*") if path.is_file())
    speed = f"{card['bytes'] / 1e6:,.1f} MB of text in {seconds:.1f} s ({card['bytes'] / 1e6 / seconds:.1f} MB/s)"
    print(f"{speed}, {size / 1e6:,.1f} MB on disk, {peak_memory():,.0f} MB of memory at the peak")
    row = datasets.load_from_disk(args.output_dir)["train"][0]["input_ids"]
    print(f"first row: {tokenizer.decode(row, skip_special_tokens=False)[:200]!r}")
    print(f"written: {args.output_dir} (tokenizer in {os.path.join(args.output_dir, 'tokenizer')})")


def main(argv: list | None = None) -> None:
    args = parse_arguments(argv)
    check_output(args)
    os.environ["RAYON_NUM_THREADS"] = str(args.preprocessing_num_workers)  # read when gigatoken starts its threads
    open_documents, source, corpus_bytes = open_corpus(args)
    start = time.perf_counter()
    with atomic_directory(args.output_dir) as folder:
        if args.tokenizer_name == "train":
            tokenizer = train_tokenizer(open_documents(), args.vocab_size, corpus_bytes)
            definition = tokenizer.to_str(pretty=True)
        else:
            tokenizer, definition = load_tokenizer(args.tokenizer_name, args.max_seq_length)
        written = write_rows(open_documents(), tokenizer, definition, folder, args, corpus_bytes)
        card = {
            "command": shlex.join(["python", "create_data.py", *(sys.argv[1:] if argv is None else argv)]),
            "source": source,
            **written,
            "tokenizer": {
                "name": args.tokenizer_name,
                "vocab_size": tokenizer.get_vocab_size(),
                "sha256": save_tokenizer(definition, pathlib.Path(folder, "tokenizer"), args.max_seq_length),
            },
            "arguments": vars(args),
            "versions": {name: version(name) for name in ("datasets", "gigatoken", "numpy", "pyarrow", "tokenizers")},
        }
        pathlib.Path(folder, "data_card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print_summary(args, card, tokenizer, time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(command_line(main))
