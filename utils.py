"""What the other scripts share: masking, the order of rows, export, whole files, arguments, a CPU's kernels.

DataCollatorMLM works in anyone's loop, and without Paddle:

    collator = DataCollatorMLM(tokenizer, mlm_probability=0.15, seed=42)
    for epoch in range(3):
        collator.epoch = epoch  # without it, each epoch has the same masks
        batch = collator([{"input_ids": [0, 31414, 232, 328, 2]}, ...])

As a script, it exports a checkpoint to Hugging Face transformers:

    python utils.py --checkpoint ckp/paddle_10000 --output_dir ckp_transformers
    python utils.py --checkpoint ckp/paddle_10000 --output_dir ckp_onnx --onnx True
"""

import argparse
import collections
import contextlib
import ctypes
import difflib
import errno
import functools
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import shlex
import shutil
import sys
import tempfile
import threading
import traceback
import unicodedata
import warnings
import weakref
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy as np
import pyarrow
import pyarrow.compute as pc
from safetensors import deserialize
from safetensors.numpy import save_file
from tqdm import tqdm

IGNORE_INDEX = -100  # the label of a position that is not predicted
MASKED, RANDOMIZED = 0.8, 0.1  # of the chosen positions; the others stay
EVALUATION_EPOCH = 2**32 - 1  # no training reaches it
# The number of positions to predict in a batch is filled up to the next multiple of this, by at least one
# position that is ignored. Few sizes: a GPU's allocator keeps blocks by size, and its kernels, like oneDNN's
# primitives on a CPU, are chosen (and kept) for each shape. And never none: a micro-batch in which no token was
# chosen still has a position to compute (Paddle 2.6.2 multiplies no empty matrix), so every rank goes through
# the same backward pass.
POSITIONS_MULTIPLE = 32
# Batches of rows of several lengths are padded to a multiple of this. Few lengths: each new shape makes some 40
# oneDNN primitives on a CPU, kept for the next batch of that shape (0.8 GB after a minute of ragged rows without
# this); and a GPU's tensor cores want lengths that 8 divides. Pieces of 8, 16 and 32 tokens divide it (cut_rows).
LENGTH_MULTIPLE = 32
CHECKSUMS = "SHA256SUMS"
TRANSFORMERS_NAMES = (  # parts of names: PaddleNLP's, transformers'; one that contains another's stands before it
    (".encoder.layers.", ".encoder.layer."),
    (".self_attn.q_proj.", ".attention.self.query."),
    (".self_attn.k_proj.", ".attention.self.key."),
    (".self_attn.v_proj.", ".attention.self.value."),
    (".self_attn.out_proj.", ".attention.output.dense."),
    (".norm1.", ".attention.output.LayerNorm."),
    (".linear1.", ".intermediate.dense."),
    (".linear2.", ".output.dense."),
    (".norm2.", ".output.LayerNorm."),
    (".embeddings.layer_norm.", ".embeddings.LayerNorm."),
)
TIED = {  # what transformers may leave out: it is the same as
    "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
UNUSED = (  # beginnings of names that transformers and PaddleNLP save, and masked language modelling does not use
    "roberta.pooler.",
    "roberta.embeddings.position_ids",
    "roberta.embeddings.token_type_ids",
)
OTHER_WEIGHTS = (".bin", ".pdparams", ".safetensors", ".h5", ".msgpack", ".pt", ".pth", ".ckpt", ".gguf")
CONVERSIONS = {  # endings of weights that are not read, and what turns them into such that are
    ".pdparams": 'python -c "import numpy, paddle, safetensors.numpy as s; '
    "w = paddle.load('model_state.pdparams'); "
    "s.save_file({n: w[n].astype('float32').numpy() for n in w}, 'model.safetensors')\"",
    ".bin": 'python -c "import glob, torch, safetensors.torch as s; '
    "w = [torch.load(f, weights_only=True) for f in glob.glob('pytorch_model*.bin')]; "
    "s.save_file({n: x[n].clone().contiguous() for x in w for n in x}, 'model.safetensors', {'format': 'pt'})\"",
}
OTHER_TOKENIZERS = {  # files of tokenizers that are no byte-level BPE; the first that is there tells the kind
    "bpe.codes": "a BPE of characters",
    "sentencepiece.bpe.model": "SentencePiece's",
    "spiece.model": "SentencePiece's",
    "vocab.txt": "BERT's WordPiece",
}
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", *OTHER_TOKENIZERS)
SENTENCE_TRANSFORMERS = [  # its modules: the encoder, and the mean of the hidden states that are no padding
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


class DataCollatorMLM:
    """Masks rows of tokens, afresh in each epoch (RoBERTa, section 4.1).

    Each position that is not special is chosen with `mlm_probability`; of these, 80 % become
    <mask>, 10 % any token that is not special, 10 % stay (BERT, section 3.1). `whole_words`
    chooses words (see WholeWords); what becomes of a token is drawn for each token then, too.

    A row's mask depends on (seed, epoch, row) alone: not on the batch, how it is padded, the
    device or a restart. A row without epoch and row is known by a hash of its ids and the
    attribute `epoch`: it is 0 unless set, and the masks then are the same in each epoch. (Workers
    of a DataLoader that persist keep a copy of the collator: have the examples hold `epoch` there.)

    Takes [{"input_ids": [length], "special_tokens_mask" (optional)}, ...], in lists or arrays, and
    returns in int64:
        input_ids: [batch, seq], masked and padded
        labels: [batch, seq], IGNORE_INDEX (-100) where a position was not chosen
        masked_positions: [n], flat indices of the chosen positions, filled up to a multiple of
            POSITIONS_MULTIPLE (32) with one that was not chosen
    seq is the longest row's length, made a multiple of `pad_to_multiple_of`. Left out, that is
    LENGTH_MULTIPLE (32) where the batch's rows differ in length; packed rows stay as they are.

    ValueError: mlm_probability is not in (0, 1], the tokenizer lacks a mask or padding, or
    `whole_words` suits neither the tokenizer nor the text (see WholeWords).
    """

    def __init__(self, tokenizer, mlm_probability=0.15, seed=0, whole_words=False, pad_to_multiple_of=None):
        if not 0 < mlm_probability <= 1:
            raise ValueError(f"mlm_probability is {mlm_probability}, not in (0, 1]")
        if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer lacks a mask token or a pad token")
        self.mlm_probability, self.seed, self.epoch = mlm_probability, seed, 0
        self.pad_to_multiple_of = pad_to_multiple_of
        self.mask_token_id, self.pad_token_id = tokenizer.mask_token_id, tokenizer.pad_token_id
        all_ids = np.arange(vocabulary_size(tokenizer))
        self.is_special = np.isin(all_ids, special_ids(tokenizer))
        self.regular_ids = all_ids[~self.is_special]
        self.words = WholeWords(tokenizer) if whole_words else None

    def __call__(self, examples: list) -> dict:
        rows = [self._mask(example) for example in examples]
        lengths = [len(ids) for ids, _ in rows]
        multiple = self.pad_to_multiple_of
        if multiple is None:
            multiple = LENGTH_MULTIPLE if min(lengths) < max(lengths) else 1
        shape = len(rows), math.ceil(max(lengths) / multiple) * multiple
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        for i, (ids, targets) in enumerate(rows):
            input_ids[i, : len(ids)] = ids
            labels[i, : len(ids)] = targets
        positions = np.flatnonzero(labels != IGNORE_INDEX)
        ignored = np.flatnonzero(labels == IGNORE_INDEX)  # none only where every position is chosen
        filler = ignored[:1].repeat(POSITIONS_MULTIPLE - len(positions) % POSITIONS_MULTIPLE)
        positions = np.append(positions, filler)
        return {"input_ids": input_ids, "labels": labels, "masked_positions": positions}

    def _mask(self, example: dict) -> tuple:
        """A row's masked ids and its labels (int64 [length])."""
        ids = np.asarray(example["input_ids"], dtype=np.int64)
        special = self.is_special[ids]
        if example.get("special_tokens_mask") is not None:
            special |= np.asarray(example["special_tokens_mask"], dtype=bool)

        # The row's own random numbers, from a counter (Salmon et al., 2011): no stream to keep
        # in step or to save, and the same whichever process asks for the row
        row = example.get("row")
        is_hash = row is None
        if is_hash:
            row = int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little")
        counter = [0, is_hash, row, example.get("epoch", self.epoch)]
        generator = np.random.Generator(np.random.Philox(key=self.seed, counter=counter))

        # Which positions are to be predicted?
        if self.words is None:
            chosen = (generator.random(len(ids)) < self.mlm_probability) & ~special
        else:
            chosen = choose_words(self.words.begins(ids), special, self.mlm_probability, generator)

        # What does the model see there? The mask, any token that is not special, or the right one
        draw = generator.random(len(ids))
        masked_ids = np.where(chosen & (draw < MASKED), self.mask_token_id, ids)
        randomized = chosen & (draw >= MASKED) & (draw < MASKED + RANDOMIZED)
        masked_ids[randomized] = generator.choice(self.regular_ids, randomized.sum())
        return masked_ids, np.where(chosen, ids, IGNORE_INDEX)

    def identity(self) -> dict:
        """All that the masks of given rows depend on, in JSON's types: a resumed run must share it."""
        identity = {
            "mlm_probability": self.mlm_probability,
            "seed": self.seed,
            "shares": {"masked": MASKED, "randomized": RANDOMIZED},
            "mask_token_id": self.mask_token_id,
            "special_ids": np.flatnonzero(self.is_special).tolist(),
            "vocabulary_size": len(self.is_special),
            "whole_words": None if self.words is None else self.words.identity(),
        }
        return {f"masking.{name}": value for name, value in identity.items()}


def vocabulary_size(tokenizer) -> int:
    """How many ids a tokenizer has, tokens added to its vocabulary included (`vocab_size` leaves them out)."""
    return len(tokenizer) if hasattr(tokenizer, "__len__") else tokenizer.vocab_size


def special_ids(tokenizer) -> np.ndarray:
    """The ids of a tokenizer that are special, sorted: never chosen, never drawn as a replacement.

    These are <s>, <mask> and the like, the additional special tokens, and what a tokenizer.json
    calls special; of PaddleNLP's tokenizers, which do not read that file, all that they know of.
    """
    ids = set(tokenizer.all_special_ids)
    # {id: token} of the added tokens: AddedTokens, which may be special, in transformers; text in PaddleNLP
    added = getattr(tokenizer, "added_tokens_decoder", {})
    ids |= {token_id for token_id, token in added.items() if getattr(token, "special", False)}
    return np.array(sorted(ids), dtype=np.int64)


def cut_rows(batch: dict, length: int) -> dict:
    """A batch of DataCollatorMLM with its rows cut into pieces of `length` tokens.

    input_ids and labels, arrays or tensors, go from [batch, seq] to [batch * seq / length, length];
    arrays share the given ones' memory. The order of the tokens stays, so masked_positions, which
    are flat, stay too. ValueError: `length` does not divide seq.
    """
    seq = batch["input_ids"].shape[1]
    if length < 1 or seq % length:
        raise ValueError(f"rows of {seq} tokens cannot be cut into pieces of {length}")
    pieces = {name: batch[name].reshape([-1, length]) for name in ("input_ids", "labels")}
    return batch | pieces


# -------- rows and their order
class UpdateSampler:
    """The rows of each update of a training run, as they are cut among ranks and micro-batches.

    An epoch is a permutation of the rows, from (seed, epoch), cut into global batches (without
    an incomplete last one), these into micro-steps, and these into ranks. So an update's rows
    depend on its number and the global batch alone, and a run goes on at any update without
    reading what it has passed.
    """

    def __init__(self, num_rows, batch_size, rank=0, world_size=1, accumulation=1, seed=0):
        """batch_size: rows of one rank and micro-batch; accumulation: micro-batches of an update."""
        self.num_rows, self.rank, self.seed = num_rows, rank, seed
        self.shape = accumulation, world_size, batch_size
        self.global_batch = math.prod(self.shape)
        self.updates_per_epoch = num_rows // self.global_batch

    def batches(self, first_update: int, last_update: int):
        """Yields this rank's micro-batches of the updates first_update ... last_update - 1 (from 0).

        Each is a list of (epoch, row), `accumulation` of them an update. ValueError: there are
        fewer rows than a global batch takes.
        """
        if self.updates_per_epoch == 0:
            raise ValueError(f"{self.num_rows} rows are fewer than a global batch of {self.global_batch}")
        for update in range(first_update, last_update):
            epoch, position = divmod(update, self.updates_per_epoch)
            if position == 0 or update == first_update:
                permutation = np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
            rows = permutation[position * self.global_batch : (position + 1) * self.global_batch]
            for micro_batch in rows.reshape(self.shape)[:, self.rank]:
                yield [(epoch, row) for row in micro_batch.tolist()]


def evaluation_batches(num_rows, batch_size, rank=0, world_size=1, max_rows=0) -> list:
    """This rank's batches of an evaluation, lists of (EVALUATION_EPOCH, row).

    Over all ranks each row stands in exactly one of them, all rows or `max_rows` of them, drawn
    once and for all. (Paddle's DistributedBatchSampler repeats rows to fill its last batch.)
    """
    rows = np.arange(num_rows)
    if 0 < max_rows < num_rows:
        rows = np.sort(np.random.default_rng(0).choice(num_rows, max_rows, replace=False))
    keys = [(EVALUATION_EPOCH, row) for row in rows[rank::world_size].tolist()]
    return [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]


def open_data_set(folder: str) -> dict[str, pyarrow.Table]:
    """The splits of what create_data.py, or save_to_disk() of `datasets`, wrote: memory-mapped tables of rows.

    Not by `datasets`, whose import takes 0.4 s and 56 MB (with pandas), where small models train in 700 MB.
    """
    tables = {}
    for split in json.loads(Path(folder, "dataset_dict.json").read_bytes())["splits"]:
        files = json.loads(Path(folder, split, "state.json").read_bytes())["_data_files"]
        maps = [pyarrow.memory_map(f"{folder}/{split}/{file['filename']}") for file in files]
        tables[split] = pyarrow.concat_tables([pyarrow.ipc.open_stream(one).read_all() for one in maps])
    return tables


class TokenRows:
    """A split of one or more data sets; `rows[epoch, i]` is what DataCollatorMLM takes.

    {"input_ids": uint16 or int32 [length], "special_tokens_mask": bool [length], "epoch", "row"}:
    ids straight from the Arrow files' memory map, read-only (`datasets` in numpy's format makes
    an int64 copy of every row). The splits are tables, as open_data_set() gives them.
    """

    def __init__(self, *splits: pyarrow.Table):
        tables = [split.select(["input_ids", "special_tokens_mask"]) for split in splits]
        # "permissive" joins packed rows, which are lists of one length, with others.
        rows = pyarrow.concat_tables(tables, promote_options="permissive")
        self.input_ids, self.special_tokens_mask = rows.columns
        lengths = pc.list_value_length(self.input_ids)  # tokens in a row
        self.shortest, self.longest = ends_of(lengths)
        self.num_tokens = pc.sum(lengths).as_py() or 0
        self.lowest_id, self.highest_id = ends_of(pc.list_flatten(self.input_ids))

    def __len__(self) -> int:
        return len(self.input_ids)

    def ends_with(self, token_id: int) -> bool:
        """Whether some row ends with a token, as padded ones do with <pad>."""
        for chunk in self.input_ids.chunks:
            ids, lengths = as_numpy(chunk.flatten()), as_numpy(pc.list_value_length(chunk))
            last = np.cumsum(lengths)[lengths > 0] - 1
            if (ids[last] == token_id).any():
                return True
        return False

    def __getitem__(self, key: tuple) -> dict:
        epoch, row = key
        ids, special = as_numpy(self.input_ids[row].values), as_numpy(self.special_tokens_mask[row].values)
        return {"input_ids": ids, "special_tokens_mask": special, "epoch": epoch, "row": row}


def as_numpy(values: pyarrow.Array) -> np.ndarray:
    """The values of an Arrow array without nulls. Not by to_numpy(), which imports pandas: 0.2 s and 29 MB."""
    if values.type != pyarrow.bool_():
        return np.from_dlpack(values)
    start, end = values.offset, values.offset + len(values)  # of bits
    packed = np.frombuffer(values.buffers()[1], np.uint8)[start // 8 : math.ceil(end / 8)]
    return np.unpackbits(packed, bitorder="little")[start % 8 :][: len(values)].view(bool)


def ends_of(values) -> tuple[int, int]:
    """The least and greatest of an Arrow array's values, 0 and 0 where it has none."""
    ends = pc.min_max(values).as_py()
    return ends["min"] or 0, ends["max"] or 0


def token_counts(rows: TokenRows, tokenizer) -> np.ndarray:
    """How often each token of the vocabulary occurs in the rows, int64 [vocab]; 0 for special ones, which are never
    predicted."""
    found = pc.value_counts(pc.list_flatten(rows.input_ids))
    size = vocabulary_size(tokenizer)
    ids, numbers = as_numpy(found.field("values")), as_numpy(found.field("counts"))
    counts = np.bincount(ids, numbers, size).astype(np.int64)
    counts[special_ids(tokenizer)] = 0
    return counts


def yardsticks(rows: TokenRows, tokenizer) -> tuple:
    """The lowest losses (nats) that two kinds of model without any context can reach on average.

    The first sees only the place that it predicts, the second sees nothing at all. A model whose
    loss is below the first uses the context.

    The second is the entropy of the tokens' shares, special ones left out. So is the first at
    the MASKED places that hold <mask>, which tells nothing. The others show a token, kept or
    drawn from all: there it is the entropy of the right token where the shown one is known,
    H(right | shown) = H(shown, right) - H(shown).
    """
    from scipy.special import entr  # -x log x, and 0 where x is 0

    counts = np.delete(token_counts(rows, tokenizer), special_ids(tokenizer))
    shares = counts / counts.sum()
    entropy = entr(shares).sum()

    # Where a token is shown: of all places that are predicted, the right token stands at
    # `kept` * its share, and each token, the right one too, was drawn at `drawn` of them.
    kept, drawn = 1 - MASKED - RANDOMIZED, RANDOMIZED / len(shares)
    equal = entr((kept + drawn) * shares).sum()  # of pairs (shown, right) that are the same token
    unequal = (len(shares) - 1) * entr(drawn * shares).sum()  # and of those that are not
    shown = entr(kept * shares + drawn).sum()
    without_context = MASKED * entropy + equal + unequal - shown
    return float(without_context), float(entropy)


# -------- whole words
# What a character is to words. Those before LETTER are words of their own; in scripts of the kinds
# from CHINESE on, words are not set apart; a character that extends another is of that one's kind.
SPACE, MARK, APOSTROPHE, LETTER, CHINESE, THAI, LAO, KHMER, BURMESE, SINGLE, EXTENDS = range(11)
SCRIPTS_WITHOUT_SPACES = {  # Unicode's blocks and parts of blocks, first and last code point
    CHINESE: [  # Chinese characters and kana, which one dictionary cuts
        (0x3005, 0x3007), (0x3021, 0x3029), (0x3031, 0x303C), (0x3041, 0x312F), (0x31A0, 0x31FF), (0x3400, 0x4DBF),
        (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x1AFF0, 0x1B16F), (0x20000, 0x3FFFF),
    ],
    THAI: [(0xE00, 0xE7F)],
    LAO: [(0xE80, 0xEFF)],
    KHMER: [(0x1780, 0x17FF)],
    BURMESE: [(0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F)],
    SINGLE: [  # no dictionary: Tai Le to New Tai Lue, Tai Tham, Balinese, Yi, Javanese, Tai Viet, Ahom
        (0x1950, 0x19DF), (0x1A20, 0x1AAF), (0x1B00, 0x1B7F), (0xA000, 0xA4CF), (0xA980, 0xA9DF), (0xAA80, 0xAADF),
        (0x11700, 0x1174F),
    ],
}  # fmt: skip
NEED_LIBRARY = {THAI: "Thai", LAO: "Lao", KHMER: "Khmer", BURMESE: "Burmese"}
APOSTROPHES = "'’·׳״"  # part of the word between two letters: Unicode's UAX #29, rules WB6 and WB7
ZERO_WIDTH_SPACE, ZERO_WIDTH_JOINER, NEWLINE = 0x200B, 0x200D, 0xA
# Beside combining marks: joiners, Thai and Lao AM, the voicing of narrow kana, skin colours, tags
EXTENDING = {0x200C, 0x200D, 0xE33, 0xEB3, 0xFF9E, 0xFF9F, *range(0x1F3FB, 0x1F400), *range(0xE0020, 0xE0080)}
FLAGS = 0x1F1E6, 0x1F1FF  # regional indicators, of which two make a flag
# A word of more tokens (base64, DNA, a name where the tokenizer is another language's) is cut into
# even pieces. Of 126 places 19 are predicted at 15 %: with longer words that were all or nothing.
LONGEST_WORD = 16


class WholeWords:
    """Which tokens of a row begin a word: words as people who read that script mean them.

    - White space, of any kind, sets words apart. A token that holds the space before a word, as
      in RoBERTa's vocabulary, begins that word; other white space is a word of its own.
    - Each punctuation mark or symbol is a word of its own, as in BERT's whole-word masking
      (create_pretraining_data.py), except an apostrophe between letters: "don't", "п'ять".
    - In scripts without spaces, words are what ICU's dictionaries say (icu4py, where it is
      installed), one script at a time. Without it, each Chinese character and kana is a word, and
      a row that is mostly Thai, Lao, Khmer or Burmese is a ValueError. A few such words in
      another language's row are cut into characters then, and so is a whole row of them where
      `is_strict` was set to False, as a run does when it has looked at samples.
    - No word begins inside a grapheme cluster (a letter with its accents, an emoji with its
      modifiers).

    The tokens of a byte-level BPE are bytes, not text: one may hold a space and the first byte of
    the next letter (11 % of roberta-base's in Korean text), the end of one letter and the
    beginning of the next, or two words of Chinese. So the row is decoded as a whole, and a word
    begins only at a token that begins where the word does. Where a token reaches into the next
    word, both words are one: neither is hidden while a token that holds a part of it is shown.

    ValueError: the tokenizer is not a byte-level BPE, so its words cannot be told from its tokens.
    """

    def __init__(self, tokenizer):
        self.token_bytes = token_bytes(tokenizer)
        self.token_lengths = np.array([len(token) for token in self.token_bytes])
        self.word_breaker, self.segmenter = word_breaker()
        self.is_strict, self.is_told = True, False
        # A fast path, for rows whose words show in each token alone. They are 86 % of those of 128
        # tokens of English Wikipedia (roberta-base), 56 % of those of 512.
        facts = [facts_of_token(token) for token in self.token_bytes]
        self.is_plain, self.begins_behind_letter, self.ends_with_letter = np.array(facts).T

    def begins(self, ids: np.ndarray) -> np.ndarray:
        """Whether a word begins at each token (bool [length]); a row's first token begins one."""
        if self.is_plain[ids].all():
            begins, may_begin = self.begins_by_token(ids), np.ones(len(ids), dtype=bool)
        else:
            begins, may_begin = self.begins_by_text(ids)
        begins[:1] = True
        return cut_long_words(begins, may_begin)

    def are_single_characters(self, ids: np.ndarray) -> bool:
        """Whether a row is mostly of Chinese characters and kana, each of which is a word without the library."""
        text = b"".join([self.token_bytes[token_id] for token_id in ids.tolist()]).decode(errors="ignore")
        kinds = character_kinds()[[ord(character) for character in text]]
        return 2 * np.sum(kinds == CHINESE) > np.sum(kinds >= LETTER)

    def identity(self) -> dict:
        """What the words of a text depend on beside the tokenizer."""
        return {
            "version": 2,  # of the rules above; 1 knew the space before a word alone
            "longest_word": LONGEST_WORD,
            "segmenter": self.segmenter,
            "unicode": unicodedata.unidata_version,  # characters' categories; Python's
        }

    def begins_by_token(self, ids: np.ndarray) -> np.ndarray:
        """For tokens of whole letters, marks and spaces: a word begins everywhere but between two letters."""
        begins = self.begins_behind_letter[ids]
        begins[1:] |= ~self.ends_with_letter[ids[:-1]]
        return begins

    def begins_by_text(self, ids: np.ndarray) -> tuple:
        """The same for any tokens; and whether a grapheme cluster begins at each (bool [length])."""
        row = b"".join([self.token_bytes[token_id] for token_id in ids.tolist()])
        # A row may begin or end within a character: its bytes become code points U+DC80 to U+DCFF.
        text = row.decode("utf-8", "surrogateescape").encode("utf-32-le", "surrogatepass")
        code_points = np.frombuffer(text, dtype="<u4")
        begins_word, begins_cluster = self._boundaries(code_points)

        # From characters to bytes, and from bytes to tokens
        widths = 1 + (code_points > 0x7F) + (code_points > 0x7FF) + (code_points > 0xFFFF)
        widths[(code_points >= 0xDC80) & (code_points <= 0xDCFF)] = 1
        first_bytes = np.cumsum(widths) - widths
        lengths = self.token_lengths[ids]
        token_starts = np.cumsum(lengths) - lengths
        at_byte = np.zeros((2, len(row) + 1), dtype=bool)
        at_byte[0, first_bytes[begins_word]] = True
        at_byte[1, first_bytes[begins_cluster]] = True
        return tuple(at_byte[:, token_starts])

    def _boundaries(self, code_points: np.ndarray) -> tuple:
        """Before which characters a word may begin, and before which a grapheme cluster does (bool)."""
        kinds = character_kinds()[code_points]
        extends = kinds == EXTENDS  # such a character is of the kind of the one that it extends
        kinds = kinds[np.maximum.accumulate(np.where(extends, 0, np.arange(len(kinds))))]
        before, after = np.append(SPACE, kinds[:-1]), np.append(kinds[1:], SPACE)
        previous = np.append(NEWLINE, code_points[:-1])
        begins = (kinds != before) | (kinds < LETTER) | (kinds == SINGLE)
        inside = (kinds == APOSTROPHE) & (before == LETTER) & (after == LETTER) & ~extends
        begins[inside] = False
        begins[1:][inside[:-1]] = False
        if kinds.max(initial=0) >= CHINESE:
            self._cut_scripts_without_spaces(code_points, kinds, begins)
        is_flag = (code_points >= FLAGS[0]) & (code_points <= FLAGS[1])
        is_emoji = (previous == ZERO_WIDTH_JOINER) & (before == MARK) & (kinds == MARK)  # of several, joined
        is_joined = extends | is_emoji
        is_joined[1:] |= is_flag[1:] & is_flag[:-1]
        return begins & ~is_joined, ~is_joined

    def _cut_scripts_without_spaces(self, code_points: np.ndarray, kinds: np.ndarray, begins: np.ndarray):
        """Sets `begins` where a word of a script without spaces begins."""
        found = set(np.unique(kinds).tolist())
        if self.word_breaker is None:
            needy = np.isin(kinds, list(NEED_LIBRARY))
            if 2 * needy.sum() > (kinds >= LETTER).sum():
                names = " and ".join(NEED_LIBRARY[kind] for kind in sorted(found & NEED_LIBRARY.keys()))
                problem = f"whole words of {names} need a dictionary: pip install icu4py==1.2.0"
                if self.is_strict:
                    raise ValueError(problem)
                if not self.is_told:
                    log(f"warning: {problem}; without it, rows of them are masked by single characters")
                    self.is_told = True
            begins |= (kinds >= CHINESE) & (kinds != EXTENDS)
            return
        for script in found & SCRIPTS_WITHOUT_SPACES.keys() - {SINGLE}:
            # This script's characters alone, with a line end behind each run of them
            is_script = kinds == script
            kept = is_script.copy()
            kept[1:] |= is_script[:-1]
            places = np.flatnonzero(kept)
            text = np.where(is_script, code_points, NEWLINE)[places].astype("<u4").tobytes().decode("utf-32-le")
            ends = np.cumsum([len(word) for word in self.word_breaker(text, "en")])
            begins[places[ends[:-1]]] = True


def cut_long_words(begins: np.ndarray, may_begin: np.ndarray) -> np.ndarray:
    """Cuts words of more than LONGEST_WORD tokens into even pieces, where `may_begin` says so (bool [length])."""
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], len(begins))
    is_long = ends - starts > LONGEST_WORD
    for start, end in zip(starts[is_long].tolist(), ends[is_long].tolist()):
        length = end - start
        piece = math.ceil(length / math.ceil(length / LONGEST_WORD))
        for place in range(start + 1, end):
            if place - start >= piece and may_begin[place]:
                begins[place] = True
                start = place
    return begins


def choose_words(begins: np.ndarray, special: np.ndarray, probability: float, generator) -> np.ndarray:
    """Chooses words that hold about `probability` of the places that are not special (bool [length]).

    Each word is chosen with the same probability, whatever its length, and how many tokens are
    chosen varies from row to row little more than where they are single ones. (If each word were
    drawn for itself, rows of 126 places and 3 tokens a word would vary 1.7 times as much, and one
    in a thousand would have nothing to predict.)
    """
    chosen = np.zeros(len(begins), dtype=bool)
    places = np.flatnonzero(~special)
    # How many places would be chosen as single tokens?
    num_wanted = generator.binomial(len(places), probability)
    if num_wanted == 0:
        return chosen
    begins = begins[places]
    begins[0] = True
    begins[1:] |= np.diff(places) > 1  # behind a special token
    word = np.cumsum(begins) - 1  # of each place
    lengths = np.bincount(word)
    # The words are laid end to end on a circle, in any order, and those are chosen that begin in an
    # arc of so many places.
    order = generator.permutation(len(lengths))
    starts = np.cumsum(lengths[order]) - lengths[order]
    distances = (starts - generator.integers(len(places))) % len(places)
    reach = num_wanted
    if probability * len(places) > LONGEST_WORD:
        # A row as long as this never goes without, as it could where a long word fills the arc. In
        # shorter ones, where single tokens too may choose none, this would choose too many.
        reach = max(num_wanted, distances.min() + 1)
    taken = np.zeros(len(lengths), dtype=bool)
    taken[order] = distances < reach
    chosen[places] = taken[word]
    return chosen


def token_bytes(tokenizer) -> list:
    """The bytes of each token of a byte-level BPE, by id; of special tokens, a space.

    ValueError: it is not one, as far as PaddleNLP's and transformers' tokenizers can be asked.
    """
    if not is_byte_level(tokenizer):
        raise ValueError(
            f"whole words cannot be told from the tokens of {type(tokenizer).__name__}, which is not a byte-level BPE: "
            "take a tokenizer like RoBERTa's, or single tokens"
        )
    ids = list(range(vocabulary_size(tokenizer)))
    by_id = bytes_of_ids(tokenizer, ids)
    for special_id in special_ids(tokenizer).tolist():
        by_id[special_id] = b" "
    return by_id


def is_byte_level(tokenizer) -> bool:
    """Whether its tokens are spelled in bytes: PaddleNLP's and transformers' say it in two ways."""
    if hasattr(tokenizer, "byte_decoder"):
        return True
    from tokenizers import decoders

    return isinstance(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None), decoders.ByteLevel)


