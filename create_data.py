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
import collections
import csv
import gc
import glob
import hashlib
import itertools
import json
import os
import pathlib
import random
import re
import shlex
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version

import fsspec
import numpy as np
import pyarrow
from pyarrow import parquet
from tqdm import tqdm

from utils import (
    LOCK,
    ArgumentParser,
    UserError,
    atomic_directory,
    boolean,
    brief,
    command_line,
    explaining,
    number,
    peak_memory,
    require,
    sha256_of,
)

RETIRED_DATASET = "wikipedia"  # a script data set, which can no longer be loaded
DEFAULT_DATASET, DEFAULT_DUMP = "wikimedia/wikipedia", "20231101"
SPLITS = ("train", "validation")
SEPARATORS = ("empty_line", "line", "file")
PACKED = (".gz", ".bz2", ".xz")
BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"  # RoBERTa's ids 0 to 3, and the last id
BUFFER = 2_000_000  # characters of a split that are encoded and written at a time
PIECE = 250_000  # characters: a longer text is encoded in pieces
ALWAYS_CUT = re.compile(r"(?<=[^\s\u180e])[ \n]")  # see pieces()
CACHE_BYTES = 250e6  # what gigatoken's cache, which it never empties, may take before it is made anew
TRAINING_SAMPLE = 256_000_000  # characters that `--tokenizer_name train` learns from, about
CHECKED_FIRST, CHECKED_SHARE, CHECKED_PIECE = 50_000, 0.001, 4_000  # bytes; see Encoder
LONG_DOCUMENT = 10_000_000  # characters: a longer document earns a warning,
FEW_DOCUMENTS, LARGE_FILE = 10, 500_000  # and so do few documents in files of many bytes
# Lone surrogates, which JSON can hold and UTF-8 cannot, become U+FFFD.
codecs.register_error("to_fffd", lambda error: ("\ufffd".encode() * (error.end - error.start), error.end))


