"""Turn text into rows of tokens for masked language modelling: one streaming pass, memory bounded.

    python create_data.py --dataset_name demo --tokenizer_name train --vocab_size 8192 \
        --max_seq_length 128 --output_dir demo_data                                        # no download at all
    python create_data.py --data_files corpus/*.txt --tokenizer_name roberta-base --output_dir data
    python create_data.py --output_dir wiki                                                # all of Wikipedia

The output is what `datasets.load_from_disk` reads (splits train and validation, columns input_ids and
special_tokens_mask), with the tokenizer in OUTPUT_DIR/tokenizer and a record of the run in data_card.json.
"""

import ast
import collections
import csv
import functools
import gc
import glob
import hashlib
import io
import itertools
import json
import os
import pathlib
import random
import re
import shlex
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np

from utils import (
    ASIDE,
    LOCK,
    PARTIAL,
    ArgumentParser,
    UserError,
    all_tokens,
    atomic_directory,
    boolean,
    command_line,
    number,
    peak_memory,
)

RETIRED_DATASET = "wikipedia"  # a script data set, and its dumps: neither can be loaded any more
DEFAULT_DATASET, DEFAULT_DUMP = "wikimedia/wikipedia", "20231101"
SPLITS = ("train", "validation")
BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"  # RoBERTa's ids 0 to 3, and the last id
BUFFER = 2_000_000  # characters of a split that are encoded and written at a time
BLOCK = 200_000  # characters of a text file that are read at a time: larger blocks take four times as long
PIECE = 250_000  # characters: a longer text is encoded in pieces
WINDOW, UNSURE_TOKENS = 16_000, 30  # bytes of a text without white space that are encoded at a time; see encode_word
CACHE_BYTES = 250e6  # memory that gigatoken's cache, which it never empties, may take before it is made anew
TRAINING_SAMPLE = 256_000_000  # characters that `--tokenizer_name train` learns from, about
CHECKED_FIRST, CHECKED_SHARE, CHECKED_PIECE = 50_000, 0.001, 4_000  # bytes compared with `tokenizers`; see Encoder
LONG_DOCUMENT = 10_000_000  # characters: a longer document may be several, and earns a warning,
FEW_DOCUMENTS, LARGE_FILE = 10, 500_000  # and so do text files of many characters with few documents each


def main(argv: list | None = None) -> None:
    args = parse_arguments(argv)
    os.environ["RAYON_NUM_THREADS"] = str(args.preprocessing_num_workers)  # read when gigatoken starts its threads
    start = time.perf_counter()
    with atomic_directory(args.output_dir) as folder:
        check_may_replace(args)
        corpus, held_out = open_corpora(args)
        if args.tokenizer_name == "train":
            tokenizer = train_tokenizer(corpus, args.vocab_size)
            definition, longest = tokenizer.to_str(pretty=True), None
        else:
            tokenizer, definition, longest = load_tokenizer(args.tokenizer_name)
        length = row_length(args, longest)
        written = write_rows(args, corpus, held_out, Encoder(tokenizer, definition), folder, length)
        if shorter := shorter_length(args, written["splits"], length):
            report(f"not every split fills a row of {length} tokens: --max_seq_length {shorter} instead")
            length = shorter
            written = write_rows(args, corpus, held_out, Encoder(tokenizer, definition), folder, length)
        check_not_empty(args, written["splits"], length)
        sha256 = save_tokenizer(definition, pathlib.Path(folder, "tokenizer"), length)
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


class Part(str):
    """A piece of a document. The next string continues the document."""


@dataclass
class Buffer:
    """Texts of one split that wait to be encoded: documents, or lines of them, or pieces of long ones."""

    split: str
    texts: list = field(default_factory=list)  # UTF-8
    ends: list = field(default_factory=list)  # for each text, whether the document (or the line) ends with it
    documents: int = 0
    characters: int = 0


def write_rows(args, corpus, held_out, encode, folder: str, length: int) -> dict:
    """Encodes all documents and writes both splits below `folder`; returns what the data card says of them."""
    from tqdm import tqdm

    schema, paths = create_layout(folder, length, encode.vocab_size, packed=not args.line_by_line)
    gc.freeze()  # the collector need not walk what the imports made: 0.1 s
    writers = {split: SplitWriter(paths[split], schema, encode.reference, length) for split in SPLITS}
    sizes, fingerprint = collections.Counter(), hashlib.sha256()
    # A thread reads the documents and fills the next buffer while this one is encoded and written.
    by_file = held_out is not None
    texts = assign_by_file(corpus, held_out, sizes) if by_file else assign_splits(args, corpus, sizes)
    buffers = one_ahead(fill_buffers(texts, args.line_by_line))
    with tqdm(total=corpus.size, unit="B", unit_scale=True, disable=None, desc="encoding") as progress:
        for buffer in buffers:
            ids, lengths = encode(buffer.texts)
            writers[buffer.split].add(buffer, ids, lengths)
            bytes_of_texts = np.fromiter(map(len, buffer.texts), dtype=np.int64)
            fingerprint.update(bytes_of_texts.tobytes() + b"".join(buffer.texts))
            progress.update(int(bytes_of_texts.sum()))
    warn_of_sizes(args, corpus, sizes)
    return {
        "fingerprint": f"sha256:{fingerprint.hexdigest()}",
        "bytes": encode.encoded_bytes,
        "documents": {"median_characters": median(sizes), "longest_characters": max(sizes, default=0)},
        "splits": {split: writer.counts for split, writer in writers.items()},
        "files": {os.path.relpath(paths[split], folder): writer.close() for split, writer in writers.items()},
    }