def bytes_of_ids(tokenizer, ids: list) -> list:
    """The bytes of each token of a byte-level BPE."""
    bytes_of, added = bytes_of_characters(), tokenizer.get_added_vocab()

    def in_bytes(token: str) -> bytes:
        if token in added or not bytes_of.keys() >= set(token):  # stored as text
            return token.encode()
        return bytes(bytes_of[character] for character in token)

    return [in_bytes(token) for token in tokenizer.convert_ids_to_tokens(ids)]


def facts_of_token(token: bytes) -> tuple:
    """What begins_by_token() must know: is the token plain, does it begin a word behind a letter, does it end with one?

    It is plain if it holds whole characters of scripts with spaces, and whether an apostrophe in it
    is inside of a word does not depend on its neighbours (but on a letter before 't in "don't").
    """
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return False, False, False
    if not text:
        return False, False, False
    all_kinds = character_kinds()
    kinds = [all_kinds[ord(character)] for character in text]
    is_contraction = len(kinds) > 1 and kinds[0] == APOSTROPHE and kinds[1] == LETTER
    others = kinds[1:] if is_contraction else kinds
    is_plain = all(kind in (SPACE, MARK, LETTER) for kind in others)
    is_plain = is_plain and not any(FLAGS[0] <= ord(character) <= FLAGS[1] for character in text)
    return is_plain, kinds[0] != LETTER and not is_contraction, kinds[-1] == LETTER