def main(argv: list | None = None) -> None:
    args = parse_arguments(argv)
    os.environ["RAYON_NUM_THREADS"] = str(args.preprocessing_num_workers)  # read when gigatoken starts its threads
    start = time.perf_counter()
    with atomic_directory(args.output_dir) as folder:
        check_may_replace(args)
        corpus, held_out = open_corpora(args)
        tokenizer, longest = load_tokenizer(args, corpus)
        length = args.max_seq_length or min(512, longest or 512)
        require(length <= (longest or length), f"--max_seq_length {length} is above the tokenizer's limit of {longest}")
        encode = Encoder(tokenizer, args.tokenizer_name)
        written = write_rows(args, corpus, held_out, encode, folder, length)
        if not args.max_seq_length and (shorter := shorter_length(written["splits"], length)):
            say(f"not every split fills a row of {length} tokens: --max_seq_length {shorter} instead")
            length = shorter
            written = write_rows(args, corpus, held_out, encode, folder, length)
        check_not_empty(args, written["splits"], length)
        sha256 = save_tokenizer(tokenizer, encode.definition, pathlib.Path(folder, "tokenizer"), length)
        card = {
            "command": shlex.join(["python", "create_data.py", *(sys.argv[1:] if argv is None else argv)]),
            "source": corpus.source,
            **written,
            "tokenizer": {"name": args.tokenizer_name, "vocab_size": tokenizer.get_vocab_size(), "sha256": sha256},
            "arguments": {**vars(args), "max_seq_length": length},
            "versions": {name: version(name) for name in ("datasets", "gigatoken", "numpy", "pyarrow", "tokenizers")},
        }
        pathlib.Path(folder, "data_card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print_summary(args, corpus, card, tokenizer, time.perf_counter() - start)


# ---------------------------------------------------------------- from documents to rows


def write_rows(args, corpus, held_out, encode, folder: str, length: int) -> dict:
    """Encodes all documents and writes both splits below `folder`; returns what the data card says of them."""
    writers = create_writers(folder, encode.tokenizer, length, packed=not args.line_by_line)
    gc.freeze()  # the collector need not walk what the imports made: 0.1 s
    sizes, fingerprint, size = {split: collections.Counter() for split in SPLITS}, hashlib.sha256(), 0
    # A thread reads the documents and fills the next buffer while this one is encoded and written.
    buffers = one_ahead(fill_buffers(assign_splits(args, corpus, held_out), args.line_by_line, sizes))
    with tqdm(total=corpus.size, unit="B", unit_scale=True, disable=None, desc="encoding") as progress:
        for split, texts, ends in buffers:
            ids, lengths = encode(texts)
            writers[split].add(ids, np.cumsum(lengths)[ends])
            text = b"\0".join(texts)
            fingerprint.update(text)
            progress.update(len(text))
            size += len(text)
    files = {}
    for writer in writers.values():
        writer.stream.close()
        name = os.path.relpath(writer.path, folder)
        files[name] = {"bytes": os.path.getsize(writer.path), "sha256": sha256_of(writer.path)}
    all_sizes = sizes["train"] + sizes["validation"]
    median = statistics.median_low(all_sizes.elements()) if all_sizes else 0
    return {
        "fingerprint": f"sha256:{fingerprint.hexdigest()}",
        "bytes": size,
        "documents": {"median_characters": median, "longest_characters": max(all_sizes, default=0)},
        "splits": {split: {"documents": sizes[split].total(), **writers[split].counts} for split in SPLITS},
        "files": files,
    }


def assign_splits(args, corpus, held_out) -> Iterator[tuple]:
    """Yields (split, document). A seeded draw for each document in order holds it out; where that would hold out
    none, the last document is. With --validation_files, they are."""
    if held_out:
        yield from (("validation", document) for document in held_out.documents())
        yield from (("train", document) for document in corpus.documents())
        return
    draw, split, last, any_held_out = random.Random(args.seed), None, None, False
    for document in corpus.documents():
        if last is not None:
            yield split, last
        last, split = document, "train"
        if draw.random() < args.validation_split_percentage / 100:
            split, any_held_out = "validation", True
    if last is not None:
        yield split if any_held_out else "validation", last


def fill_buffers(assigned: Iterator[tuple], line_by_line: bool, sizes: dict) -> Iterator[tuple]:
    """Collects each split's texts (documents, or lines of them, or pieces of long ones), and yields them when they are
    many: (split, texts in UTF-8, for each whether the document or line ends with it). Counts documents by size."""
    buffers, characters = {split: ([], []) for split in SPLITS}, dict.fromkeys(SPLITS, 0)
    for split, document in assigned:
        sizes[split][len(document)] += 1
        lines = [line for line in document.split("\n") if line.strip()] if line_by_line else [document]
        for line in lines:
            for piece, ends in pieces(line):
                buffers[split][0].append(piece.encode(errors="to_fffd"))
                buffers[split][1].append(ends)
                characters[split] += len(piece)
                if characters[split] >= BUFFER:
                    yield split, *buffers[split]
                    buffers[split], characters[split] = ([], []), 0
    yield from ((split, *buffer) for split, buffer in buffers.items() if buffer[0])


class SplitWriter:
    """Makes rows of a split's tokens and writes them to a file, an Arrow stream."""

    def __init__(self, path: str, schema, tokenizer, length: int, packed: bool):
        self.path, self.schema, self.stream = path, schema, pyarrow.ipc.new_stream(path, schema)
        self.write = self.write_packed if packed else self.write_lines
        self.bos, self.eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
        special = {tokenizer.token_to_id(token) for token in (BOS, PAD, EOS, UNK, MASK)}
        self.is_special = np.array([i in special for i in range(tokenizer.get_vocab_size())])
        self.room = length - 2  # <s> and </s> take two places of a row
        self.rest = np.empty(0, dtype=schema.field("input_ids").type.value_type.to_pandas_dtype())
        self.counts = dict.fromkeys(("tokens", "rows", "dropped_tokens"), 0)

    def add(self, ids: np.ndarray, ends: np.ndarray) -> None:
        """Takes a buffer's token ids (integers [tokens]) and where in them documents, or lines, end (int [number])."""
        self.counts["tokens"] += len(ids)
        self.write(np.concatenate([self.rest, ids.astype(self.rest.dtype)]), len(self.rest) + ends)

    def write_packed(self, stream: np.ndarray, ends: np.ndarray) -> None:
        """Each `room` tokens of the stream are a row: <s> tokens </s>."""
        stream = np.insert(stream, ends, self.eos)
        stream, self.rest = np.split(stream, [len(stream) // self.room * self.room])
        self.counts["dropped_tokens"] = len(self.rest)
        tokens = stream.reshape(-1, self.room)
        rows = np.empty((len(tokens), self.room + 2), dtype=stream.dtype)
        rows[:, 0], rows[:, 1:-1], rows[:, -1] = self.bos, tokens, self.eos
        self.write_rows(rows.ravel(), np.full(len(rows), rows.shape[1]))

    def write_lines(self, stream: np.ndarray, ends: np.ndarray) -> None:
        """The tokens up to each end are a row, without those beyond `room`."""
        stream, self.rest = np.split(stream, [ends[-1] if len(ends) else 0])
        lengths = np.diff(ends, prepend=0)
        place_in_line = np.arange(len(stream)) - np.repeat(ends - lengths, lengths)
        kept, lengths = stream[place_in_line < self.room], np.minimum(lengths, self.room)
        self.counts["dropped_tokens"] += len(stream) - len(kept)
        ends = np.cumsum(lengths)
        starts_and_ends = np.stack([ends - lengths, ends], axis=1).ravel()
        self.write_rows(np.insert(kept, starts_and_ends, np.tile([self.bos, self.eos], len(ends))), lengths + 2)

    def write_rows(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Writes rows that stand one after another in `ids`. `lengths`: int [rows]."""
        starts = np.append(0, np.cumsum(lengths)).astype(np.int32)
        columns = [pyarrow.ListArray.from_arrays(starts, values) for values in (ids, self.is_special[ids])]
        self.stream.write_table(pyarrow.table(columns, names=self.schema.names).cast(self.schema))
        self.counts["rows"] += len(lengths)


def create_writers(folder: str, tokenizer, length: int, packed: bool) -> dict:
    """Has `datasets` write its layout around one placeholder row, and opens the files of rows to write them anew."""
    import datasets

    dtype, fixed = "uint16" if tokenizer.get_vocab_size() <= 2**16 else "int32", length if packed else -1
    features = datasets.Features(
        input_ids=datasets.List(datasets.Value(dtype), length=fixed),
        special_tokens_mask=datasets.List(datasets.Value("bool"), length=fixed),
    )
    row = {"input_ids": [[0] * length], "special_tokens_mask": [[False] * length]}
    placeholder = datasets.Dataset.from_dict(row, features=features)
    datasets.disable_progress_bars()
    datasets.DatasetDict(dict.fromkeys(SPLITS, placeholder)).save_to_disk(folder)
    paths = {split: os.path.join(folder, split, "data-00000-of-00001.arrow") for split in SPLITS}
    return {split: SplitWriter(paths[split], features.arrow_schema, tokenizer, length, packed) for split in SPLITS}


def one_ahead(items: Iterator) -> Iterator:
    """Yields the items; a thread makes the next one while this one is used."""
    with ThreadPoolExecutor(1) as thread:
        making = thread.submit(next, items, None)
        while (item := making.result()) is not None:
            making = thread.submit(next, items, None)
            yield item


def pieces(text: str) -> Iterator[tuple]:
    """Yields (piece, whether it is the last one): PIECE characters or more, together with the tokens of the whole.

    RoBERTa's pre-tokenizer always cuts before a space or line end that follows another character: its pattern looks
    forward only, and no word of it goes on with white space.
    """
    start = 0
    while place := ALWAYS_CUT.search(text, start + PIECE):
        yield text[start : place.start()], False
        start = place.start()
    yield text[start:], True


class Encoder:
    """gigatoken, compared with `tokenizers` on a sample of the text from the whole run."""

    def __init__(self, tokenizer, name: str):
        self.tokenizer, self.definition = tokenizer, tokenizer.to_str(pretty=True)  # the content of tokenizer.json
        other = ", ".join(differences_from_roberta(json.loads(self.definition)))
        require(not other, f"gigatoken may not follow {other} of {name}: use a tokenizer of RoBERTa's kind")
        self.to_check, self.draw = CHECKED_FIRST, random.Random(0)
        self.renew()

    def renew(self) -> None:
        import gigatoken

        self.gigatoken = None  # its cache goes before the new one's comes
        with explaining("gigatoken cannot read the tokenizer: take one of RoBERTa's kind"):
            self.gigatoken = gigatoken.Tokenizer.from_json(self.definition)
        self.memory_without_cache = memory_in_use()

    def __call__(self, texts: list) -> tuple:
        """Returns the texts' token ids (uint32 [all]) and their numbers of tokens (int64 [len(texts)])."""
        if memory_in_use() - self.memory_without_cache > CACHE_BYTES:
            self.renew()
        layout = self.gigatoken.encode_batch(texts).layout
        ids, bounds = np.asarray(layout.content.data), np.asarray(layout.offsets.data)
        self.to_check += CHECKED_SHARE * sum(map(len, texts))
        for text in self.draw.sample(texts, len(texts)):
            if self.to_check <= 0:
                break
            self.check(text)
        return ids[bounds[0] : bounds[-1]], np.diff(bounds)

    def check(self, text: bytes) -> None:
        start = self.draw.randrange(max(1, len(text) - CHECKED_PIECE))
        piece = text[start : start + CHECKED_PIECE].decode(errors="ignore")
        self.to_check -= len(piece)
        expected = self.tokenizer.encode(piece, add_special_tokens=False).ids
        same = self.gigatoken.encode(piece.encode()).tolist() == expected
        require(same, f"gigatoken and tokenizers encode {piece[:60]!r} differently: use another tokenizer")


def memory_in_use() -> float:
    """Resident memory in bytes; the largest so far where the system does not tell (only Linux does)."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_memory() * 1e6


def differences_from_roberta(definition: dict) -> list:
    """The properties that gigatoken does not follow, or that allow no cut where pieces() cuts."""
    splitter = definition.get("pre_tokenizer") or {}
    unknown = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    found = [key for key in unknown if definition["model"].get(key)]
    if definition["model"]["type"] != "BPE":
        found.append(f"a model of type {definition['model']['type']}")
    if definition["normalizer"]:
        found.append("a normalizer")
    if splitter.get("type") != "ByteLevel" or splitter.get("add_prefix_space") or not splitter.get("use_regex", True):
        found.append(f"the pre_tokenizer {json.dumps(splitter)}")
    for token in definition["added_tokens"]:
        if token["single_word"] or token["rstrip"] or re.search(r"\s", token["content"]):
            found.append(f"the added token {token['content']!r} with single_word, rstrip or white space")
    return found


# ---------------------------------------------------------------- tokenizer


def train_tokenizer(corpus, vocab_size: int):
    """Learns a byte-level BPE from about TRAINING_SAMPLE characters: documents drawn evenly from files, the first ones
    of other corpora. The vocabulary holds all 256 bytes, so any text is encoded without loss."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    characters, used, draw = 0, 0, random.Random(0)
    is_files = isinstance(corpus.source, list)
    if is_files:
        characters = sum(map(len, corpus.documents()))

    def sample() -> Iterator[str]:
        nonlocal used
        for text in corpus.documents():
            if used >= TRAINING_SAMPLE and not is_files:
                return
            if draw.random() * characters < TRAINING_SAMPLE:
                used += len(text)
                yield text.encode(errors="to_fffd").decode()

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # <mask> comes last
        special_tokens=[BOS, PAD, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(sample(), trainer)
    as_roberta(tokenizer)
    say(f"tokenizer: {tokenizer.get_vocab_size():,} of {vocab_size:,} tokens learned from {used:,} characters")
    return tokenizer


def as_roberta(tokenizer) -> None:
    """Gives a byte-level BPE what makes it RoBERTa's tokenizer."""
    from tokenizers import AddedToken, decoders, pre_tokenizers, processors

    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS, PAD, EOS, UNK, AddedToken(MASK, lstrip=True)])
    bos, eos = ((token, tokenizer.token_to_id(token)) for token in (BOS, EOS))
    tokenizer.post_processor = processors.RobertaProcessing(eos, bos, True, False)


def load_tokenizer(args, corpus) -> tuple:
    """Learns a tokenizer, or loads the one in a directory (tokenizer.json, or vocab.json and merges.txt) or of a hub
    id. Returns it and its model_max_length or None."""
    from tokenizers import Tokenizer, models

    if args.tokenizer_name == "train":
        return train_tokenizer(corpus, args.vocab_size), None
    name, folder, config = args.tokenizer_name, pathlib.Path(args.tokenizer_name), {}
    with explaining(f"cannot load the tokenizer {name}: give `train`, a hub id, or a directory with tokenizer.json"):
        if not folder.is_dir():
            tokenizer = Tokenizer.from_pretrained(name)
        elif (folder / "tokenizer.json").exists():
            tokenizer = Tokenizer.from_file(f"{name}/tokenizer.json")
        else:
            tokenizer = Tokenizer(models.BPE.from_file(f"{name}/vocab.json", f"{name}/merges.txt"))
            as_roberta(tokenizer)
        if (folder / "tokenizer_config.json").exists():
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer.no_truncation()  # which transformers' save_pretrained() may have stored
    tokenizer.no_padding()
    missing = [token for token in (BOS, PAD, EOS, MASK) if tokenizer.token_to_id(token) is None]
    require(not missing, f"the tokenizer {name} has no {' '.join(missing)}: use one of RoBERTa's kind")
    return tokenizer, config.get("model_max_length")


def save_tokenizer(tokenizer, definition: str, folder: pathlib.Path, length: int) -> str:
    """Writes the files that `tokenizers`, transformers and PaddleNLP load; returns tokenizer.json's SHA-256."""
    folder.mkdir()
    tokenizer.model.save(str(folder))  # vocab.json, to which the added tokens come, and merges.txt
    vocab = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    config = {
        "tokenizer_class": "RobertaBPETokenizer",  # PaddleNLP's name; transformers takes tokenizer.json
        "model_max_length": max(512, length),
        "add_prefix_space": False,
        **{"bos_token": BOS, "cls_token": BOS, "eos_token": EOS, "sep_token": EOS},
        **{"unk_token": UNK, "pad_token": PAD, "mask_token": MASK},
    }
    (folder / "tokenizer.json").write_text(definition, encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return sha256_of(folder / "tokenizer.json")


# ---------------------------------------------------------------- readers


@dataclass
class Corpus:
    """Documents, which `texts` reads from the start each time it is called."""

    texts: Callable[[], Iterator[str]]
    source: list | str  # the files' paths, or a data set's name
    size: int | None = None  # bytes, where they are known
    limit: int | None = None  # documents to take
    separators: dict = field(default_factory=dict)  # for each text file that was read, what its documents end at

    def documents(self) -> Iterator[str]:
        """White space alone is no document."""
        return itertools.islice((text for text in self.texts() if text and not text.isspace()), self.limit)


def open_corpora(args) -> tuple:
    """Returns the text as a Corpus, and that of --validation_files as another, or None."""
    held_out = open_files(args.validation_files, args) if args.validation_files else None
    if args.data_files:
        corpus = open_files(args.data_files, args)
    elif args.dataset_name == "demo":
        corpus = Corpus(demo_documents, "demo")
    else:
        name, config = args.dataset_name or DEFAULT_DATASET, args.dataset_config_name
        if name == RETIRED_DATASET or (name == DEFAULT_DATASET and not config):
            name, retired = DEFAULT_DATASET, f"{name} / {config}"
            config = f"{DEFAULT_DUMP}.{(config or 'en').rpartition('.')[2]}"
            if args.dataset_name == RETIRED_DATASET:
                say(f"warning: {retired} can no longer be loaded; using {name} / {config}", file=sys.stderr)
        corpus = Corpus(lambda: hub_documents(name, config, args.split, args.text_column), f"{name}/{config}")
    corpus.limit = args.max_documents
    return corpus, held_out


def open_files(patterns: list, args) -> Corpus:
    paths, separators = find_files(patterns), {}
    plain = all(os.path.isfile(path) and path.lower().endswith((".txt", ".jsonl")) for path in paths)
    size = sum(map(os.path.getsize, paths)) if plain and not args.max_documents else None
    return Corpus(lambda: file_documents(paths, args, separators), paths, size, separators=separators)


def find_files(patterns: list) -> list:
    """The files that paths, globs, URLs and directories (searched through) stand for, in order, each once."""
    found, skipped = {}, collections.Counter()  # found: path by real path
    for pattern in patterns:
        known = "://" in pattern or os.path.lexists(pattern)
        paths = []
        for match in [pattern] if known else sorted(glob.glob(pattern, recursive=True)):
            paths += files_below(match, skipped) if os.path.isdir(match) else [match]
        require(paths, f"no such file, or nothing to read in it: {pattern} (types: {TYPES})")
        for path in dict.fromkeys(paths):  # `**` matches a directory and what is in it
            require(type_of(path), f"{path}: unknown type of file; the types are {TYPES}")
            require("://" in path or os.path.isfile(path), f"{path} is no file, or a link to one that is missing")
            real = path if "://" in path else os.path.realpath(path)
            skipped["files that were named or linked twice"] += real in found
            found.setdefault(real, path)
    if skipped := +skipped:
        say(f"not read: {', '.join(f'{count} {what}' for what, count in skipped.items())}")
    return list(found.values())


def files_below(folder: str, skipped: collections.Counter) -> list:
    """The files to read in a directory, sorted; links are followed, but into no directory a second time."""
    visited, found = set(), []
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited or "dataset_dict.json" in names:
            skipped["directories that hold prepared data or were read before"] += 1
            folders.clear()
            continue
        visited.add(real)
        paths = [os.path.join(parent, name) for name in names if not name.endswith(LOCK)]
        wanted = [path for path in paths if type_of(path) and os.path.isfile(path)]
        skipped[f"files in {folder} of other types than {TYPES}"] += len(paths) - len(wanted)
        found += wanted
    return sorted(found)


def file_documents(paths: list, args, separators: dict) -> Iterator[str]:
    for path in paths:
        position, reader, separator = 0, READERS[type_of(path)], None
        try:
            if reader is read_txt:
                separator = separators[path] = args.document_separator or separators.get(path) or guess_separator(path)
            for position, record in enumerate(reader(path, args.text_column, separator), start=1):
                yield text_of(record, args.text_column, f"{path}, record {position}")
        except UserError:
            raise
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {position + error.lineno}: malformed JSON ({error.msg})") from None
        except Exception as error:  # what unpacks files and fetches them raises errors of many kinds
            raise UserError(f"cannot read {path} after record {position} ({brief(error)})") from None


def text_of(record, column: str, where: str) -> str:
    """The text of a record: a string, or a mapping whose `column` is a string or None."""
    if not isinstance(record, dict):
        text = record
    elif column in record:
        text = "" if record[column] is None else record[column]
    else:
        columns = ", ".join(map(str, record))[:300]
        raise UserError(f"{where}: no column {column!r}, but {columns}: name one with --text_column")
    if not isinstance(text, str):
        raise UserError(f"{where}: no text in column {column!r}, but a {type(text).__name__}")
    return text


def open_text(path: str, newline: str | None = None):
    """Opens a UTF-8 file, unpacked, without the byte-order mark; CRLF becomes LF unless newline is ""."""
    return fsspec.open(path, "rt", compression="infer", encoding="utf-8-sig", newline=newline)


def read_txt(path: str, column: str, separator: str) -> Iterator[str]:
    with open_text(path) as lines:
        if separator == "file":
            yield lines.read().strip("\n")
        elif separator == "line":
            yield from (line.rstrip("\n") for line in lines)
        else:
            for is_empty, group in itertools.groupby(lines, str.isspace):
                if not is_empty:
                    *others, last = group
                    yield "".join([*others, last.rstrip("\n")])


def guess_separator(path: str) -> str:
    first_two = itertools.islice(read_txt(path, "", "empty_line"), 2)
    return "empty_line" if len(list(first_two)) == 2 else "line"


def read_json(path: str, column: str, separator: None) -> Iterator:
    """One JSON value a line; a .json file may instead hold one array, which is read whole."""
    with open_text(path) as lines:
        first = next((line for line in lines if not line.isspace()), "")
        lines.seek(0)
        if type_of(path) == ".json" and first.lstrip().startswith("["):
            yield from json.load(lines)
        else:
            yield from ("" if line.isspace() else json.loads(line.rstrip()) for line in lines)


def read_csv(path: str, column: str, separator: None) -> Iterator[dict]:
    csv.field_size_limit(2**31 - 1)
    with open_text(path, newline="") as lines:
        yield from csv.DictReader(lines, strict=True)


def read_parquet(path: str, column: str, separator: None) -> Iterator:
    with fsspec.open(path, "rb") as source:
        file = parquet.ParquetFile(source)
        text_of(dict.fromkeys(file.schema_arrow.names), column, path)
        for batch in file.iter_batches(batch_size=256, columns=[column]):
            yield from batch.to_pylist()


READERS = {".txt": read_txt, ".jsonl": read_json, ".json": read_json, ".csv": read_csv, ".parquet": read_parquet}
TYPES = f"{', '.join(READERS)}, all but the last also as {', '.join(PACKED)}"


def type_of(path: str) -> str | None:
    """The type of file that a name stands for."""
    name, suffix = os.path.splitext(path.lower())
    if suffix in PACKED and not name.endswith(".parquet"):
        suffix = os.path.splitext(name)[1]
    return suffix if suffix in READERS else None


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


def hub_documents(name: str, config: str | None, split: str, column: str) -> Iterator[str]:
    """Streams a split: nothing is stored, so memory and disk do not grow with the data set."""
    import datasets

    remedy = (
        "check --dataset_name, --dataset_config_name, --split, the connection; or --data_files, or --dataset_name demo"
    )
    try:
        stream = datasets.load_dataset(name, config, split=split, streaming=True)
        columns = stream.column_names or list(next(iter(stream)))
        text_of(dict.fromkeys(columns), column, f"data set {name}")
        for batch in stream.select_columns([column]).iter(batch_size=256):
            yield from (text_of({column: text}, column, f"data set {name}") for text in batch[column])
    except UserError:
        raise
    except Exception as error:  # the hub's client, and what it stands on, raise errors of many kinds
        reason = " ".join(str(error).split())[:500]  # its second line lists the configurations there are
        raise UserError(f"cannot read the data set {name}, {config}, split {split} ({reason}): {remedy}") from error


# ---------------------------------------------------------------- arguments, checks and reports


def parse_arguments(argv: list | None):
    parser = ArgumentParser("Turn text into rows of tokens for masked language modelling.")
    add = parser.add_argument_group("data").add_argument
    add("--output_dir", default="wiki", help="directory to write")
    add("--overwrite_output_dir", type=boolean, default=False, help="replace a data set that is there")
    add("--data_files", nargs="+", metavar="PATH", help=f"files, globs, URLs, directories of {TYPES}")
    add("--validation_files", nargs="+", metavar="PATH", help="likewise: held out, instead of a drawn share")
    add("--document_separator", choices=SEPARATORS, help="what documents of .txt files end at")
    add("--dataset_name", help=f"a data set on the hub ({DEFAULT_DATASET}), or `demo`")
    add("--dataset_config_name", help=f"its configuration ({DEFAULT_DUMP}.en for Wikipedia)")
    add("--split", default="train", help="its split")
    add("--text_column", default="text", help="the column with the text")
    add("--max_documents", type=number(int, 1), help="take so many documents only")
    share = number(float, 0, 100)
    add("--validation_split_percentage", type=share, default=1, help="percent held out; at least one document")
    add("--seed", type=number(int, 0, 2**63), default=42, help="draws the documents held out")
    add = parser.add_argument_group("tokens").add_argument
    kinds = "a directory with tokenizer.json or vocab.json + merges.txt, a hub id, or `train` to learn one"
    add("--tokenizer_name", "---tokenizer_name", default="roberta-base", help=kinds)  # ---: as in the original page
    add("--vocab_size", type=number(int, 262), default=50265, help="tokens that `train` learns")
    add("--max_seq_length", type=number(int, 4), help="tokens in a row (512, or what the text fills)")
    add("--line_by_line", type=boolean, default=False, help="a row for each line, not packed")
    add("--preprocessing_num_workers", type=number(int, 1), default=os.cpu_count(), help="encoding threads")
    args = parser.parse_args(argv)
    with explaining("--output_dir is not UTF-8: choose another name"):
        args.output_dir.encode()
    require(not (args.data_files and args.dataset_name), "--data_files and --dataset_name: give one of them")
    return args


def check_may_replace(args) -> None:
    path, remedy = args.output_dir, "choose another --output_dir"
    require(not os.path.isfile(path), f"{path!r} is a file: {remedy}")
    if os.path.isdir(path) and os.listdir(path):
        is_data = os.path.exists(os.path.join(path, "dataset_dict.json"))
        require(is_data, f"{path} is not empty and not a data set: {remedy}")
        require(args.overwrite_output_dir, f"{path} exists: {remedy}, or --overwrite_output_dir True to replace it")


def shorter_length(splits: dict, length: int) -> int | None:
    """The largest power of two that every split's text fills, where one does not fill a row of `length`."""
    unfilled = [counts for counts in splits.values() if counts["documents"] and not counts["rows"]]
    tokens = min((counts["tokens"] + counts["documents"] for counts in unfilled), default=0)  # with each </s>
    return next((shorter for shorter in (256, 128, 64, 32, 16) if shorter <= min(length, tokens + 2)), None)


def check_not_empty(args, splits: dict, length: int) -> None:
    trained_on, held_out = (splits[split]["documents"] for split in SPLITS)
    require(trained_on or held_out, "the corpus is empty: no document holds anything but white space")
    require(held_out, "--validation_files hold nothing but white space")
    if args.validation_files or args.validation_split_percentage < 100:
        remedy = "add text, or divide it (--document_separator line)"
        require(trained_on, f"the corpus is too small: all of it ({held_out} documents) is held out; {remedy}")
    for split, counts in splits.items():
        problem = f"the corpus is too small: {counts['tokens']:,} tokens of {split} do not fill a row of {length}"
        require(counts["rows"] or not counts["documents"], f"{problem}; add text, or lower --max_seq_length")


def print_summary(args, corpus: Corpus, card: dict, tokenizer, seconds: float) -> None:
    import datasets

    documents = sum(counts["documents"] for counts in card["splits"].values())
    longest, files = card["documents"]["longest_characters"], len(corpus.separators)
    remedy = "check what its documents end at (--document_separator)"
    if longest > LONG_DOCUMENT:
        say(f"warning: the longest document has {longest:,} characters: {remedy}", file=sys.stderr)
    if documents < FEW_DOCUMENTS * files and card["bytes"] > LARGE_FILE * files and not args.document_separator:
        say(f"warning: {documents} documents only in {card['bytes']:,} bytes of text: {remedy}", file=sys.stderr)
    for kind, count in collections.Counter(corpus.separators.values()).items():
        say(f"the documents of text files end at: {kind} in {count} files (--document_separator sets it)")
    say(f"{documents:,} documents, of {card['documents']['median_characters']:,} characters in the median")
    for split, counts in card["splits"].items():
        say(f"{split:10} " + ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items()))
    speed = card["bytes"] / 1e6 / seconds
    say(f"{seconds:.1f} s ({speed:.1f} MB of text a second), {peak_memory():,.0f} MB of memory at the peak")
    data = datasets.load_from_disk(args.output_dir)
    split = "train" if len(data["train"]) else "validation"
    if split == "validation":
        say("everything is held out: the train split has 0 rows")
    say(f"first row: {tokenizer.decode(data[split][0]['input_ids'], skip_special_tokens=False)[:200]!r}")
    say(f"written: {args.output_dir}")


def say(line: str, file=None) -> None:
    """Prints a line, whatever the terminal does: no character that it lacks, and no closed pipe, ends a run."""
    file = file or sys.stdout
    try:
        print(line.encode(file.encoding, "backslashreplace").decode(file.encoding), file=file, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


if __name__ == "__main__":
    sys.exit(command_line(main))