def assign_splits(args, corpus, sizes) -> Iterator[tuple]:
    """Yields (split, text, whether a document begins with it, whether it ends with it).

    A seeded draw for each document in order holds it out; where that holds out none, the last document is.
    """
    draw, share = random.Random(args.seed), args.validation_split_percentage / 100
    may_be_last, none_held_out = [], True
    for text, begins, ends in whole_documents(corpus, sizes):
        if begins:
            yield from may_be_last
            may_be_last = []
            split = "validation" if draw.random() < share else "train"
            none_held_out = none_held_out and split == "train"
        if none_held_out:
            may_be_last.append((split, text, begins, ends))
        else:
            yield split, text, begins, ends
    for _, text, begins, ends in may_be_last:
        yield "validation", text, begins, ends


def assign_by_file(corpus, held_out, sizes) -> Iterator[tuple]:
    """assign_splits() where --validation_files are held out; says how many documents are in both splits."""
    known, repeated = set(), 0
    for text, begins, ends in whole_documents(held_out, sizes):
        known.add(hash(text[: PIECE // 2]))
        yield "validation", text, begins, ends
    for text, begins, ends in whole_documents(corpus, sizes):
        repeated += begins and hash(text[: PIECE // 2]) in known
        yield "train", text, begins, ends
    if repeated:
        warn(f"{repeated:,} of the documents to train on begin like one of --validation_files, too")


def whole_documents(corpus, sizes=None) -> Iterator[tuple]:
    """Yields (text, whether a document begins with it, whether it ends with it), the first `corpus.limit` documents.

    White space alone is no document. The documents' sizes in characters are counted in `sizes`.
    """
    documents = characters = 0
    begins = True
    for text in corpus.texts():
        if begins and (not text or text.isspace()):
            continue
        if begins:
            if documents == corpus.limit:
                return
            documents += 1
        ends = not isinstance(text, Part)
        yield text, begins, ends
        characters += len(text)
        if ends and sizes is not None:
            sizes[characters] += 1
        if ends:
            characters = 0
        begins = ends


def fill_buffers(assigned: Iterator[tuple], line_by_line: bool) -> Iterator[Buffer]:
    """Collects each split's texts, and yields a buffer when it is full."""
    buffers, line_begins = {split: Buffer(split) for split in SPLITS}, True
    for split, text, begins, ends in assigned:
        buffers[split].documents += begins
        lines = text.split("\n") if line_by_line else [text]
        for i, line in enumerate(lines, start=1):
            line_ends = ends or i < len(lines)
            if line_by_line and line_begins and (not line or line.isspace()):
                continue
            for piece in pieces(line):
                buffer = buffers[split]
                buffer.texts.append(utf8(piece))
                buffer.ends.append(line_ends and not isinstance(piece, Part))
                buffer.characters += len(piece)
                if buffer.characters >= BUFFER:
                    yield buffer
                    buffers[split] = Buffer(split)
            line_begins = line_ends
    yield from (buffer for buffer in buffers.values() if buffer.texts)


def pieces(text: str) -> Iterator[str]:
    """Cuts a text where RoBERTa's pre-tokenizer always does: before a space or line end after another character.

    Its pattern looks forward only, and no word of it goes on with white space: the pieces give the text's own tokens.
    Pieces have about PIECE characters, more where there is no such place, and all but the last are Parts.
    """
    start = 0
    while len(text) - start > PIECE:
        limit = start + PIECE
        near = max(start + 1, limit - 1000)
        found = [*ALWAYS_CUT.finditer(text, near, limit)] or [*ALWAYS_CUT.finditer(text, start + 1, limit)]
        place = found[-1] if found else ALWAYS_CUT.search(text, limit)
        if place is None:
            break
        yield Part(text[start : place.start()])
        start = place.start()
    yield text[start:] if start else text


ALWAYS_CUT = re.compile(r"(?<=[^\s\u180e])[ \n]")


def one_ahead(items: Iterator) -> Iterator:
    """Yields the items; a thread makes the next one while this one is used."""
    with ThreadPoolExecutor(1) as thread:
        making = thread.submit(next, items, None)
        while (item := making.result()) is not None:
            making = thread.submit(next, items, None)
            yield item


class SplitWriter:
    """Makes rows of a split's tokens and writes them to a file, an Arrow stream."""

    def __init__(self, path: str, schema, tokenizer, length: int):
        import pyarrow

        self.file = HashedFile(path)
        self.schema, self.stream = schema, pyarrow.ipc.new_stream(self.file, schema)
        self.packed = pyarrow.types.is_fixed_size_list(schema.field("input_ids").type)
        self.bos, self.eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
        special = [tokenizer.token_to_id(token) for token in (BOS, PAD, EOS, UNK, MASK)]
        self.is_special = np.zeros(tokenizer.get_vocab_size(), dtype=bool)
        self.is_special[[token_id for token_id in special if token_id is not None]] = True
        self.room = length - 2  # <s> and </s> take two places of a row
        self.rest = np.empty(0, dtype=schema.field("input_ids").type.value_type.to_pandas_dtype())
        self.counts = dict.fromkeys(("documents", "tokens", "rows", "dropped_tokens"), 0)

    def add(self, buffer: Buffer, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Takes a buffer's token ids (integers [sum of lengths]) and its texts' numbers of tokens (int [texts])."""
        self.counts["documents"] += buffer.documents
        self.counts["tokens"] += len(ids)
        stream = np.concatenate([self.rest, ids.astype(self.rest.dtype)])
        ends = len(self.rest) + np.cumsum(lengths)[buffer.ends]
        if self.packed:
            self._write_packed(np.insert(stream, ends, self.eos))
        else:
            self._write_lines(stream, ends)

    def _write_packed(self, stream: np.ndarray) -> None:
        """Each `room` tokens of the stream are a row: <s> tokens </s>."""
        stream, self.rest = np.split(stream, [len(stream) // self.room * self.room])
        self.counts["dropped_tokens"] = len(self.rest)
        tokens = stream.reshape(-1, self.room)
        rows = np.empty((len(tokens), self.room + 2), dtype=stream.dtype)
        rows[:, 0], rows[:, 1:-1], rows[:, -1] = self.bos, tokens, self.eos
        self._write(rows.ravel(), np.full(len(rows), rows.shape[1]))

    def _write_lines(self, stream: np.ndarray, ends: np.ndarray) -> None:
        """The tokens up to each end are a row, without those beyond `room`. `ends`: int [lines]."""
        stream, self.rest = np.split(stream, ends[-1:]) if len(ends) else (stream[:0], stream)
        lengths = np.diff(ends, prepend=0)
        place_in_line = np.arange(len(stream)) - np.repeat(ends - lengths, lengths)
        kept, lengths = stream[place_in_line < self.room], np.minimum(lengths, self.room)
        self.counts["dropped_tokens"] += len(stream) - len(kept)
        ends = np.cumsum(lengths)
        starts_and_ends = np.stack([ends - lengths, ends], axis=1).ravel()
        self._write(np.insert(kept, starts_and_ends, np.tile([self.bos, self.eos], len(ends))), lengths + 2)

    def _write(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        import pyarrow

        columns, starts = [], np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        for column, values in zip(self.schema, (ids, self.is_special[ids])):
            if self.packed:
                columns.append(pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values), type=column.type))
            else:
                columns.append(pyarrow.ListArray.from_arrays(starts, pyarrow.array(values), type=column.type))
        self.counts["rows"] += len(lengths)
        if len(lengths):
            self.stream.write_batch(pyarrow.record_batch(columns, schema=self.schema))

    def close(self) -> dict:
        """Returns the file's size in bytes and its SHA-256."""
        self.stream.close()
        self.file.close()
        return {"bytes": os.path.getsize(self.file.name), "sha256": self.file.sha256.hexdigest()}


class HashedFile(io.BufferedWriter):
    """A new file that hashes what is written to it."""

    def __init__(self, path: str):
        super().__init__(io.FileIO(path, "w"))
        self.sha256 = hashlib.sha256()

    def write(self, data) -> int:
        self.sha256.update(data)
        return super().write(data)


def create_layout(folder: str, length: int, vocab_size: int, packed: bool) -> tuple:
    """Has `datasets` write its layout around one placeholder row; returns the schema and the paths of the rows."""
    import datasets

    fixed = length if packed else -1
    features = datasets.Features(
        input_ids=datasets.List(datasets.Value("uint16" if vocab_size <= 2**16 else "int32"), length=fixed),
        special_tokens_mask=datasets.List(datasets.Value("bool"), length=fixed),
    )
    row = {"input_ids": [[0] * length], "special_tokens_mask": [[False] * length]}
    placeholder = datasets.Dataset.from_dict(row, features=features)
    datasets.disable_progress_bars()
    datasets.DatasetDict(dict.fromkeys(SPLITS, placeholder)).save_to_disk(folder)
    datasets.enable_progress_bars()
    paths = {split: os.path.join(folder, split, "data-00000-of-00001.arrow") for split in SPLITS}
    return features.arrow_schema, paths


class Encoder:
    """gigatoken, compared with `tokenizers` on a sample of the text from the whole run."""

    def __init__(self, tokenizer, definition: str):
        self.reference, self.definition, self.vocab_size = tokenizer, definition, tokenizer.get_vocab_size()
        self.token_bytes = np.zeros(self.vocab_size, dtype=np.int64)
        for token, token_id in all_tokens(json.loads(definition)).items():
            self.token_bytes[token_id] = len(token)  # in byte-level BPE, a character stands for a byte
        self.encoded_bytes, self.to_check, self.draw = 0, CHECKED_FIRST, random.Random(0)
        self.renew()

    def renew(self) -> None:
        import gigatoken

        self.gigatoken = None  # its cache goes before the new one's comes
        try:
            self.gigatoken = gigatoken.Tokenizer.from_json(self.definition)
        except RuntimeError as error:
            raise UserError(
                f"gigatoken cannot read the tokenizer ({brief(error)}): take one of RoBERTa's kind"
            ) from error
        self.memory_without_cache = memory_in_use()

    def __call__(self, texts: list) -> tuple:
        """Returns the texts' token ids (uint32 [all]) and their numbers of tokens (int64 [len(texts)])."""
        words = [i for i, text in enumerate(texts) if len(text) > 4 * PIECE]
        ids, lengths = self.encode([b"" if i in words else text for i, text in enumerate(texts)])
        for i in words:
            place, ids_of_word = lengths[:i].sum(), self.encode_word(texts[i])
            ids, lengths[i] = np.concatenate([ids[:place], ids_of_word, ids[place:]]), len(ids_of_word)
        size = sum(map(len, texts))
        self.encoded_bytes += size
        self.to_check += CHECKED_SHARE * size
        for text in self.draw.sample(texts, len(texts)):
            if self.to_check <= 0:
                break
            self.check(text)
        return ids, lengths

    def encode(self, texts: list) -> tuple:
        if memory_in_use() - self.memory_without_cache > CACHE_BYTES:
            self.renew()
        layout = self.gigatoken.encode_batch(texts).layout
        ids, bounds = np.asarray(layout.content.data), np.asarray(layout.offsets.data)
        return ids[bounds[0] : bounds[-1]], np.diff(bounds)

    def check(self, text: bytes) -> None:
        start = self.draw.randrange(max(1, len(text) - CHECKED_PIECE))
        piece = text[start : start + CHECKED_PIECE].decode(errors="ignore")
        self.to_check -= len(piece)
        if self.reference.encode(piece, add_special_tokens=False).ids != self.gigatoken.encode(piece.encode()).tolist():
            raise UserError(
                f"gigatoken and tokenizers encode the text that begins {piece[:60]!r} differently: "
                f"this tokenizer, or this version of gigatoken ({version('gigatoken')}), cannot be used"
            )

    def encode_word(self, word: bytes) -> np.ndarray:
        """Encodes a long text without white space window by window; at once it would take 50 times its memory.

        Tokens are what BPE gives for a text where each two neighbours are what it gives for theirs
        (https://github.com/github/rust-gems/tree/main/crates/bpe). So a window goes on where the one before ends, less
        its last tokens, which depend on what follows; and the two tokens that meet there are tested.
        """
        windows, start, last = [], 0, b""
        while start < len(word):
            ids, _ = self.encode([word[start : start + WINDOW].decode(errors="ignore").encode()])
            ends = start + np.cumsum(self.token_bytes[ids])
            if last and self.encode([last + word[start : ends[0]]])[0].tolist() != [windows[-1][-1], ids[0]]:
                return self.encode([word])[0]  # no text for which the above holds
            if start + WINDOW < len(word):
                used = max(1, len(ids) - UNSURE_TOKENS)
                while word[ends[used - 1]] & 0b11000000 == 0b10000000:  # this token ends within a character
                    used -= 1
                ids, ends = ids[:used], ends[:used]
            windows.append(ids)
            start, last = ends[-1], word[ends[-1] - self.token_bytes[ids[-1]] : ends[-1]]
        return np.concatenate(windows)


def memory_in_use() -> float:
    """Resident memory in bytes; the largest so far where the system does not tell (only Linux does)."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_memory() * 1e6


def utf8(text: str) -> bytes:
    """Encodes text; lone surrogates, which JSON can hold and UTF-8 cannot, become U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


# ---------------------------------------------------------------- tokenizer


def as_roberta(tokenizer):
    """Gives a byte-level BPE what makes it RoBERTa's tokenizer."""
    from tokenizers import AddedToken, decoders, pre_tokenizers, processors

    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS, PAD, EOS, UNK, AddedToken(MASK, lstrip=True)])
    bos, eos = ((token, tokenizer.token_to_id(token)) for token in (BOS, EOS))
    tokenizer.post_processor = processors.RobertaProcessing(eos, bos, True, False)
    return tokenizer


def train_tokenizer(corpus, vocab_size: int):
    """Learns a byte-level BPE from about TRAINING_SAMPLE characters: documents drawn evenly from files, the first ones
    of other corpora. The vocabulary holds all 256 bytes, so any text is encoded without loss."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    characters = sum(len(text) for text, _, _ in whole_documents(corpus)) if corpus.is_local else 0
    draw, used = random.Random(0), 0

    def sample() -> Iterator[str]:
        nonlocal used
        for text, _, _ in whole_documents(corpus):
            if not characters and used >= TRAINING_SAMPLE:
                report(f"tokenizer: learned from the first {used:,} characters, as the size of the text is unknown")
                return
            if draw.random() * characters < TRAINING_SAMPLE:
                used += len(text)
                yield utf8(text).decode()

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # <mask> comes last
        special_tokens=[BOS, PAD, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(sample(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = as_roberta(Tokenizer(models.BPE({**model["vocab"], MASK: len(model["vocab"])}, merges)))
    learned = tokenizer.get_vocab_size()
    if learned < vocab_size:
        warn(f"the text gives a vocabulary of {learned} tokens only, not {vocab_size}")
    report(f"tokenizer: {learned:,} tokens learned from {used:,} characters")
    return tokenizer


def load_tokenizer(name: str) -> tuple:
    """Returns the tokenizer in a directory (tokenizer.json, or vocab.json and merges.txt) or, where there is none, of a
    hub id; its definition, the content of tokenizer.json; and its model_max_length or None."""
    from tokenizers import Tokenizer, models

    folder, config = pathlib.Path(name), {}
    try:
        if not folder.is_dir():
            definition = Tokenizer.from_pretrained(name).to_str(pretty=True)
        elif (folder / "tokenizer.json").exists():
            definition = (folder / "tokenizer.json").read_text(encoding="utf-8")
        else:
            model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
            definition = as_roberta(Tokenizer(model)).to_str(pretty=True)
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
    if differences := differences_from_roberta(json.loads(definition)):
        raise UserError(
            f"the tokenizer {name} has {brief(', '.join(differences))}, which gigatoken may not follow as tokenizers "
            "does; use one of RoBERTa's kind"
        )
    return tokenizer, definition, config.get("model_max_length")


def differences_from_roberta(definition: dict) -> list:
    """The properties that gigatoken does not follow, or that allow no cut where pieces() cuts."""
    found = [f"the property {key}" for key in ("normalizer",) if definition.get(key)]
    splitter = definition.get("pre_tokenizer") or {}
    if splitter.get("type") != "ByteLevel" or splitter.get("add_prefix_space") or not splitter.get("use_regex", True):
        found.append(f"the pre_tokenizer {json.dumps(splitter)}")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"):
        if definition["model"].get(key):
            found.append(f"a model with {key}")
    for token in definition["added_tokens"]:
        if token["single_word"] or token["rstrip"] or re.search(r"\s", token["content"]):
            found.append(f"the added token {token['content']!r} with single_word, rstrip or white space")
    return found


def save_tokenizer(definition: str, folder: pathlib.Path, length: int) -> str:
    """Writes the files that `tokenizers`, transformers and PaddleNLP load; returns tokenizer.json's SHA-256."""
    folder.mkdir()
    (folder / "tokenizer.json").write_text(definition, encoding="utf-8")
    parsed = json.loads(definition)
    vocab = all_tokens(parsed)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in parsed["model"]["merges"]]
    config = {
        "tokenizer_class": "RobertaBPETokenizer",  # PaddleNLP's name; transformers takes tokenizer.json
        "model_max_length": max(512, length),
        "add_prefix_space": False,
        **{"bos_token": BOS, "cls_token": BOS, "eos_token": EOS, "sep_token": EOS},
        **{"unk_token": UNK, "pad_token": PAD, "mask_token": MASK},
    }
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return hashlib.sha256(definition.encode()).hexdigest()


# ---------------------------------------------------------------- readers


@dataclass
class Corpus:
    """Documents, which `texts` reads from the start each time it is called."""

    texts: Callable[[], Iterator[str]]
    source: list | str
    size: int | None = None  # bytes, where they are known
    is_local: bool = False  # files, which can be read twice
    limit: int | None = None  # documents to take
    separators: dict = field(default_factory=dict)  # for each text file, what its documents end at


def open_text(path: str, newline: str | None = None):
    """Opens a UTF-8 file, unpacked, without the byte-order mark; CRLF becomes LF unless newline is ""."""
    import fsspec

    return fsspec.open(path, "rt", compression="infer", encoding="utf-8-sig", newline=newline)


SEPARATORS = {"empty_line": re.compile(r"\n\s*\n"), "line": re.compile(r"\n"), "file": re.compile(r"(?!)")}


def read_txt(path: str, column: str, separator: str | None) -> Iterator[str]:
    """Yields the documents, a long one in Parts."""
    with open_text(path) as file:
        rest = file.readline(BLOCK)
        while rest.isspace():  # empty lines at the start separate nothing
            rest = file.readline(BLOCK)
        while block := file.read(max(BLOCK, len(rest))):
            *documents, rest = SEPARATORS[separator].split(rest + block)
            yield from documents
            if len(rest) > BUFFER:
                *parts, rest = pieces(rest)
                yield from parts
    *documents, rest = SEPARATORS[separator].split(rest + "\n")
    yield from documents
    yield rest.rstrip("\n")


def separator_of(path: str) -> str:
    """empty_line, if there is an empty line between two others, and else line."""
    texts = Corpus(lambda: read_txt(path, "", "empty_line"), path)
    beginnings = (begins for _, begins, _ in whole_documents(texts) if begins)
    return "empty_line" if len(list(itertools.islice(beginnings, 2))) == 2 else "line"


def read_json(path: str, column: str, separator: str | None) -> Iterator:
    """One JSON value a line; a .json file may instead hold one array, which is read whole."""
    with open_text(path) as lines:
        first = next((line for line in lines if not line.isspace()), "")
        lines.seek(0)
        if type_of(path) == ".json" and first.lstrip().startswith("["):
            yield from json.load(lines)
        else:
            yield from ("" if line.isspace() else json.loads(line.rstrip()) for line in lines)


def read_csv(path: str, column: str, separator: str | None) -> Iterator[str]:
    csv.field_size_limit(2**31 - 1)
    with open_text(path, newline="") as lines:
        rows = csv.reader(lines, strict=True)
        header = next(rows, [column])
        text_of(dict.fromkeys(header), column, path)
        place = header.index(column)
        yield from (row[place] if place < len(row) else "" for row in rows)


def read_parquet(path: str, column: str, separator: str | None) -> Iterator:
    import fsspec
    from pyarrow import parquet

    with fsspec.open(path, "rb") as source:
        file = parquet.ParquetFile(source)
        text_of(dict.fromkeys(file.schema_arrow.names), column, path)
        for batch in file.iter_batches(batch_size=256, columns=[column]):
            yield from batch.to_pylist()


READERS = {".txt": read_txt, ".jsonl": read_json, ".json": read_json, ".csv": read_csv, ".parquet": read_parquet}
PACKED = (".gz", ".bz2", ".xz")
TYPES = f"{', '.join(READERS)}, all but the last also as {', '.join(PACKED)}"


def type_of(path: str) -> str | None:
    """The type of file that a name stands for."""
    name, suffix = os.path.splitext(path.lower())
    if suffix in PACKED:
        name, suffix = os.path.splitext(name)
        return suffix if suffix in READERS and suffix != ".parquet" else None
    return suffix if suffix in READERS else None


def text_of(record, column: str, where: str) -> str:
    """The text of a record: a string, or a mapping whose `column` is a string or None."""
    text = record
    if isinstance(record, dict):
        if column not in record:
            columns = brief(", ".join(map(str, record)))
            raise UserError(f"{where}: no column {column!r}, but {columns}: name one with --text_column")
        text = "" if record[column] is None else record[column]
    if not isinstance(text, str):
        raise UserError(f"{where}: text is expected in column {column!r}, not a {type(text).__name__}")
    return text


def file_documents(paths: list, args, separators: dict) -> Iterator[str]:
    for path in paths:
        position = 0
        try:
            separator = None
            if type_of(path) == ".txt":
                separator = separators[path] = args.document_separator or separators.get(path) or separator_of(path)
            for position, record in enumerate(READERS[type_of(path)](path, args.text_column, separator), start=1):
                where = f"{path}, record {position}"
                yield record if isinstance(record, str) else text_of(record, args.text_column, where)
        except UserError:
            raise
        except UnicodeDecodeError:
            raise UserError(f"{path}: not UTF-8 after record {position}; convert it (iconv does)") from None
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {position + error.lineno}: malformed JSON ({error.msg})") from None
        except Exception as error:  # what unpacks files and fetches them raises errors of many kinds
            raise UserError(f"cannot read {path} beyond record {position}: {brief(error)}") from None


def find_files(patterns: list, output_dir: str) -> list:
    """The files that paths, globs, URLs and directories (searched through) stand for, in order, each once."""
    found, skipped = {}, collections.Counter()  # found: path by real path
    for pattern in patterns:
        matches = sorted(glob.glob(pattern, recursive=True))
        if "://" in pattern or os.path.lexists(pattern):
            matches = [pattern]
        paths = {}
        for match in matches:
            inside = files_below(match, output_dir, skipped) if os.path.isdir(match) else [match]
            paths.update(dict.fromkeys(inside))  # `**` matches a directory and what is in it
        if not paths:
            raise UserError(f"no such file, or nothing to read in it: {brief(pattern)} (types: {TYPES})")
        for path in paths:
            real = path if "://" in path else os.path.realpath(path)
            skipped["files that were named or linked twice"] += real in found
            found.setdefault(real, path)
    for path in found.values():
        if type_of(path) is None:
            remedy = " (Parquet is packed inside: unpack the file)" if ".parquet." in path.lower() else ""
            raise UserError(f"{path}: unknown type of file{remedy}; the types are {TYPES}")
        if "://" not in path and not os.path.isfile(path):
            raise UserError(f"{path} is no file, or a link to one that is missing")
    if skipped := [f"{count} {what}" for what, count in skipped.items() if count]:
        report(f"not read: {', '.join(skipped)}")
    return list(found.values())


def files_below(folder: str, output_dir: str, skipped: collections.Counter) -> list:
    """The files to read in a directory, sorted; links are followed, but into no directory a second time."""
    output, visited, found = os.path.realpath(output_dir), set(), []
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        is_output = f"{real}/".startswith((f"{output}/", output + PARTIAL, output + ASIDE))
        if is_output or real in visited or "dataset_dict.json" in names:
            skipped["directories that hold prepared data or were read before"] += 1
            folders.clear()
            continue
        visited.add(real)
        paths = [os.path.join(parent, name) for name in names if os.path.join(real, name) != output + LOCK]
        wanted = [path for path in paths if type_of(path) and os.path.isfile(path)]
        skipped[f"files in {brief(folder)} of other types than {TYPES}"] += len(paths) - len(wanted)
        found += wanted
    return sorted(found)


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

    documents = None
    try:
        stream = datasets.load_dataset(name, config, split=split, streaming=True)
        documents = 0
        columns = stream.column_names or list(next(iter(stream)))
        text_of(dict.fromkeys(columns), column, f"data set {name}")
        for batch in stream.select_columns([column]).iter(batch_size=256):
            for text in batch[column]:
                documents += 1
                yield text_of({column: text}, column, f"data set {name}, record {documents}")
    except UserError:
        raise
    except Exception as error:  # the hub's client, and what it stands on, raise errors of many kinds
        modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
        if isinstance(error, (ConnectionError, TimeoutError)) or modules & {"requests", "httpx", "aiohttp"}:
            remedy = (
                "check the connection (HF_ENDPOINT names a mirror), or use --data_files FILE or --dataset_name demo"
            )
        elif documents is None:
            remedy = "check --dataset_name, --dataset_config_name and --split"
        else:
            remedy = f"its data after record {documents} is damaged or not what it should be"
        what = f"cannot read the data set {name}, {config or 'no configuration'}, split {split}"
        raise UserError(f"{what} ({brief(error, 3000)}): {remedy}") from error


def open_corpora(args) -> tuple:
    """Returns the text as a Corpus, and that of --validation_files as another, or None."""
    held_out = open_files(args.validation_files, args) if args.validation_files else None
    if args.data_files:
        corpus = open_files(args.data_files, args)
    elif args.dataset_name == "demo":
        corpus = Corpus(demo_documents, "demo")
    else:
        name, config = args.dataset_name or DEFAULT_DATASET, args.dataset_config_name
        if name == RETIRED_DATASET:
            language = (config or "en").rpartition(".")[2]
            name, retired, config = DEFAULT_DATASET, config, f"{DEFAULT_DUMP}.{language}"
            warn(f"the data set {RETIRED_DATASET} / {retired} can no longer be loaded; using {name} / {config} instead")
        elif name == DEFAULT_DATASET:
            config = config or f"{DEFAULT_DUMP}.en"
        corpus = Corpus(lambda: hub_documents(name, config, args.split, args.text_column), f"{name}/{config}")
    corpus.limit = args.max_documents
    return corpus, held_out


def open_files(patterns: list, args) -> Corpus:
    paths, separators = find_files(patterns, args.output_dir), {}
    local = not any("://" in path for path in paths)
    plain = local and all(path.lower().endswith((".txt", ".jsonl")) for path in paths)
    size = sum(map(os.path.getsize, paths)) if plain and not args.max_documents else None
    return Corpus(lambda: file_documents(paths, args, separators), paths, size, local, separators=separators)


# ---------------------------------------------------------------- arguments, checks and reports


def parse_arguments(argv: list | None):
    parser = ArgumentParser("Turn text into rows of tokens for masked language modelling.")
    add = parser.add_argument_group("data").add_argument
    add("--output_dir", default="wiki", help="directory to write")
    add("--overwrite_output_dir", type=boolean, default=False, help="replace a data set that is there")
    add("--data_files", nargs="+", metavar="PATH", help=f"files, globs, URLs, directories of {TYPES}; no hub")
    add("--validation_files", nargs="+", metavar="PATH", help="likewise: what is held out, instead of a drawn share")
    add("--document_separator", choices=SEPARATORS, help="what a .txt file's documents end at; else it is looked at")
    add("--dataset_name", help=f"a data set on the hub ({DEFAULT_DATASET}), or `demo`: no download")
    add("--dataset_config_name", help=f"the data set's configuration ({DEFAULT_DUMP}.en for Wikipedia)")
    add("--split", default="train", help="the split of the data set that is read")
    add("--text_column", default="text", help="the column with the text, where there are columns")
    add("--max_documents", type=number(int, 1), help="take the first documents only, so many")
    add(
        "--validation_split_percentage",
        type=number(float, 0, 100),
        default=1,
        help="percent of the documents held out for evaluation, at least one document; 100: no rows to train on",
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
    add("--max_seq_length", type=number(int, 4), help="tokens in a row, <s> and </s> too (512, or what the text fills)")
    add("--line_by_line", type=boolean, default=False, help="a row for each line, cut at max_seq_length, not packed")
    add("--preprocessing_num_workers", type=number(int, 1), default=os.cpu_count(), help="encoding threads")
    args = parser.parse_args(argv)
    if any(0xD800 <= ord(character) < 0xE000 for character in args.output_dir):  # how Python holds other bytes
        raise UserError(f"--output_dir {args.output_dir!a} is not UTF-8: choose another name")
    if args.data_files and args.dataset_name:
        raise UserError("--data_files and --dataset_name: give one of them, or prepare each in a directory of its own")
    return args


def check_may_replace(args) -> None:
    path = args.output_dir
    if os.path.isfile(path):
        raise UserError(f"{path!r} is a file: choose another --output_dir")
    if os.path.isdir(path) and os.listdir(path):
        if not os.path.exists(os.path.join(path, "dataset_dict.json")):
            raise UserError(f"{path} is not empty and not a data set: choose another --output_dir")
        if not args.overwrite_output_dir:
            raise UserError(f"{path} exists: choose another --output_dir, or replace it: --overwrite_output_dir True")


def row_length(args, longest: int | None) -> int:
    if args.max_seq_length is None:
        return min(512, longest or 512)
    if longest and args.max_seq_length > longest:
        raise UserError(
            f"--max_seq_length {args.max_seq_length} is above the model_max_length {longest} of {args.tokenizer_name}"
        )
    return args.max_seq_length


def shorter_length(args, splits: dict, length: int) -> int | None:
    """The largest power of two that every split's text fills, where one does not fill a row of a default `length`."""
    unfilled = [counts for counts in splits.values() if counts["documents"] and not counts["rows"]]
    if args.max_seq_length or not unfilled:
        return None
    tokens = min(counts["tokens"] + counts["documents"] for counts in unfilled)  # with each document's </s>
    return next((shorter for shorter in (256, 128, 64, 32, 16) if shorter <= min(length, tokens + 2)), None)


def check_not_empty(args, splits: dict, length: int) -> None:
    if not any(counts["documents"] for counts in splits.values()):
        raise UserError("the corpus is empty: no document holds anything but white space")
    if not splits["validation"]["documents"]:
        raise UserError("--validation_files hold nothing but white space")
    held_out = splits["validation"]["documents"]
    if not splits["train"]["documents"] and (args.validation_files or args.validation_split_percentage < 100):
        raise UserError(
            f"the corpus is too small: all of it ({held_out} documents) is held out, and nothing left to train on. "
            "Add text, divide it (--document_separator line), or hold out --validation_files"
        )
    for split, counts in splits.items():
        if counts["documents"] and not counts["rows"]:
            raise UserError(
                f"the corpus is too small: the {split} split's {counts['documents']} documents ({counts['tokens']:,} "
                f"tokens) do not fill a row of {length}. Lower --max_seq_length, change "
                "--validation_split_percentage, or add text"
            )


def median(sizes: collections.Counter) -> int:
    """The median of the numbers that a Counter has counted; 0 if there are none."""
    middle, seen = sizes.total() / 2, 0
    for size, count in sorted(sizes.items()):
        seen += count
        if seen >= middle:
            return size
    return 0


def warn_of_sizes(args, corpus: Corpus, sizes: collections.Counter) -> None:
    longest, characters = max(sizes, default=0), sum(size * count for size, count in sizes.items())
    remedy = "check what its documents end at (--document_separator)"
    if longest > LONG_DOCUMENT:
        warn(f"the longest document has {longest:,} characters: {remedy}")
    files = len(corpus.separators)
    guessed = files and not args.document_separator
    if guessed and sizes.total() < FEW_DOCUMENTS * files and characters > LARGE_FILE * files:
        warn(f"{sizes.total()} documents only in {characters:,} characters of text: {remedy}")


def print_summary(args, corpus: Corpus, card: dict, tokenizer, seconds: float) -> None:
    import datasets

    lines = []
    if used := collections.Counter(corpus.separators.values()):
        kinds = ", ".join(f"{kind} in {count} files" for kind, count in used.items())
        lines.append(f"the documents of text files end at: {kinds} (--document_separator sets it)")
    documents = sum(counts["documents"] for counts in card["splits"].values())
    lines.append(f"{documents:,} documents, of {card['documents']['median_characters']:,} characters in the median")
    for split, counts in card["splits"].items():
        lines.append(
            f"{split:10} " + ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items())
        )
    size = sum(path.stat().st_size for path in pathlib.Path(args.output_dir).rglob("*") if path.is_file())
    speed = f"{card['bytes'] / 1e6:,.1f} MB of text in {seconds:.1f} s ({card['bytes'] / 1e6 / seconds:.1f} MB/s)"
    lines.append(f"{speed}, {size / 1e6:,.1f} MB on disk, {peak_memory():,.0f} MB of memory at the peak")
    data = datasets.load_from_disk(args.output_dir)
    if len(data["train"]) == 0:
        lines.append("everything is held out: the train split has 0 rows")
    first = (data["train"] if len(data["train"]) else data["validation"])[0]["input_ids"]
    lines.append(f"first row: {tokenizer.decode(first, skip_special_tokens=False)[:200]!r}")
    lines.append(f"written: {args.output_dir} (tokenizer in {os.path.join(args.output_dir, 'tokenizer')})")
    report(*lines)


def report(*lines: str, file: str = "stdout") -> None:
    """Prints lines, whatever the terminal does: no character that it lacks, and no closed pipe, ends a run."""
    stream = getattr(sys, file)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        print("\n".join(lines).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@functools.cache  # once for each message: some corpora are read twice
def warn(message: str) -> None:
    report(f"warning: {message}", file="stderr")


def brief(text, longest: int = 300) -> str:
    """What an error prints of a text, of an error's or of the user's: one line of limited length."""
    line = " ".join(str(text).split()) or type(text).__name__
    return line if len(line) <= longest else f"{line[:longest]}…"


if __name__ == "__main__":
    sys.exit(command_line(main))