@functools.cache
def bytes_of_characters() -> dict:
    """The byte that each character stands for in the tokens of a byte-level BPE, as in GPT-2's encoder.py."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


@functools.cache
def character_kinds() -> np.ndarray:
    """What each Unicode character is to words (uint8 [0x110000]), from its category and its script."""
    kinds = np.full(sys.maxunicode + 1, LETTER, dtype=np.uint8)
    for kind, blocks in SCRIPTS_WITHOUT_SPACES.items():
        for first, last in blocks:
            kinds[first : last + 1] = kind
    by_category = {"P": MARK, "S": MARK, "Z": SPACE, "M": EXTENDS}  # letters, numbers and others are not in it
    for code_point in [*range(0x40000), *range(0xE0000, 0xE0200)]:  # planes without characters take long
        character = chr(code_point)
        if code_point in EXTENDING:
            kinds[code_point] = EXTENDS
        elif character in APOSTROPHES:
            kinds[code_point] = APOSTROPHE
        elif character.isspace() or code_point == ZERO_WIDTH_SPACE:
            kinds[code_point] = SPACE
        else:
            kinds[code_point] = by_category.get(unicodedata.category(character)[0], kinds[code_point])
    return kinds


def word_breaker() -> tuple:
    """icu4py's WordBreaker and its versions; None where it is not installed."""
    try:
        import icu4py.breakers
    except ImportError:
        return None, "single characters"
    version = importlib.metadata.version("icu4py")
    return icu4py.breakers.WordBreaker, f"icu4py {version} (ICU {icu4py.icu_version})"


# -------- what is masked, for the eye
def describe_row(collator: DataCollatorMLM, tokenizer, example: dict, max_tokens: int = 100) -> str:
    """The beginning of a training row as the model sees it, in two lines; example is a TokenRows's.

    What is to be predicted stands as [right -> shown]: the mask, a random token, or the right one.
    """
    batch = collator([example])
    length = len(example["input_ids"])  # without padding
    shown, labels = batch["input_ids"][0, :length], batch["labels"][0, :length]
    right = np.where(labels == IGNORE_INDEX, shown, labels)
    fates = np.select(
        [labels == IGNORE_INDEX, shown == collator.mask_token_id, shown == right],
        ["", "masked", "unchanged"],
        default="random",
    )
    counts = ", ".join(f"{np.sum(fates == fate)} {fate}" for fate in ("masked", "random", "unchanged"))
    num_places = np.sum(~collator.is_special[np.asarray(example["input_ids"])])
    pieces = []
    for fate, group in itertools.groupby(range(min(len(shown), max_tokens)), key=fates.__getitem__):
        group = list(group)
        seen = text_of_ids(tokenizer, shown[group])
        pieces.append(f"[{text_of_ids(tokenizer, right[group])} -> {seen}]" if fate else seen)
    rest = " ..." if len(shown) > max_tokens else ""
    return f"a row as the model sees it, {counts} of {num_places} tokens:\n  {''.join(pieces)}{rest}"


def text_of_ids(tokenizer, ids: np.ndarray) -> str:
    """The tokens' text on one line; bytes that are no whole character become U+FFFD."""
    if is_byte_level(tokenizer):
        text = b"".join(bytes_of_ids(tokenizer, ids.tolist())).decode(errors="replace")
    else:
        text = " ".join(tokenizer.convert_ids_to_tokens(ids.tolist()))
    return printable(text)


def sample_of(rows: TokenRows, max_rows: int = 300) -> list:
    """Rows from the whole split, at even distances, for the eye and for counting."""
    numbers = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), max_rows)).astype(int)).tolist()
    return [rows[0, row] for row in numbers]


def missing_dictionary(collator: DataCollatorMLM, rows: TokenRows) -> str | None:
    """Says in a line where whole words of Chinese or Japanese are single characters for want of the library."""
    words = collator.words
    if words is None or words.word_breaker is not None:
        return None
    if not any(words.are_single_characters(row["input_ids"]) for row in sample_of(rows)):
        return None
    return "whole words of Chinese and Japanese are single characters; for a dictionary's: pip install icu4py==1.2.0"


def masking_problem(collator: DataCollatorMLM, rows: TokenRows) -> str | None:
    """Says in a line where the words chosen in rows, a sample of them, depart from what single tokens would have."""
    if collator.words is None:
        return None
    examples = sample_of(rows)
    places = np.array([np.sum(~collator.is_special[example["input_ids"]]) for example in examples])
    chosen = np.array([np.sum(collator([example])["labels"] != IGNORE_INDEX) for example in examples])
    chosen, places = chosen[places > 0], places[places > 0]
    probability = collator.mlm_probability
    if len(places) < 30 or probability == 1:  # too few to tell; or all are chosen
        return None
    share, without = chosen.sum() / places.sum(), np.mean(chosen == 0)
    deviation = np.std((chosen - probability * places) / np.sqrt(probability * (1 - probability) * places))
    # Of single tokens the deviation is 1; these bounds are wide enough for what 30 rows have by chance.
    noise = 4 * math.sqrt((1 - probability) / (probability * places.sum()))
    expected_without = np.mean((1 - probability) ** places)
    if abs(share / probability - 1) < 0.1 + noise and deviation < 1.6 and without < 1.5 * expected_without + 0.1:
        return None
    return (
        f"of {len(places)} rows' tokens {share:.1%} are chosen for prediction (asked for: {probability:.1%}), "
        f"{deviation:.1f} times as unevenly as single tokens, and {without:.0%} of the rows have none"
    )


# -------- to and from transformers
def main(argv: list | None = None):
    parser = ArgumentParser("Turns a checkpoint into a model directory of transformers.")
    add = parser.add_argument
    add("--checkpoint", required=True, help="directory paddle_STEP to read; it stays as it is")
    add("--output_dir", required=True, help="directory to write; it must not exist yet")
    add("--onnx", type=boolean, default=False, help="write onnx/model.onnx and onnx/encoder.onnx, too (needs Paddle 3)")
    args = parser.parse_args(argv)
    if os.path.exists(args.output_dir):
        raise UserError(f"--output_dir {args.output_dir} exists: choose another")
    if Path(args.output_dir).resolve().is_relative_to(Path(args.checkpoint).resolve()):
        raise UserError(f"--output_dir {args.output_dir} lies in the checkpoint: choose a directory outside of it")
    check_model_directory(args.checkpoint, "--checkpoint")
    if not Path(args.checkpoint, "tokenizer_config.json").exists():
        raise UserError(f"--checkpoint {args.checkpoint} holds no tokenizer_config.json: copy its tokenizer there")
    if args.onnx:
        check_onnx()
    with atomic_directory(args.output_dir) as folder:
        export(args.checkpoint, folder)
        if args.onnx:
            write_onnx(args.checkpoint, f"{folder}/onnx")
    log(f"written: {args.output_dir}")


def export(checkpoint: str, folder: str):
    """Fills a directory with what transformers and the libraries around it read of a checkpoint."""
    for path in Path(checkpoint).iterdir():
        is_weights = path.name.endswith((*OTHER_WEIGHTS, ".index.json"))
        if path.is_file() and path.name != CHECKSUMS and not is_weights:
            shutil.copyfile(path, Path(folder, path.name))  # without its mode, which may be read-only
    config, weights = json.loads(Path(checkpoint, "config.json").read_bytes()), read_weights(checkpoint)
    if "lm_head.dense.weight" not in weights:
        raise UserError(f"{checkpoint} holds no weights of a RobertaForMaskedLM: give a checkpoint of one")
    weights = export_weights(weights, config.get("tie_word_embeddings", True))
    save_file(weights, f"{folder}/model.safetensors", {"format": "pt"})
    # ctranslate2 wants the kind of positions said, which transformers 5 no longer writes.
    update_json(f"{folder}/config.json", position_embedding_type="absolute", dtype="float32")
    # PaddleNLP's name of the class, which create_data.py writes, is unknown to transformers 4.
    update_json(f"{folder}/tokenizer_config.json", tokenizer_class="RobertaTokenizer")
    limit_length(folder)
    Path(folder, "modules.json").write_text(json.dumps(SENTENCE_TRANSFORMERS, indent=2))
    pooling = {"word_embedding_dimension": config["hidden_size"], "pooling_mode_mean_tokens": True}
    pooling |= {"pooling_mode_cls_token": False, "pooling_mode_max_tokens": False}
    os.mkdir(f"{folder}/1_Pooling")
    Path(folder, "1_Pooling/config.json").write_text(json.dumps(pooling, indent=2))


def update_json(path: str, **changes):
    """Changes values of a JSON file that holds an object."""
    values = json.loads(Path(path).read_bytes())
    Path(path).write_text(json.dumps(values | changes, indent=2, ensure_ascii=False), "utf-8")


def limit_length(folder: str):
    """Lowers a tokenizer's model_max_length to what the model's positions hold.

    They are counted from pad_token_id + 1: 514 positions are enough for 512 tokens where padding is 1.
    """
    config = json.loads(Path(folder, "config.json").read_bytes())
    limit = config["max_position_embeddings"] - config["pad_token_id"] - 1
    path = f"{folder}/tokenizer_config.json"
    if json.loads(Path(path).read_bytes()).get("model_max_length", math.inf) > limit:
        update_json(path, model_max_length=limit)


def to_transformers(weights: dict, names=TRANSFORMERS_NAMES) -> dict:
    """PaddleNLP's arrays of a RobertaForMaskedLM as transformers'; with `names` swapped, back."""
    converted = {}
    for name, array in weights.items():
        for old, new in names:
            name = name.replace(old, new)
        # Linear layers are [in, out] in Paddle, [out, in] in transformers.
        is_linear = array.ndim == 2 and "embeddings" not in name and name not in TIED
        converted[name] = np.ascontiguousarray(array.T) if is_linear else array
    return converted


def export_weights(weights: dict, tied: bool) -> dict:
    """The same model in transformers' layout, in a form that other libraries read, too.

    The token type row, which every position adds, goes into the positions: keras-hub leaves it out
    (hidden states differed by 2.3). The output's bias stands under both of its names: adapters
    reads lm_head.decoder.bias, transformers lm_head.bias.
    """
    weights = to_transformers(weights)
    positions, types = (f"roberta.embeddings.{kind}_embeddings.weight" for kind in ("position", "token_type"))
    first_type = weights[types][0]  # masked language modelling uses no other
    weights[positions] = weights[positions] + first_type
    weights[types] = weights[types] - first_type
    if tied:
        del weights["lm_head.decoder.weight"]
    return weights


def read_weights(folder: str) -> dict:
    """The arrays in a directory of PaddleNLP or transformers, as PaddleNLP's, in float32."""
    weights = {}
    for file in weight_files(folder):
        with explaining(f"cannot read {folder}/{file}: it is damaged, or no safetensors file"):
            tensors = deserialize(Path(folder, file).read_bytes())
        weights |= {name: float32_of(tensor, f"{folder}/{file}: {name}") for name, tensor in tensors}
    if any(".encoder.layer." in name for name in weights):  # transformers'
        weights = to_transformers(weights, [(new, old) for old, new in TRANSFORMERS_NAMES])
        tied = {name: weights[source] for name, source in TIED.items() if source in weights}
        weights = tied | weights
    return weights


def float32_of(tensor: dict, name: str) -> np.ndarray:
    """A tensor as safetensors.deserialize() gives it, as an array."""
    kind, data = tensor["dtype"], tensor["data"]
    if kind == "BF16":  # the upper half of a float32; numpy has no such type
        array = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    elif kind in ("F16", "F32", "F64", "I64"):  # I64: old versions of transformers kept position_ids
        array = np.frombuffer(data, f"<{kind[0].lower()}{int(kind[1:]) // 8}").astype(np.float32)
    else:
        raise UserError(f"{name} is of type {kind}: give weights in float32, float16 or bfloat16")
    return array.reshape(tensor["shape"])


def weight_files(folder: str) -> list:
    """Names of the safetensors files with a model's weights; none where there are no weights at all."""
    names, index = sorted(os.listdir(folder)), f"{folder}/model.safetensors.index.json"
    if "model.safetensors" in names:
        return ["model.safetensors"]
    if os.path.exists(index):
        with explaining(f"{index} is damaged"):
            shards = sorted(set(json.loads(Path(index).read_bytes())["weight_map"].values()))
        missing = [shard for shard in shards if shard not in names]
        if missing:
            raise UserError(f"{folder} lacks {shorten(missing)}, which {Path(index).name} names: copy all files")
        return shards
    others = [name for name in names if name.endswith(OTHER_WEIGHTS) and name != "training_args.bin"]
    for ending, command in CONVERSIONS.items():
        if any(name.endswith(ending) for name in others):
            only = f"{folder} has {shorten(others)}, and only model.safetensors is read"
            raise UserError(f"{only}. If you trust its source, convert it there: cd {shlex.quote(folder)} && {command}")
    if others:
        raise UserError(f"{folder} has {shorten(others)}: save it as model.safetensors, in transformers or PaddleNLP")
    return []


def match_weights(weights: dict, shapes: dict, tied: bool, source: str) -> list:
    """Raises UserError unless the arrays are all that a model needs; returns the names that it does not need.

    `shapes` has the model's names and shapes; `tied` says whether its output layer's matrix is the embedding's.
    """
    needs = f"the weights of {source} do not suit its config.json"
    missing = [name for name in shapes if name not in weights]
    if missing:
        raise UserError(f"{needs}: they lack {shorten(missing)}: give those of a RobertaForMaskedLM, with its head")
    others = [name for name in weights if name not in shapes]
    unknown = [name for name in others if not name.startswith(UNUSED)]
    if unknown:
        raise UserError(f"{needs}: a RobertaForMaskedLM has no {shorten(unknown)}: give weights without it")
    for name, shape in shapes.items():
        if list(weights[name].shape) != list(shape):
            sizes = f"{name} is {list(weights[name].shape)}, but should be {list(shape)}"
            raise UserError(f"{needs}: {sizes}: take its own config.json")
    for name, original in TIED.items():
        if tied and not np.array_equal(weights[name], weights[original], equal_nan=True):
            remedy = "delete the former, or set tie_word_embeddings to false"
            raise UserError(f"{needs}: {name} is not {original}, which should be one: {remedy}")
    return others


def grow_weights(weights: dict, shapes: dict, pad_token_id: int) -> tuple:
    """A model's arrays (PaddleNLP's names) with the tokens and positions of `shapes`; and what was added, in words.

    A new token begins as the mean of the others: so it takes little probability from them (Hewitt, Initializing
    New Word Embeddings for Pretrained Language Models, 2021). New positions repeat the others from the first on
    (Beltagy et al., Longformer, 2020, section 5), which is at pad_token_id + 1: before it are no positions.
    """
    words, positions = (f"roberta.embeddings.{kind}_embeddings.weight" for kind in ("word", "position"))
    grown, added = dict(weights), []
    for name in {words, *TIED, *TIED.values()} & {*weights}:
        rows = weights[name]
        num_new = max(0, shapes[name][0] - len(rows))
        grown[name] = np.concatenate([rows, np.broadcast_to(rows.mean(0), (num_new, *rows.shape[1:]))])
        if name == words and num_new:
            added.append(f"{num_new} tokens (as the mean of the others)")
    if positions in weights:
        rows, first = weights[positions], pad_token_id + 1
        num_new = max(0, shapes[positions][0] - len(rows))
        grown[positions] = np.concatenate([rows, rows[first + np.arange(num_new) % (len(rows) - first)]])
        if num_new:
            added.append(f"{num_new} positions (which repeat the {len(rows) - first} others)")
    return grown, " and ".join(added)


def read_tokenizer(folder: str) -> tuple | None:
    """The vocabulary {token: id} and merges [(left, right)] of a byte-level BPE in a directory, or None.

    `tokenizers` reads the files: roberta-base's tokenizer.json, as published, does not say that its model is a BPE.
    """
    from tokenizers import ByteLevelBPETokenizer, Tokenizer

    found = {name for name in TOKENIZER_FILES if Path(folder, name).exists()}
    added = {}
    with explaining(f"cannot read the tokenizer of {folder}"):
        if "tokenizer.json" in found:
            tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        elif found >= {"vocab.json", "merges.txt"}:
            tokenizer = ByteLevelBPETokenizer.from_file(f"{folder}/vocab.json", f"{folder}/merges.txt")
            if "added_tokens.json" in found:
                added = json.loads(Path(folder, "added_tokens.json").read_bytes())
        else:
            other = other_tokenizer(folder)
            if other is None:
                return None
            name, kind = other
            raise UserError(f"the tokenizer of {folder} is {kind} ({name}), no byte-level BPE: take another model")
        model = json.loads(tokenizer.to_str())["model"]
    if model["type"] != "BPE":
        raise UserError(f"the tokenizer of {folder} is {model['type']}, no byte-level BPE: take another model")
    return tokenizer.get_vocab() | added, [tuple(pair) for pair in model["merges"]]


def other_tokenizer(folder: str) -> tuple[str, str] | None:
    """The file of a tokenizer that is no byte-level BPE in a directory, and its kind; None where there is none."""
    return next((item for item in OTHER_TOKENIZERS.items() if Path(folder, item[0]).exists()), None)


def check_model_directory(folder: str, flag: str):
    """Raises UserError unless a directory holds a model, and an undamaged one where it has checksums."""
    if not Path(folder, "config.json").exists():
        problem = "holds no config.json" if os.path.isdir(folder) else "is no directory"
        found = checkpoints_in(folder) or checkpoints_in(os.path.dirname(folder) or ".")
        remedy = f"did you mean {list(found.values())[-1]}?" if found else "give one that holds config.json"
        raise UserError(f"{flag} {folder} {problem}: {remedy}")
    if Path(folder, CHECKSUMS).exists():
        try:
            check_checksums(folder)
        except UserError as error:
            raise UserError(f"{error}: copy it anew, or, if you changed it yourself, delete its {CHECKSUMS}") from error


def checkpoints_in(output_dir: str) -> dict:
    """{step: path} of the checkpoints that a training wrote there, in order."""
    paths = {path.name.removeprefix("paddle_"): path for path in Path(output_dir).glob("paddle_*")}
    return {int(step): str(paths[step]) for step in sorted(filter(str.isdecimal, paths), key=int)}


def shorten(names: list) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def check_onnx():
    """Raises UserError where no ONNX model can be written."""
    prepare_for_paddle()
    os.environ.setdefault("GLOG_minloglevel", "2")  # errors only
    import paddle

    if int(paddle.__version__.split(".")[0]) < 3:
        remedy = "leave it out, or run this in an environment with `pip install paddlepaddle==3.3.1 paddlenlp==2.8.1`"
        raise UserError(f"--onnx True needs Paddle 3.0 or newer, and this is {paddle.__version__}: {remedy}")
    with explaining("--onnx True needs paddle2onnx: pip install paddle2onnx==2.1.0"):
        import paddle2onnx  # noqa: F401


def write_onnx(checkpoint: str, folder: str):
    """Writes two ONNX models for any batch and length, with inputs input_ids and attention_mask (int64).

    model.onnx gives `logits` [batch, sequence, vocab], encoder.onnx `last_hidden_state` [batch, sequence, width].
    """
    import onnx
    import paddle
    import paddle2onnx
    from paddlenlp import transformers
    from paddlenlp.utils.log import logger

    logger.set_level("WARNING")

    class Traced(paddle.nn.Layer):
        def __init__(self, model, output: str):
            super().__init__()
            self.model, self.output = model, output

        def forward(self, input_ids, attention_mask):
            hidden = self.model.roberta(input_ids, attention_mask=attention_mask)[0]
            return self.model.lm_head(hidden) if self.output == "logits" else hidden

    model = transformers.RobertaForMaskedLM(transformers.RobertaConfig.from_pretrained(checkpoint))
    weights = read_weights(checkpoint)
    for name, parameter in model.state_dict().items():
        parameter.set_value(weights[name])
    model.eval()
    # A padding_idx, which no attention sees, would be written as a matrix of ones as large as the embedding.
    embedding = paddle.nn.Embedding(*model.roberta.embeddings.word_embeddings.weight.shape)
    embedding.weight = model.roberta.embeddings.word_embeddings.weight
    model.roberta.embeddings.word_embeddings = embedding
    inputs = [paddle.static.InputSpec([None, None], "int64", name) for name in ("input_ids", "attention_mask")]
    os.mkdir(folder)
    for file, output in (("model", "logits"), ("encoder", "last_hidden_state")):
        with tempfile.TemporaryDirectory() as static:
            paddle.jit.save(Traced(model, output), f"{static}/model", input_spec=inputs)
            paths = f"{static}/model.json", f"{static}/model.pdiparams"
            # Without optimize_tool it would install packages while it runs.
            try:
                content = paddle2onnx.export(*paths, opset_version=14, optimize_tool="none")
            except SystemExit as error:  # so it ends where it fails, having said why
                raise UserError("paddle2onnx failed, as it says above: leave out --onnx") from error
        graph = onnx.load_from_string(content)
        rename_onnx(graph.graph, output)
        onnx.save(graph, f"{folder}/{file}.onnx")


def rename_onnx(graph, output: str):
    """Names the output, which paddle2onnx calls fetch_name_0, and the dimensions that may vary."""
    for node in graph.node:
        node.output[:] = [output if name == graph.output[0].name else name for name in node.output]
    graph.output[0].name = output
    for value in (*graph.input, *graph.output):
        dimensions = value.type.tensor_type.shape.dim
        dimensions[0].dim_param, dimensions[1].dim_param = "batch", "sequence"


# -------- metrics.jsonl and its curve
def read_metrics(path: str | Path) -> list[dict]:
    """The records of a metrics.jsonl; a last line that a kill cut off is left out.

    ValueError: where another line is no record.
    """
    lines = Path(path).read_text("utf-8").split("\n")
    del lines[-1]  # empty, or cut off
    problem = f"{path} holds lines that are no records of a run"
    try:
        records = [json.loads(line) for line in lines if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(problem) from error
    for record in records:
        if not (isinstance(record, dict) and "event" in record and isinstance(record.get("step"), int)):
            raise ValueError(problem)
    return records


def free_path(path: str | Path) -> str:
    """The path itself where nothing is, else the first of path.1, path.2, ... where nothing is."""
    free, suffix = str(path), 1
    while os.path.lexists(free):
        free, suffix = f"{path}.{suffix}", suffix + 1
    return free


def set_aside_earlier_run(output_dir: str):
    """Renames the files of an earlier run that left no checkpoint here: metrics.jsonl to metrics.jsonl.1 (.2, ...)."""
    for name in ("metrics.jsonl", "visualdl", "curve.png"):
        path = Path(output_dir, name)
        if path.exists():
            path.rename(free_path(path))


def cut_metrics(output_dir: str, step: int):
    """Leaves in metrics.jsonl what a run that goes on from `step` has behind it.

    The checkpoint was written after that step's report, and before its evaluation, which is repeated.
    """
    path = Path(output_dir, "metrics.jsonl")
    if not path.exists():
        return
    with explaining(f"{path}: no metrics of a run: move it elsewhere"):
        records = read_metrics(path)
    kept = [r for r in records if r["step"] < step or (r["step"] == step and r["event"] != "evaluation")]
    new = Path(f"{path}.new")
    new.write_text("".join(json.dumps(record) + "\n" for record in kept), "utf-8")
    new.rename(path)


def add_metrics(output_dir: str, record: dict):
    """Appends a record to metrics.jsonl; a number that is not finite becomes null, as JSON has no NaN."""
    os.makedirs(output_dir, exist_ok=True)
    finite = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in record.items()}
    with open(f"{output_dir}/metrics.jsonl", "a+b") as file:
        drop_unfinished_line(file)
        file.write(json.dumps(finite).encode() + b"\n")


def drop_unfinished_line(file):
    """Cuts what a kill left of a last line from an open file, so that the next line is not glued to it."""
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def draw_curve(records: list[dict], path: str):
    """Draws losses, evaluations with their yardsticks, and the learning rate of a run's records, as .png, .svg ..."""
    import matplotlib.figure  # VisualDL brings it along; importing it takes half a second

    figure = matplotlib.figure.Figure(figsize=(8, 6), layout="constrained")
    losses, rates = figure.subplots(2, sharex=True, height_ratios=(4, 1))
    training = [record for record in records if record["event"] == "train"]
    # An evaluation alone, of whatever model, stands at step 0.
    evaluations = [record for record in records if record["event"] == "evaluation" and record["step"] > 0]
    steps = [record["step"] for record in training]
    losses.plot(steps, numbers(training, "loss"), label="training loss", linewidth=0.8)
    for name, of_set in evaluations_by_set(evaluations).items():
        losses.plot(
            [record["step"] for record in evaluations],
            numbers(of_set, "eval_loss"),
            label=f"loss on {name}",
            marker="o",
            markersize=3,
        )
    for key, label, style in (
        ("unigram_entropy", "entropy of the word frequencies", "--"),
        ("loss_without_context", "the best without the context", ":"),
    ):
        if evaluations and key in evaluations[-1]:
            level = evaluations[-1][key]
            losses.axhline(level, color="gray", linestyle=style, label=f"{label}, {level:.2f}")
    losses.set(ylabel="loss (nats per masked token)")
    losses.legend(frameon=False)
    rates.plot(steps, numbers(training, "learning_rate"), color="tab:gray")
    rates.set(xlabel="updates", ylabel="learning rate")
    for axes in (losses, rates):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def numbers(records: list[dict], key: str) -> list[float]:
    """The records' values of `key`; NaN, where a curve has a gap, for what is missing or null."""
    values = [record.get(key) for record in records]
    return [math.nan if value is None else value for value in values]


def evaluations_by_set(evaluations: list[dict]) -> dict[str, list[dict]]:
    """Each validation set's numbers in the records of evaluations, {} where a record has none of that set.

    Those of the first set stand in the record itself, those of others below their names.
    """
    by_set = {}
    for position, record in enumerate(evaluations):
        found = {record.get("first_set", "validation"): record}
        found |= {name: value for name, value in record.items() if isinstance(value, dict)}
        for name, value in found.items():
            by_set.setdefault(name, [{} for _ in evaluations])[position] = value
    return by_set


def duration(seconds: float) -> str:
    """A time in the unit that suits it: "35 s", "12 min", "5.3 h", "2.1 days"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


# -------- whole directories
@contextlib.contextmanager
def atomic_directory(path: str):
    """Yields a new directory to fill; it becomes `path` if the block ends without an error.

    Whatever kills the process, `path` is as it was, or complete and on disk: an old one waits
    beside until the new one has its name. What a kill leaves, the next call for `path` puts right.
    UserError: another process writes it, it holds the working directory, or something is mounted there.
    """
    path = os.path.realpath(path)
    beside, new, old = (f"{path}.being_written{name}" for name in ("", "/new", "/old"))
    with contextlib.suppress(FileNotFoundError):  # a working directory that was deleted
        if Path.cwd().is_relative_to(path):
            raise UserError(f"{path} holds the working directory: choose another --output_dir")
    if os.path.ismount(path):  # which cannot be renamed
        raise UserError(f"{path} is a mount point: choose a directory below it as --output_dir")

    try:
        with lock(beside):
            put_right(path)
            try:
                os.mkdir(new)
                mode = os.stat(new).st_mode  # as the umask wants it
                if os.path.isdir(path):
                    check_renaming(path, old)
                yield new
                for file in [*Path(new).rglob("*"), Path(new)]:
                    # Nobody else's mode: safetensors writes 0o600, and what was copied may be write-protected.
                    file.chmod(mode if file.is_dir() else mode & 0o666)
                    fsync(file)
                if os.path.isdir(path):
                    os.rename(path, old)
                os.rename(new, path)
                fsync(os.path.dirname(path))
            finally:
                put_right(path)
                shutil.rmtree(beside, ignore_errors=True)  # with the lock, last
    finally:
        with contextlib.suppress(OSError):  # where others are in it
            os.rmdir(beside)  # NFS keeps the file of a lock, and the directory with it, until the lock is gone


def check_renaming(path: str, old: str):
    """Raises UserError where a directory cannot be renamed: better before the new one is made than behind it."""
    try:
        os.rename(path, old)
        os.rename(old, path)
    except OSError as error:  # EXDEV: overlayfs renames no directory that is part of a container's image
        raise UserError(f"{path} cannot be replaced ({error}): choose another --output_dir") from error


def put_right(path: str):
    """Gives an old directory its name back where a new one did not get it, and removes what else lies beside."""
    new, old = f"{path}.being_written/new", f"{path}.being_written/old"
    if os.path.isdir(old) and not os.path.isdir(path):
        os.rename(old, path)
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def put_right_checkpoints(output_dir: str):
    """Puts right what kills left of checkpoints, whose steps may never be saved again; not what is being written."""
    for beside in Path(output_dir).glob("paddle_*.being_written"):
        path = str(beside).removesuffix(".being_written")
        if path.rpartition("_")[2].isdecimal():
            with contextlib.suppress(UserError), lock(str(beside)):
                put_right(path)
                shutil.rmtree(beside, ignore_errors=True)  # with the lock, last


def fsync(path: str | Path):
    """Has the system write a file, or a directory's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some file systems, as shared folders of VirtualBox, do so for no directory
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS) or not os.path.isdir(path):
            raise
    finally:
        os.close(descriptor)


def lock(folder: str):
    """Locks a directory, which it creates, for `with`, or as long as what it returns lives.

    UserError: another process has locked it, or it is no directory.
    """
    try:
        # filelock's own way out where there are no locks is a file, which a killed process would leave for good.
        return filelock.FileLock(f"{folder}/.lock", timeout=0, fallback_to_soft=False).acquire()
    except (filelock.Timeout, FileNotFoundError, FileExistsError):  # the holder removes it
        raise UserError(f"{folder} is in use, or no directory: wait, or choose another") from None
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
            return contextlib.nullcontext()
        raise


def write_checksums(folder: str):
    """Writes SHA256SUMS of all files below, for `sha256sum --check`, too."""
    sums = Path(folder, CHECKSUMS)
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path != sums]
    lines = (f"{sha256_of(path)}  {path.relative_to(folder)}\n" for path in sorted(files))
    sums.write_text("".join(lines))


def check_checksums(folder: str):
    """Raises UserError where a checkpoint is not as write_checksums() sealed it."""
    with explaining(f"{folder}: no checkpoint, or damaged"):
        lines = Path(folder, CHECKSUMS).read_text().splitlines()
        if not lines:
            raise UserError(f"{folder}: {CHECKSUMS} is empty")
        for digest, name in (line.split("  ", 1) for line in lines):
            if sha256_of(Path(folder, name)) != digest:
                raise UserError(f"{folder}: {name} is damaged")


def sha256_of(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -------- errors, arguments, settings
LONGEST_MESSAGE = 1000  # characters: an argument or a list of columns may have any length


class UserError(Exception):
    """A user's mistake, in one line: the thing and the remedy."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


def one_line(message: str) -> str:
    """The message with its line ends shown as escapes, cut in its middle where it is too long."""
    message = printable(message)
    left_out = len(message) - LONGEST_MESSAGE
    if left_out <= 0:
        return message
    # The remedy stands at the end.
    half = LONGEST_MESSAGE // 2 - 30
    return f"{message[:half]} [... {len(message) - 2 * half:,} characters left out ...] {message[-half:]}"


def printable(text: str) -> str:
    """The text with escapes in the place of characters that cannot be printed, line ends among them."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


@contextlib.contextmanager
def explaining(what: str):
    """Turns an error in the block into a UserError: what, and why.

    A want of memory is left as it is, and so is a name that is not defined: a mistake in the code, and not in a file.
    """
    try:
        yield
    except (UserError, MemoryError, NameError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise UserError(f"{what} ({reason})") from error


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust (tokenizers, gigatoken, safetensors) failed within; PyO3's class is no Exception."""
    return type(error).__name__ == "PanicException"


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Ends a flag's help with its default, unless the text says itself what is done without the flag."""

    def _get_help_string(self, action) -> str:
        return action.help if action.default is None else super()._get_help_string(action)

    def _get_default_metavar_for_optional(self, action) -> str:
        kinds = {"int": "N", "float": "X", "boolean": "True|False"}
        return kinds.get(getattr(action.type, "__name__", ""), "TEXT")


class ArgumentParser(argparse.ArgumentParser):
    """argparse with defaults in the help, no abbreviations, errors of one line."""

    def __init__(self, description: str):
        super().__init__(description=description, allow_abbrev=False, formatter_class=HelpFormatter)

    def group(self, title: str):
        """Begins a group of the help; returns add(flag, **options), which adds flags to it.

        `may_change` says that a resumed run may have another value of the flag than its checkpoint, `for_training`
        that an evaluation alone does not use it; the other options are add_argument()'s.
        """
        group = self.add_argument_group(title)

        def add(flag: str, may_change: bool = False, for_training: bool = False, **options):
            action = group.add_argument(flag, **options)
            action.may_change, action.for_training = may_change, for_training

        return add

    def may_change(self) -> set[str]:
        """The names of the flags that may change on resuming."""
        return {action.dest for action in self._actions if getattr(action, "may_change", False)}

    def for_training(self) -> set[str]:
        """The names of the flags that an evaluation alone does not use."""
        return {action.dest for action in self._actions if getattr(action, "for_training", False)}

    def parse_args(self, args=None, namespace=None):
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self.nearest(unknown)}")
        return parsed

    def nearest(self, unknown: list) -> str:
        """The known flags that are written most like the unknown ones, as a question."""
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        names = [text.partition("=")[0] for text in unknown if text.startswith("-")]
        found = [match for name in names for match in difflib.get_close_matches(name, flags, n=1)]
        return f": did you mean {', '.join(found)}?" if found else ""

    def error(self, message: str):
        raise UserError(f"{message} (--help lists the arguments)")


def boolean(text: str) -> bool:
    """The argparse type of a flag written as `--amp True`."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() == "true"


def number(kind: type, low: float = -math.inf, high: float = math.inf):
    """The argparse type of a finite int or float, low <= value <= high."""

    def parse(text: str):
        value = kind(text)
        if not (low <= value <= high and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text} is not in the range from {low} to {high}")
        return value

    parse.__name__ = kind.__name__  # argparse names it in "invalid int value"
    parse.high = high
    return parse


def command_line(main, takes_less: str = ""):
    """Runs main() and exits: with 2 and a line for a user's error, with 1 for a bug.

    takes_less: what the user may do where memory runs out.
    """
    open_standard_streams()
    try:
        status = int(main() or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except SystemExit:  # --help
        raise
    except BaseException as error:
        # MemoryError: Paddle's, too, on whatever device.
        # Of what an operation of ours raises in a backward pass Paddle makes an OSError, with our error in its text.
        is_ours = any(place in str(error) for place in ("GradNodePyLayer", "py_layer_node.cc"))
        is_memory = isinstance(error, MemoryError) or (is_ours and "MemoryError: " in str(error))
        # OSError: as on a full disk; Rust's libraries have types of their own.
        is_users = isinstance(error, UserError | OSError) and not is_ours
        is_users = is_users or is_memory or "(os error " in str(error) or is_panic(error)
        message = f"out of memory: {takes_less or error}".strip(": ") if is_memory else str(error)
        text = f"error: {one_line(message)}" if is_users else traceback.format_exc().rstrip()
        print(text, file=sys.stderr)
        status = 2 if is_users else 1
    # Without cleaning up: threads may wait for a network, and Paddle aborted 5 of 76 runs.
    os._exit(status)


def open_standard_streams():
    """Opens streams that the process was started without (`>&-`): output goes nowhere, errors go where output goes.

    Else a file that is opened later would get their number, and with it what libraries write there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.dup(1), "w")
    if sys.stderr is None:
        sys.stderr = sys.stdout
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)


def log(line: str):
    """Prints a line on the first rank; a closed pipe ends no run."""
    if os.environ.get("PADDLE_TRAINER_ID", "0") == "0":
        with contextlib.suppress(OSError):
            tqdm.write(line)


def prepare_for_paddle():
    """Settings that must precede `import paddle`."""
    import joblib  # brings zlib along, which Paddle 2.6.2 must not be the first to use

    # A thread per core, shared by this machine's ranks; Paddle's default is one thread, which importing it sets, as its
    # launcher does before it starts the ranks.
    ranks = int(os.environ.get("PADDLE_LOCAL_SIZE", 1))
    if os.environ.get("OMP_NUM_THREADS") == "1" and "PADDLE_TRAINER_ID" in os.environ and is_set_by_launcher():
        del os.environ["OMP_NUM_THREADS"]
    cores = joblib.cpu_count(only_physical_cores=True) // ranks
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores)))
    if not os.access(os.path.expanduser("~"), os.W_OK | os.X_OK):
        os.environ["HOME"] = tempfile.mkdtemp()  # Paddle and PaddleNLP write there
    # Left alone, glibc returns large tensors to the system at each step, and fetches them anew. With this, only
    # those above 32 MB: keeping all would take twice the memory.
    with contextlib.suppress(AttributeError):  # macOS has no mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, LARGE)  # M_MMAP_THRESHOLD, in bytes
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap
    warnings.filterwarnings("ignore", module="paddle|_distutils_hack")


def is_set_by_launcher() -> bool:
    """Whether Paddle's launcher started this process, and was started without OMP_NUM_THREADS itself."""
    try:
        parent = Path(f"/proc/{os.getppid()}")
        command, environment = ((parent / name).read_bytes() for name in ("cmdline", "environ"))
    except OSError:
        return False
    is_launcher = b"paddle.distributed.launch" in command or b"fleetrun" in command
    return is_launcher and not any(entry.startswith(b"OMP_NUM_THREADS=") for entry in environment.split(b"\0"))


def import_paddlenlp():
    """Imports PaddleNLP without the parts that pretraining does not use: a second sooner, and with 74 MB less.

    Its __init__.py imports the code of every task, and with it FastAPI and scikit-learn. Here the package is entered
    without running that file, after `import paddle`. The parts import each other, and find themselves half made where
    that file's order is not kept. So run_pretrain.py calls this where it is the script itself, and not where it is
    imported; whoever wants other parts in the script, as paddlenlp.trainer, leaves the call out.
    """
    if "paddlenlp" in sys.modules:
        return
    try:
        version = importlib.metadata.version("paddlenlp")
    except importlib.metadata.PackageNotFoundError:  # a clone on the path, or missing: as always
        return
    import paddle

    package = importlib.util.module_from_spec(importlib.util.find_spec("paddlenlp"))
    package.__version__ = version
    sys.modules["paddlenlp"] = package
    import paddlenlp.data  # noqa: F401  # before paddlenlp.transformers, which it imports and is imported by

    paddle.disable_signal_handler()  # as __init__.py does: Paddle's own handlers would take SIGTERM


# -------- Paddle's oneDNN (skip on first reading)
#
# Kernels of a CPU: how the layers of run_pretrain.py compute where no GPU is. Layers, tensors and autograd are there;
# here are numpy arrays, and nothing of Paddle but a library that it ships.
#
# Why not Paddle's own kernels? They have no product of bfloat16 on a CPU, in any version. In float32 they call MKL,
# which takes a slow path on AMD's processors (26 to 46 GFLOP/s on two cores, where oneDNN makes 200 to 230, and 350 to
# 1,000 in bfloat16), and all but the products is computed by one thread: the gradient of GELU takes 76 ms for
# 2048 x 3072 (2.4 here), a cast to bfloat16 11 ms (0.4 here; and Paddle 2.6.2 truncates where it should round).
# But Paddle ships oneDNN (libs/libdnnl.so.3), Intel's library for this, whose plain C functions ctypes can call.
#
# How oneDNN is used. A *primitive* is an operation compiled for arrays of one layout (shape, strides, type), which
# takes milliseconds. It runs on *memory* objects, handles to which an array's address is given just before the call.
# `OneDNN` has a method for each kind of primitive, with a signature of its own, and keeps what it has prepared, for
# the last PREPARED layouts. Since a prepared primitive has one memory object for each argument, calls must not
# overlap: this part is for one thread (oneDNN itself uses as many as OMP_NUM_THREADS says).
#
# What is a layer's work? A linear layer has three products: out = x weight + bias; backward, with grad_out the
# gradient of the loss by out, grad_x = grad_out weight^T and grad_weight = x^T grad_out. Attention has, for each head,
# scores = query key^T and context = softmax(scores) value; and four more backward.
#
# What is rounded? With precision "bfloat16", both operands of each product are rounded to it, to nearest (as
# autocast does on a GPU); products are added up in float32, with the bias. Where only a product (or GELU, or softmax's
# gradient) reads a value next, it is written in bfloat16 at once. Weights, their gradients, the sums that run through
# the layers, LayerNorm, softmax, dropout of hidden states and the loss are float32. A weight is rounded at each
# forward pass: Paddle's AdamW and set_value() leave a tensor's inplace_version as it was, so nothing would tell
# that an older copy is stale; it takes some 4 ms of mini's update.
# Each micro-batch and each batch of an evaluation rounds for itself, and a backward pass uses what its forward pass
# rounded, or rounds the same values anew. Numpy has no bfloat16: arrays of uint16 stand for it here.
#
# Who owns the memory? The caller: each method writes into an array that it is given and keeps none. An *operation*
# (LinearOperation, EncoderLayerOperation, ...) is one call of a layer: forward() keeps in it what backward() needs,
# rounded operands above all, and it ends with the backward pass. Large arrays are lent by Buffers. Tensors' arrays are
# views of Paddle's memory (array_of() in run_pretrain.py), which keep it alive.
DATA_TYPES = {"float32": 3, "uint16": 2, "uint8": 6}  # dnnl_data_type_t; uint16 stands for bfloat16
CPU, FORWARD_TRAINING, BACKWARD = 1, 64, 128  # dnnl_engine_kind_t, dnnl_prop_kind_t
OUT_OF_MEMORY = 1  # dnnl_status_t
LINEAR, GELU_ERF, ADD, MULTIPLY, SOFTMAX = 0x26, 0x31, 0x1FFF0, 0x1FFF1, 0x30000  # dnnl_alg_kind_t
SCALE_AND_SHIFT = 2 | 4  # dnnl_normalization_flags_t: both are given
SRC, SRC_1, DST, WEIGHTS, BIAS = 1, 2, 17, 33, 41  # DNNL_ARG_...
MEAN, VARIANCE, SCALE, SHIFT = 49, 50, 51, 52
GRAD_SRC, GRAD_DST, GRAD_WEIGHTS, GRAD_BIAS = 129, 145, 161, 169  # DNNL_ARG_DIFF_...
GRAD_SCALE, GRAD_SHIFT, AFTERWARDS = 255, 256, 32768  # of the first operation after a product; the next's is twice that
OF_ONE_SHAPE = "binary", "reorder", "eltwise", "softmax"  # beginnings of kinds whose arrays all have one shape
PREPARED = 512  # primitives kept, 0.4 MB each; a model has some 40 for each shape of batch
ATTENTION_CHUNK = 2**21  # attention weights computed at a time, 8 MB in float32: they stay in the cache
LARGE = 2**25  # bytes, from which on the C library gives memory back (prepare_for_paddle)
LOSS_CHUNK = 128  # rows of logits computed at a time, 26 MB in float32 for 50,265 tokens; 64 take a tenth longer


def opaque(name: str):
    """The type of pointers to one of oneDNN's structures; ctypes refuses all others where it is declared."""
    return ctypes.POINTER(type(name, (ctypes.Structure,), {}))


Engine, Stream, Layout, Memory = opaque("Engine"), opaque("Stream"), opaque("Layout"), opaque("Memory")
Description, Primitive = opaque("Description"), opaque("Primitive")
Attributes, PostOperations = opaque("Attributes"), opaque("PostOperations")


class Argument(ctypes.Structure):
    """dnnl_exec_arg_t: what a memory object is to a primitive."""

    _fields_ = (("role", ctypes.c_int), ("memory", Memory))


def signatures() -> dict:
    """The C functions used here, and the types that they take (dnnl.h)."""
    pointer, integer, number = ctypes.POINTER, ctypes.c_int, ctypes.c_float
    numbers, new = pointer(ctypes.c_int64), pointer(Description)
    created = {
        "matmul": (Engine, Layout, Layout, Layout, Layout, Attributes),
        "binary": (Engine, integer, Layout, Layout, Layout, Attributes),
        "reorder": (Layout, Engine, Layout, Engine, Attributes),
        "eltwise_forward": (Engine, integer, integer, Layout, Layout, number, number, Attributes),
        "eltwise_backward": (Engine, integer, Layout, Layout, Layout, number, number, Description, Attributes),
        "softmax_forward": (Engine, integer, integer, Layout, Layout, integer, Attributes),
        "softmax_backward": (Engine, integer, Layout, Layout, Layout, integer, Description, Attributes),
        "inner_product_backward_weights": (Engine, Layout, Layout, Layout, Layout, Description, Attributes),
        "layer_normalization_forward": (Engine, integer, *[Layout] * 3, number, ctypes.c_uint, Attributes),
        "layer_normalization_backward": (
            *(Engine, integer, *[Layout] * 4, number, ctypes.c_uint, Description, Attributes),
        ),
    }
    return {f"{kind}_primitive_desc_create": (new, *types) for kind, types in created.items()} | {
        "engine_create": (pointer(Engine), integer, ctypes.c_size_t),
        "stream_create": (pointer(Stream), Engine, ctypes.c_uint),
        "memory_desc_create_with_strides": (pointer(Layout), integer, numbers, integer, numbers),
        "memory_desc_destroy": (Layout,),
        "memory_create": (pointer(Memory), Layout, Engine, ctypes.c_void_p),
        "memory_set_data_handle": (Memory, ctypes.c_void_p),
        "memory_destroy": (Memory,),
        "primitive_desc_destroy": (Description,),
        "primitive_create": (pointer(Primitive), Description),
        "primitive_execute": (Primitive, Stream, integer, pointer(Argument)),
        "primitive_destroy": (Primitive,),
        "primitive_attr_create": (pointer(Attributes),),
        "primitive_attr_set_post_ops": (Attributes, PostOperations),
        "primitive_attr_destroy": (Attributes,),
        "post_ops_create": (pointer(PostOperations),),
        "post_ops_append_eltwise": (PostOperations, integer, number, number),
        "post_ops_append_binary": (PostOperations, integer, Layout),
        "post_ops_append_sum": (PostOperations, number, ctypes.c_int32, integer),
        "post_ops_destroy": (PostOperations,),
    }


class OneDNN:
    """Runs primitives of Paddle's oneDNN on arrays: float32, uint16 (bfloat16), uint8.

    TypeError: for what is no such array. ValueError: for shapes that do not fit. RuntimeError: where
    oneDNN refuses a layout. MemoryError: where it gets no memory.
    """

    def __init__(self):
        folder = os.path.dirname(sys.modules["paddle"].__file__)
        self.library = ctypes.CDLL(f"{folder}/libs/libdnnl.so.3")
        for name, types in signatures().items():
            function = self.function(name)
            function.argtypes, function.errcheck = types, self.check_status
        isa = self.library.dnnl_get_effective_cpu_isa()
        # From AVX-512 on oneDNN multiplies bfloat16, if not natively; without it, some of 3.2's products are loops
        # (EncoderLayerOperation.forward).
        self.has_avx512 = bool(isa & 0x20)
        self.has_bfloat16 = bool(isa & 0x80)  # AVX512_BF16 or AMX
        self.engine = self.new(Engine, "engine_create", CPU, 0)
        self.stream = self.new(Stream, "stream_create", self.engine, 1)
        self.prepared = collections.OrderedDict()  # the least recently used first
        self.lock = threading.Lock()

    def matmul(self, left, right, out, bias=None, kept=None, scale=1.0, added=None):
        """out = (left right + bias) kept scale + added: [..., m, k], [..., k, n], [..., m, n].

        bias is a row in float32, kept is uint8 and shaped like out, added is float32 and may be out itself.
        Arrays may be views with any strides, as of a head's columns or of a transposed matrix.
        """
        arrays = {SRC: left, WEIGHTS: right, DST: out}
        if bias is not None:
            arrays[BIAS] = bias
        afterwards = []  # what is done to the product before it is written
        if kept is not None:
            afterwards.append(("multiply", kept))
        if scale != 1:
            afterwards.append(("scale", float(scale)))
        if added is not None:
            afterwards.append(("accumulate", None) if added is out else ("add", added))
        for position, (what, value) in enumerate(afterwards, start=1):
            if what in ("multiply", "add"):
                arrays[AFTERWARDS * position | SRC_1] = value

        def describe(left, right, out, *others):
            layouts = dict(zip(arrays, (left, right, out, *others)))
            attributes = self.attributes(afterwards, layouts) if afterwards else None
            return self.engine, left, right, layouts.get(BIAS), out, attributes

        self.run("matmul", arrays, describe, *(what for what, _ in afterwards), scale)
        return out

    def attributes(self, afterwards: list, layouts: dict) -> Attributes:
        """What a product does before it writes a value."""
        operations = self.new(PostOperations, "post_ops_create")
        for position, (what, value) in enumerate(afterwards, start=1):
            if what == "scale":
                self.library.dnnl_post_ops_append_eltwise(operations, LINEAR, value, 0)
            elif what == "accumulate":
                self.library.dnnl_post_ops_append_sum(operations, 1, 0, 0)
            else:
                algorithm = MULTIPLY if what == "multiply" else ADD
                layout = layouts[AFTERWARDS * position | SRC_1]
                self.library.dnnl_post_ops_append_binary(operations, algorithm, layout)
        attributes = self.new(Attributes, "primitive_attr_create")
        self.library.dnnl_primitive_attr_set_post_ops(attributes, operations)
        self.library.dnnl_post_ops_destroy(operations)
        return attributes

    def inner_product_backward_weights(self, x, grad_out, grad_weight, grad_bias):
        """grad_weight = grad_out^T x and grad_bias = sum of grad_out's rows: of [n, in], [n, out].

        grad_weight is [out, in] or, with its strides, a transposed [in, out]; both are float32.
        """
        arrays = {SRC: x, GRAD_WEIGHTS: grad_weight, GRAD_BIAS: grad_bias, GRAD_DST: grad_out}
        self.run("inner_product_backward_weights", arrays, lambda *layouts: (self.engine, *layouts, None, None))

    def multiply(self, left, right, out, scale=1.0):
        """out = left right scale, value by value: left and out of one type, right may be uint8."""
        afterwards = [("scale", float(scale))] if scale != 1 else []

        def describe(left, right, out):
            attributes = self.attributes(afterwards, {}) if afterwards else None
            return self.engine, MULTIPLY, left, right, out, attributes

        self.run("binary", {SRC: left, SRC_1: right, DST: out}, describe, scale)
        return out

    def copy(self, src, dst):
        """dst = src, rounded to nearest or widened to dst's type."""
        self.run("reorder", {SRC: src, DST: dst}, lambda src, dst: (src, self.engine, dst, self.engine, None))
        return dst

    def round_to_bfloat16(self, array):
        """A new array of uint16: the float32 values in bfloat16, to nearest, ties to even."""
        return self.copy(array, BUFFERS.take(array.shape, np.uint16))

    def gelu(self, src, dst):
        """dst = src (1 + erf(src / sqrt(2))) / 2, of one shape."""

        def describe(src, dst):
            return self.engine, FORWARD_TRAINING, GELU_ERF, src, dst, 0, 0, None

        self.run("eltwise_forward", {SRC: src, DST: dst}, describe)
        return dst

    def gelu_backward(self, src, grad_dst, grad_src):
        """grad_src = grad_dst (Phi(src) + src phi(src)), with the normal distribution's Phi and phi."""

        def describe(grad_src, grad_dst, src):
            return self.engine, GELU_ERF, grad_src, grad_dst, src, 0, 0, None, None

        self.run("eltwise_backward", {GRAD_SRC: grad_src, GRAD_DST: grad_dst, SRC: src}, describe)

    def softmax(self, src, dst):
        """dst = exp(src) / sum of exp(src) over the last axis; src and dst may be the same."""

        def describe(layout, dst):
            return self.engine, FORWARD_TRAINING, SOFTMAX, layout, dst, src.ndim - 1, None

        self.run("softmax_forward", {SRC: src, DST: dst}, describe)

    def softmax_backward(self, dst, grad_dst, grad_src):
        """grad_src = dst (grad_dst - sum of dst grad_dst over the last axis); may be grad_dst itself."""

        def describe(grad_src, grad_dst, layout):
            return self.engine, SOFTMAX, grad_src, grad_dst, layout, dst.ndim - 1, None, None

        self.run("softmax_backward", {GRAD_SRC: grad_src, GRAD_DST: grad_dst, DST: dst}, describe)

    def layer_norm(self, src, scale, shift, epsilon: float, dst, mean, variance):
        """dst = (src - mean) / sqrt(variance + epsilon) scale + shift: [n, width], of each row of src.

        Fills mean and variance, [n]; all are float32, but dst may be bfloat16.
        """

        def describe(src, dst, mean, *_):
            return self.engine, FORWARD_TRAINING, src, dst, mean, epsilon, SCALE_AND_SHIFT, None

        arrays = {SRC: src, DST: dst, MEAN: mean, VARIANCE: variance, SCALE: scale, SHIFT: shift}
        self.run("layer_normalization_forward", arrays, describe, epsilon)

    def layer_norm_backward(
        self, src, scale, shift, epsilon: float, mean, variance, grad_dst, grad_src, grad_scale, grad_shift
    ):
        """With x = (src - mean) / sqrt(variance + epsilon) and g = grad_dst scale, for each row:

        grad_src = (g - mean of g - x mean of (g x)) / sqrt(variance + epsilon); and over all rows
        grad_scale = sum of grad_dst x, grad_shift = sum of grad_dst. grad_src may be grad_dst.
        """
        arrays = {SRC: src, GRAD_DST: grad_dst, MEAN: mean, VARIANCE: variance, SCALE: scale, SHIFT: shift}
        arrays |= {GRAD_SRC: grad_src, GRAD_SCALE: grad_scale, GRAD_SHIFT: grad_shift}

        def describe(src, grad_dst, mean, variance, scale, shift, grad_src, *_):
            kind = "layer_normalization_forward_primitive_desc_create"
            forward = (self.engine, FORWARD_TRAINING, src, src, mean, epsilon, SCALE_AND_SHIFT, None)
            hint = self.new(Description, kind, *forward)
            return self.engine, BACKWARD, grad_src, grad_dst, src, mean, epsilon, SCALE_AND_SHIFT, hint, None

        self.run("layer_normalization_backward", arrays, describe, epsilon)

    # ---- how primitives are prepared, run and freed
    def run(self, kind: str, arrays: dict, describe, *settings):
        """Runs a primitive on {role: array}; describe(layouts) returns what its description takes in C.

        `settings` is what the description depends on besides the arrays' layouts.
        """
        key = kind, *settings, *((role, x.shape, x.strides, x.dtype.char) for role, x in arrays.items())
        with self.lock:  # another thread, as of a server, would write its places into the same arguments
            if key in self.prepared:
                self.prepared.move_to_end(key)
            else:
                if len(self.prepared) >= PREPARED:
                    self.free(*self.prepared.popitem(last=False)[1])
                self.prepared[key] = self.prepare(kind, arrays, describe)
            primitive, arguments = self.prepared[key]
            for argument, array in zip(arguments, arrays.values()):
                self.library.dnnl_memory_set_data_handle(argument.memory, array.ctypes.data)
            self.library.dnnl_primitive_execute(primitive, self.stream, len(arguments), arguments)

    def prepare(self, kind: str, arrays: dict, describe) -> tuple:
        """The primitive, and its arguments with memory objects that have no memory yet."""
        shapes = {array.shape for array in arrays.values()}
        if len(shapes) > 1 and kind.startswith(OF_ONE_SHAPE):  # oneDNN does not see it in a softmax
            raise ValueError(f"arrays of different shapes: {shapes}")
        layouts = [self.layout_of(array) for array in arrays.values()]
        described = describe(*layouts)
        description = self.new(Description, f"{kind}_primitive_desc_create", *described)
        primitive = self.new(Primitive, "primitive_create", description)
        memories = [self.new(Memory, "memory_create", layout, self.engine, None) for layout in layouts]
        for used in (description, *described):
            if isinstance(used, Description):
                self.library.dnnl_primitive_desc_destroy(used)
            elif isinstance(used, Attributes):
                self.library.dnnl_primitive_attr_destroy(used)
        for layout in layouts:
            self.library.dnnl_memory_desc_destroy(layout)
        return primitive, (Argument * len(arrays))(*zip(arrays, memories))

    def layout_of(self, array) -> Layout:
        if not isinstance(array, np.ndarray) or array.dtype.name not in DATA_TYPES:
            raise TypeError(f"neither float32, uint16 (bfloat16) nor uint8: {getattr(array, 'dtype', type(array))}")
        strides = [stride // array.itemsize for stride in array.strides]
        # An axis of one value has whatever stride its history left. By [1, n] with strides of 1 and 1, as of a column
        # transposed, oneDNN 3.6 multiplies without writing anything:
        # findings/onednn-3.6-product-by-a-transposed-column-writes-nothing.sh.
        if array.shape[-1] == 1:
            strides[-1] = 1
        if array.ndim > 1 and array.shape[-2] == 1:
            strides[-2] = strides[-1] * array.shape[-1]
        numbers = ctypes.c_int64 * array.ndim
        arguments = array.ndim, numbers(*array.shape), DATA_TYPES[array.dtype.name], numbers(*strides)
        return self.new(Layout, "memory_desc_create_with_strides", *arguments)

    def free(self, primitive: Primitive, arguments):
        self.library.dnnl_primitive_destroy(primitive)
        for argument in arguments:
            self.library.dnnl_memory_destroy(argument.memory)

    def new(self, kind: type, create: str, *arguments):
        """The structure that one of the library's create functions makes."""
        made = kind()
        self.function(create)(ctypes.byref(made), *arguments)
        return made

    def function(self, name: str):
        return getattr(self.library, f"dnnl_{name}")

    @staticmethod
    def check_status(status: int, function, arguments):
        if status:
            kind = MemoryError if status == OUT_OF_MEMORY else RuntimeError
            raise kind(f"oneDNN's {function.__name__} gave status {status}")


@functools.cache
def onednn() -> OneDNN | None:
    """Paddle's oneDNN; or None, which is said, where it is missing, lacks something or fails."""
    try:
        library = OneDNN()
        try_operations(library)
        return library
    except (OSError, AttributeError, RuntimeError, MemoryError) as error:
        log(f"the CPU's faster layers are left out: {error}")
        return None


def try_operations(dnn: OneDNN):
    """Runs each operation on a few ones, so that what is missing is missed before a run.

    In bfloat16 where the processor has it: what it does in float32, oneDNN has for every processor.
    """
    precision = "bfloat16" if dnn.has_bfloat16 else "float32"
    matrix, row, hidden = np.ones((8, 8), np.float32), np.ones(8, np.float32), np.ones((1, 2, 8), np.float32)
    mask, labels = np.zeros((1, 1, 1, 2), np.float32), np.zeros(2, np.int64)
    layer = [matrix, row] * 4 + [row, row] + [matrix, row] * 2 + [row, row]
    for operation, out, arrays in (
        (LinearOperation(dnn, precision, transposed=False), hidden, (hidden, matrix, row)),
        (GeluOperation(dnn), hidden, (hidden,)),
        (DropoutOperation(dnn, dropout=0.5, seed=1), hidden, (hidden,)),
        (LayerNormOperation(dnn, epsilon=1e-5), hidden, (hidden, row, row)),
        (EncoderLayerOperation(dnn, precision, 2, 1e-5, mask, 0.5, 0.5, [1, 2, 3]), hidden, (hidden, *layer)),
        (MaskedLossOperation(dnn, precision, labels, True), np.ones((), np.float32), (hidden[0], matrix, row)),
    ):
        operation.forward(out.copy(), *arrays)
        operation.backward(out, *(np.empty_like(array) for array in arrays))


def as_operand(dnn: OneDNN, array, precision: str):
    """What a product takes: the float32 array itself, or its values in bfloat16."""
    return dnn.round_to_bfloat16(array) if precision == "bfloat16" else array


class LinearOperation:
    """out = x weight + bias: [..., in], [in, out], [out]; a transposed weight is [out, in], as the embedding's."""

    def __init__(self, dnn: OneDNN, precision: str, transposed: bool):
        self.dnn, self.precision, self.transposed = dnn, precision, transposed

    def forward(self, out, x, weight, bias):
        weight = as_operand(self.dnn, weight, self.precision)
        self.weight = weight if self.transposed else weight.T  # [out, in]
        self.rows = as_operand(self.dnn, x.reshape(-1, x.shape[-1]), self.precision)
        self.dnn.matmul(self.rows, self.weight.T, out.reshape(-1, len(bias)), bias.reshape(1, -1))

    def backward(self, grad_out, grad_x, grad_weight, grad_bias):
        """grad_x = grad_out weight^T, grad_weight = x^T grad_out, grad_bias = the sum of grad_out's rows."""
        grad_rows = as_operand(self.dnn, grad_out.reshape(-1, len(grad_bias)), self.precision)
        self.dnn.matmul(grad_rows, self.weight, grad_x.reshape(self.rows.shape))
        grad_weight = grad_weight if self.transposed else grad_weight.T
        self.dnn.inner_product_backward_weights(self.rows, grad_rows, grad_weight, grad_bias)


class GeluOperation:
    """out = gelu(x), float32 of any shape."""

    def __init__(self, dnn: OneDNN):
        self.dnn = dnn

    def forward(self, out, x):
        self.x = x
        self.dnn.gelu(x, out)

    def backward(self, grad_out, grad_x):
        self.dnn.gelu_backward(self.x, grad_out, grad_x)


class DropoutOperation:
    """out = x / (1 - dropout) where a value is kept, with the probability 1 - dropout; 0 elsewhere."""

    def __init__(self, dnn: OneDNN, dropout: float, seed: int):
        self.dnn, self.dropout, self.seed = dnn, dropout, seed

    def forward(self, out, x):
        self.kept = draw_kept(x.shape, self.dropout, self.seed)
        self.backward(x, out)

    def backward(self, grad_out, grad_x):
        """The same of the gradient."""
        self.dnn.multiply(grad_out, self.kept, grad_x, scale=1 / (1 - self.dropout))


def draw_kept(shape: tuple, dropout: float, seed: int):
    """Which values dropout keeps, as uint8 that are 1 there and 0 elsewhere; from 16 random bits each.

    Drawing bits is what takes time. So each random byte serves twice: as the upper one of a value's two,
    which decides unless it equals the threshold's (25 for a dropout of 0.1), and as the lower one of a value far away.
    """
    size, threshold = math.prod(shape), round(dropout * 2**16)
    half = (size + 1) // 2
    draw = np.random.SFC64(seed).random_raw(half // 4 + 1).view(np.uint8)
    kept = np.empty(2 * half, bool)
    np.greater_equal(draw[: 2 * half].view(np.uint16), threshold, out=kept[:half])
    np.greater_equal(draw[1 : 2 * half + 1].view(np.uint16), threshold, out=kept[half:])
    return kept[:size].view(np.uint8).reshape(shape)


class Buffers:
    """Memory that stays, for arrays above 32 MB, which the C library returns to the system at once.

    The page faults of fresh memory take longer than what is written there: 70 ms for 64 MB.
    """

    def __init__(self):
        self.unused = []  # arrays of bytes

    def take(self, shape: tuple, dtype: type):
        """An array that is the caller's alone; its memory is lent anew when no view of it is left."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < LARGE:
            return np.empty(shape, dtype)
        self.unused.sort(key=len)
        fitting = [place for place, buffer in enumerate(self.unused) if size <= len(buffer)]
        if fitting:
            buffer = self.unused.pop(fitting[0])  # the smallest of them: a larger one may be asked for next
        else:
            self.unused.clear()  # too small ones would pile up
            buffer = np.empty(size, np.uint8)
        lent = (ctypes.c_uint8 * size).from_buffer(buffer)
        weakref.finalize(lent, self.unused.append, buffer).atexit = False
        return np.frombuffer(lent, dtype).reshape(shape)


BUFFERS = Buffers()


class LayerNormOperation:
    """out = (x - mean) / sqrt(variance + epsilon) scale + shift, over the last axis: [..., width], float32."""

    def __init__(self, dnn: OneDNN, epsilon: float):
        self.dnn, self.epsilon = dnn, epsilon

    def forward(self, out, x, scale, shift):
        self.x, self.scale, self.shift = x.reshape(-1, x.shape[-1]), scale, shift
        self.mean, self.variance = np.empty((2, len(self.x)), np.float32)
        statistics = self.mean, self.variance
        self.dnn.layer_norm(self.x, scale, shift, self.epsilon, out.reshape(self.x.shape), *statistics)

    def backward(self, grad_out, grad_x, grad_scale, grad_shift):
        kept = self.x, self.scale, self.shift, self.epsilon, self.mean, self.variance
        gradients = grad_out.reshape(self.x.shape), grad_x.reshape(self.x.shape), grad_scale, grad_shift
        self.dnn.layer_norm_backward(*kept, *gradients)


class EncoderParameters(NamedTuple):
    """The arrays of an encoder layer, or their gradients: float32, weights [in, out]."""

    query_weight: np.ndarray
    query_bias: np.ndarray
    key_weight: np.ndarray
    key_bias: np.ndarray
    value_weight: np.ndarray
    value_bias: np.ndarray
    output_weight: np.ndarray
    output_bias: np.ndarray
    norm1_scale: np.ndarray
    norm1_shift: np.ndarray
    inner_weight: np.ndarray
    inner_bias: np.ndarray
    outer_weight: np.ndarray
    outer_bias: np.ndarray
    norm2_scale: np.ndarray
    norm2_shift: np.ndarray


class EncoderLayerOperation:
    """A layer of the encoder (BERT's): x and out are [batch, seq, width] in float32.

        hidden = norm1(x + dropout(attention(x) output_weight + output_bias))
        out = norm2(hidden + dropout(gelu(hidden inner_weight + inner_bias) outer_weight + outer_bias))

    Whole, and not layer by layer, because most of the time beside the products goes into passes over memory. So bias,
    dropout and the sum with x are done where a product's values are written; query, key and value are one product;
    and in the backward pass, the product that computes a gradient adds it to the one that is there. What products read
    is written in bfloat16 at once (query, key, value, context, GELU's input and result; attention weights after a
    softmax in float32; and their gradients); x, the sums and hidden stay in float32.
    """

    def __init__(
        self, dnn: OneDNN, precision: str, num_heads: int, epsilon: float, mask, dropout, attention_dropout, seeds
    ):
        """mask: [batch, 1, 1 or seq, seq], added to the scores, or None; seeds: attention's and the two dropouts'."""
        self.dnn, self.precision, self.epsilon = dnn, precision, epsilon
        self.type = np.uint16 if precision == "bfloat16" else np.float32  # of what products read
        self.dropout, self.seeds = dropout, seeds
        self.attention = AttentionOperation(dnn, self.type, num_heads, mask, attention_dropout, seeds[0])

    def forward(self, out, x, *parameters):
        dnn, p = self.dnn, EncoderParameters(*parameters)
        batch, seq, width = x.shape
        x, rows = x.reshape(-1, width), batch * seq
        self.round_weights(p)
        self.norm1, self.norm2 = LayerNormOperation(dnn, self.epsilon), LayerNormOperation(dnn, self.epsilon)
        self.kept1, self.kept2 = (
            draw_kept((rows, width), self.dropout, seed) if self.dropout else None for seed in self.seeds[1:]
        )
        dropped = 1 / (1 - self.dropout)

        # Attention to other positions
        self.x = as_operand(dnn, x, self.precision)
        projected = self.new(rows, 3 * width)
        bias = np.concatenate([p.query_bias, p.key_bias, p.value_bias]).reshape(1, -1)
        dnn.matmul(self.x, self.projections, projected, bias)
        self.context = self.new(rows, width)
        self.attention.forward(self.context.reshape(batch, seq, width), projected.reshape(batch, seq, -1))
        attended = np.empty((rows, width), np.float32)
        bias = p.output_bias.reshape(1, -1)
        dnn.matmul(self.context, self.output_weight, attended, bias, self.kept1, dropped, added=x)
        hidden = np.empty((rows, width), np.float32)
        self.norm1.forward(hidden, attended, p.norm1_scale, p.norm1_shift)

        # Each position by itself
        self.inner = self.new(rows, len(p.inner_bias))
        operand = as_operand(dnn, hidden, self.precision)
        dnn.matmul(operand, self.by_columns(self.inner_weight), self.inner, p.inner_bias.reshape(1, -1))
        activated = dnn.gelu(self.inner, np.empty_like(self.inner))
        # The sum with hidden, in its place. But where a processor has AVX2 alone, oneDNN 3.2 has no kernel for a
        # product times a mask that is added in place: it runs a loop over single values, 2,000 times as long.
        result = hidden if dnn.has_avx512 else np.empty_like(hidden)
        bias = p.outer_bias.reshape(1, -1)
        dnn.matmul(activated, self.outer_weight, result, bias, self.kept2, dropped, added=hidden)
        self.norm2.forward(out.reshape(rows, width), result, p.norm2_scale, p.norm2_shift)

    def backward(self, grad_out, grad_x, *gradients):
        """Most of what was kept is given up as soon as it is used: 30 MB less of roberta-en-mini with 32 x 128."""
        grad, width = EncoderParameters(*gradients), grad_out.shape[-1]
        grad_hidden = np.empty((grad_out.size // width, width), np.float32)
        self.feed_forward_backward(grad_out.reshape(-1, width), grad_hidden, grad)
        self.attention_backward(grad_hidden, grad_x, grad)

    def feed_forward_backward(self, grad_out, grad_hidden, grad: EncoderParameters):
        dnn = self.dnn
        # grad_hidden is first the gradient by norm2's input, of which hidden is one summand
        self.norm2.backward(grad_out, grad_hidden, grad.norm2_scale, grad.norm2_shift)
        grad_result = self.dropped(grad_hidden, self.kept2)
        self.norm2 = self.kept2 = None
        activated = dnn.gelu(self.inner, np.empty_like(self.inner))  # anew: kept, it takes 150 MB of base with 4 x 512
        dnn.inner_product_backward_weights(activated, grad_result, grad.outer_weight.T, grad.outer_bias)
        grad_inner = activated  # its memory: the values are no longer needed
        dnn.matmul(grad_result, self.outer_weight.T, grad_inner)
        dnn.gelu_backward(self.inner, grad_inner, grad_inner)
        hidden = np.empty_like(grad_hidden)  # anew, as GELU: 0.3 ms, and in float32 16 MB less of mini
        self.norm1.forward(hidden, self.norm1.x, self.norm1.scale, self.norm1.shift)
        hidden = as_operand(dnn, hidden, self.precision)
        dnn.inner_product_backward_weights(hidden, grad_inner, grad.inner_weight.T, grad.inner_bias)
        dnn.matmul(grad_inner, self.inner_weight.T, grad_hidden, added=grad_hidden)
        self.inner = None

    def attention_backward(self, grad_hidden, grad_x, grad: EncoderParameters):
        dnn, (batch, seq, width) = self.dnn, grad_x.shape
        grad_x, rows = grad_x.reshape(-1, width), batch * seq
        # grad_x is first the gradient by norm1's input, of which x is one summand
        self.norm1.backward(grad_hidden, grad_x, grad.norm1_scale, grad.norm1_shift)
        grad_attended = self.dropped(grad_x, self.kept1)
        self.norm1 = self.kept1 = None
        dnn.inner_product_backward_weights(self.context, grad_attended, grad.output_weight.T, grad.output_bias)
        grad_context = self.context  # its memory, likewise
        dnn.matmul(grad_attended, self.output_weight.T, grad_context)
        grad_projected = self.new(rows, 3 * width)
        self.attention.backward(grad_context.reshape(batch, seq, -1), grad_projected.reshape(batch, seq, -1))
        self.attention = None
        by_weights, by_biases = np.empty((width, 3 * width), np.float32), np.empty(3 * width, np.float32)
        dnn.inner_product_backward_weights(self.x, grad_projected, by_weights.T, by_biases)
        weights = grad.query_weight, grad.key_weight, grad.value_weight
        for weight, part in zip(weights, np.split(by_weights, 3, axis=1)):
            dnn.copy(part, weight)
        grad.query_bias[:], grad.key_bias[:], grad.value_bias[:] = np.split(by_biases, 3)
        dnn.matmul(grad_projected, self.projections.T, grad_x, added=grad_x)

    def round_weights(self, p: EncoderParameters):
        """Rounds the products' weights in bfloat16; query's, key's and value's stand side by side, [width, 3 width]."""
        width = len(p.query_bias)
        self.projections = self.new(width, 3 * width)
        weights = p.query_weight, p.key_weight, p.value_weight
        for weight, part in zip(weights, np.split(self.projections, 3, axis=1)):
            self.dnn.copy(weight, part)
        weights = p.output_weight, p.inner_weight, p.outer_weight
        rounded = [as_operand(self.dnn, weight, self.precision) for weight in weights]
        self.output_weight, self.inner_weight, self.outer_weight = rounded

    def by_columns(self, weight):
        """The weight as it is, in float32 stored column by column.

        Row by row, oneDNN multiplies by a matrix of float32 with 3,072 columns, as base's, at half of its rate (150
        instead of 300 GFLOP/s on a Xeon with AVX-512, 3.2 and 3.6 alike; 2,304 and 4,096 columns are not so).
        """
        return self.dnn.copy(weight.T, np.empty(weight.T.shape, np.float32)).T if self.type is np.float32 else weight

    def dropped(self, gradient, kept):
        """The gradient behind a dropout, as an operand."""
        if kept is not None:
            scale = 1 / (1 - self.dropout)
            gradient = self.dnn.multiply(gradient, kept, np.empty_like(gradient), scale)
        return as_operand(self.dnn, gradient, self.precision)

    def new(self, *shape: int):
        """An array for an operand of products."""
        return np.empty(shape, self.type)


class AttentionOperation:
    """context = dropout(softmax(query key^T / sqrt(width of a head) + mask)) value, for each head.

    projected holds query, key and value side by side, [batch, seq, 3 width]; context is [batch, seq, width].
    The scores, [batch, heads, seq, seq], are computed for so many rows and heads at a time as stay in the cache;
    their softmax is kept.
    """

    def __init__(self, dnn: OneDNN, operand_type: type, num_heads: int, mask, dropout: float, seed: int):
        self.dnn, self.type, self.num_heads, self.mask = dnn, operand_type, num_heads, mask
        self.dropout, self.seed = dropout, seed

    def forward(self, context, projected):
        batch, seq, width = context.shape
        self.chunks = attention_chunks(batch, self.num_heads, seq)
        self.scale, self.dropped_scale = (width // self.num_heads) ** -0.5, 1 / (1 - self.dropout)
        shape = batch, self.num_heads, seq, seq
        self.weights = np.empty(shape, self.type)
        self.kept = draw_kept(shape, self.dropout, self.seed) if self.dropout else None
        self.query, self.key, self.value = map(self.by_head, np.split(projected, 3, axis=2))
        context = self.by_head(context)
        for chunk in self.chunks:
            scores = np.empty(self.weights[chunk].shape, np.float32)
            mask = None if self.mask is None else self.mask[chunk[0]]  # one for all heads
            self.dnn.matmul(self.query[chunk], self.key[chunk].swapaxes(-2, -1), scores, scale=self.scale, added=mask)
            self.dnn.softmax(scores, scores)  # into bfloat16 at once, Paddle 2.6.2's rounds twice
            self.dnn.copy(scores, self.weights[chunk])
            self.dnn.matmul(self.left(chunk), self.value[chunk], context[chunk], scale=self.dropped_scale)

    def backward(self, grad_context, grad_projected):
        grad_query, grad_key, grad_value = map(self.by_head, np.split(grad_projected, 3, axis=2))
        grad_context = self.by_head(grad_context)
        for chunk in self.chunks:
            gradient, weights = grad_context[chunk], self.weights[chunk]
            left = self.left(chunk).swapaxes(-2, -1)
            self.dnn.matmul(left, gradient, grad_value[chunk], scale=self.dropped_scale)
            grad_weights = np.empty(weights.shape, self.type)
            kept, value = None if self.kept is None else self.kept[chunk], self.value[chunk].swapaxes(-2, -1)
            self.dnn.matmul(gradient, value, grad_weights, kept=kept, scale=self.dropped_scale)
            self.dnn.softmax_backward(weights, grad_weights, grad_weights)
            self.dnn.matmul(grad_weights, self.key[chunk], grad_query[chunk], scale=self.scale)
            self.dnn.matmul(grad_weights.swapaxes(-2, -1), self.query[chunk], grad_key[chunk], scale=self.scale)

    def left(self, chunk: tuple):
        """What dropout leaves of the attention weights, not scaled."""
        weights = self.weights[chunk]
        if self.kept is None:
            return weights
        return self.dnn.multiply(weights, self.kept[chunk], np.empty_like(weights))

    def by_head(self, array):
        """[batch, seq, width] as [batch, heads, seq, width of a head], without a copy."""
        return array.reshape(*array.shape[:2], self.num_heads, -1).swapaxes(1, 2)


def attention_chunks(batch: int, heads: int, seq: int) -> list[tuple]:
    """Indices of what of [batch, heads, ...] is computed at a time: at most ATTENTION_CHUNK weights, or one head's.

    Never 3 seq rows. There oneDNN 3 computes query, key and value wrongly, and writes where it should not: it takes
    their matrices, batch times heads of them, for evenly spaced if the stride of a row, 3 seq heads width, is so many
    times that of a head, width (is_batch_layout_trivial(); uxlfoundation/oneDNN's pull request 5556 mends it).
    """
    most = max(1, ATTENTION_CHUNK // seq**2)  # heads of rows
    if most < heads:
        size = math.ceil(heads / math.ceil(heads / most))
        parts = [slice(start, start + size) for start in range(0, heads, size)]
        # A row by its number, without an axis of its own: that of [1, heads, seq, seq] has another stride in a part of
        # a larger array than in an array by itself, and then oneDNN multiplies a product by dropout's mask in a loop
        # over single values, 300 times as long (findings/onednn-mask-of-another-first-stride-is-a-reference-loop.sh).
        return [(row, part) for row in range(batch) for part in parts]
    chunks, start = [], 0
    while start < batch:
        size = min(most // heads, batch - start)
        if size == 3 * seq:
            size -= 1
        chunks.append((slice(start, start + size), slice(None)))
        start += size
    return chunks


class MaskedLossOperation:
    """The sum of -log softmax(x weight^T + bias)[label] over the rows whose label is not -100: output layer and loss.

    x is [n, width], weight [vocab, width], labels int64 [n]. With LOSS_CHUNK rows at a time the logits of all rows
    (130 MB in float32 for 640 rows) are never in memory (as in Wijmans et al., 2024, "Cut Your Losses"). Their
    gradient, softmax less 1 at the label, is computed on the way, in place, and kept as an operand, [n, vocab]. So is
    the gradient of x, after which the rounded weight is no longer needed.
    """

    def __init__(self, dnn: OneDNN, precision: str, labels, needs_gradient: bool):
        if np.any((labels < 0) & (labels != IGNORE_INDEX)):
            raise ValueError(f"a label is negative, and not {IGNORE_INDEX}")
        self.dnn, self.precision, self.labels, self.needs_gradient = dnn, precision, labels, needs_gradient
        self.memory = None  # of the weight's gradient to come, if it is there already: the forward pass works in it
        self.num_correct = 0  # labels with the highest logit; counted where no gradient is needed, as in evaluations

    def forward(self, out, x, weight, bias):
        self.x, rows, bias = x, as_operand(self.dnn, x, self.precision), bias.reshape(1, -1)
        self.grad_logits = BUFFERS.take((len(x), len(weight)), rows.dtype) if self.needs_gradient else None
        weight, memory = self.weight_and_memory(weight, min(len(x), LOSS_CHUNK))
        loss = 0.0
        for start in range(0, len(x), LOSS_CHUNK):
            chunk = slice(start, start + LOSS_CHUNK)
            labels = self.labels[chunk]
            counted = np.flatnonzero(labels != IGNORE_INDEX)
            at_labels = counted, labels[counted]
            logits = memory[: len(labels)]
            self.dnn.matmul(rows[chunk], weight.T, logits, bias)
            if not self.needs_gradient:
                self.num_correct += int((logits.argmax(1) == labels).sum())
            self.dnn.softmax(logits, logits)
            probabilities = logits[at_labels]
            losses = np.full(len(counted), np.inf, np.float32)
            is_told = probabilities != 0  # NaN is not 0, and so it stays in the loss
            losses[is_told] = -np.log(probabilities[is_told])
            if np.isinf(losses).any():  # probabilities too small for float32, whose logarithms are not
                self.dnn.matmul(rows[chunk], weight.T, logits, bias)
                losses = np.logaddexp.reduce(logits, axis=1)[counted] - logits[at_labels]
                self.dnn.softmax(logits, logits)
            loss += losses.sum(dtype=np.float64)
            if self.needs_gradient:
                logits[at_labels] -= 1
                logits[labels == IGNORE_INDEX] = 0
                self.dnn.copy(logits, self.grad_logits[chunk])
        out[...] = loss
        if self.needs_gradient:
            self.grad_x = np.empty(x.shape, np.float32)
            self.dnn.matmul(self.grad_logits, weight, self.grad_x)

    def weight_and_memory(self, weight, num_rows: int) -> tuple:
        """The weight as an operand, and memory for the logits of so many rows, [num_rows, vocab].

        Both lie where the weight's gradient will, if they fit there: 50 MB less of roberta-en-mini.
        """
        is_rounded = self.precision == "bfloat16"
        size = num_rows * len(weight)
        needed = size + ((weight.size + 1) // 2 if is_rounded else 0)  # in numbers of float32
        memory = self.memory
        if memory is None or memory.size < needed:
            memory = BUFFERS.take((needed,), np.float32)
        memory = memory.reshape(-1)
        if is_rounded:
            rounded = memory[size:].view(np.uint16)[: weight.size].reshape(weight.shape)
            weight = self.dnn.copy(weight, rounded)
        return weight, memory[:size].reshape(num_rows, len(weight))

    def backward(self, grad_out, grad_x, grad_weight, grad_bias):
        """grad_out is a scalar: it scales x before rounding, grad_x and grad_bias, no matrix as wide as vocab."""
        np.multiply(self.grad_x, grad_out, out=grad_x)
        rows = as_operand(self.dnn, self.x * grad_out, self.precision)
        self.dnn.inner_product_backward_weights(rows, self.grad_logits, grad_weight, grad_bias)
        grad_bias *= grad_out


def add_rows(matrix, ids, rows):
    """matrix[ids[i]] += rows[i] for each i, where ids may repeat: [vocab, width], [n], [n, width]."""
    order = np.argsort(ids, kind="stable")
    distinct, starts = np.unique(ids[order], return_index=True)
    if len(distinct):
        matrix[distinct] += np.add.reduceat(rows[order], starts, axis=0)


if __name__ == "__main__":
    command_line(main)
