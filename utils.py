"""What create_data.py and run_pretrain.py share: masking, the order of rows, export, and what keeps files whole.

Nothing here imports Paddle, so create_data.py starts fast and DataCollatorMLM works in anyone's loop:

    collator = DataCollatorMLM(tokenizer, mlm_probability=0.15, seed=42)
    batch = collator([{"input_ids": [0, 31414, 232, 328, 2]}, ...])

Run as a script, it turns a checkpoint into a model directory of Hugging Face transformers:

    python utils.py --checkpoint ckp/paddle_10000 --output_dir ckp_transformers
"""

import argparse
import bisect
import contextlib
import ctypes
import errno
import functools
import glob
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import sys
import tempfile
import traceback
import warnings

import numpy as np

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

IGNORE_INDEX = -100  # the label of a position that is not predicted
POSITIONS_MULTIPLE = 128  # the number of masked positions in a batch is rounded up to one
SPACE = "Ġ"  # what a token that begins with a space begins with in the vocabulary of a byte-level BPE
EVALUATION_EPOCH = 2**32 - 1  # the masks of the evaluation: an epoch number that no training reaches
CHECKSUMS = "SHA256SUMS"
NEEDED = ("config.json", "model.safetensors", "training_state/optimizer.safetensors", "training_state/state.json")
TRANSFORMERS_NAMES = (  # parts of PaddleNLP's names of RoBERTa's weights, and transformers'; longer ones first
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
STORED_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # safetensors' names, numpy's types
PARTIAL, ASIDE, LOCK = ".being_written", ".being_replaced", ".lock"  # suffixes of what stands beside a directory
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WRITE_ERRORS = {*FULL_DISK, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
WRITE_ERRORS |= {errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENOENT, errno.EBUSY, errno.EXDEV}  # no such place


# ---------------------------------------------------------------- masking


class DataCollatorMLM:
    """Masks rows for masked language modelling, afresh in each epoch (RoBERTa, section 4.1; BERT, section 3.1).

    Each position that is not special is chosen with `mlm_probability`; of the chosen, 80 % become <mask>, 10 % a
    token drawn evenly from the vocabulary without the special tokens, 10 % stay. The mask of a row is a function
    of (seed, epoch, row) alone, so it is the same in any batch, device and restart. On examples without "epoch"
    and "row", a row is keyed by a hash of its ids and by the attribute `epoch` (0 unless set).

    Args:
        tokenizer: anything with `mask_token_id`, `pad_token_id`, `vocab_size` and `all_special_ids`; for whole words
            also `convert_ids_to_tokens`, of a byte-level BPE.
        mlm_probability: share of the positions to predict, 0 < p <= 1.
        seed: a non-negative int; another one gives other masks.
        whole_words: choose words, each with `mlm_probability`, rather than tokens: a word is a token that begins with
            a space, or follows a special token, and all up to the next such one.

    Call it on a list of mappings with "input_ids" [length] and, if present, "special_tokens_mask" [length] (else
    derived from the tokenizer). Returns a dict of int64 arrays: "input_ids" [batch, longest], padded with the pad
    id; "labels" [batch, longest], -100 where not chosen; "masked_positions" [n], the flat indices of the chosen, and
    of a position that is not, repeated until n is a multiple of 128 (a GPU's allocator likes sizes that come again).
    """

    def __init__(self, tokenizer, mlm_probability: float = 0.15, seed: int = 0, whole_words: bool = False):
        if not 0 < mlm_probability <= 1:
            raise ValueError(f"mlm_probability is {mlm_probability}, not in (0, 1]")
        if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer lacks a mask token or a pad token, which masking and padding need")
        self.mlm_probability, self.seed, self.epoch = mlm_probability, seed, 0
        self.mask_token_id, self.pad_token_id = tokenizer.mask_token_id, tokenizer.pad_token_id
        self.special_ids = np.unique(np.asarray(tokenizer.all_special_ids))
        self.regular_ids = np.setdiff1d(np.arange(tokenizer.vocab_size), self.special_ids)
        self.begins_word = np.ones(tokenizer.vocab_size, dtype=bool)  # each token is a word of its own
        if whole_words:
            tokens = tokenizer.convert_ids_to_tokens(list(range(tokenizer.vocab_size)))
            self.begins_word = np.array([token.startswith(SPACE) for token in tokens])

    def __call__(self, examples: list) -> dict:
        rows = [np.asarray(example["input_ids"], dtype=np.int64) for example in examples]
        shape = len(rows), max(map(len, rows))
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        for i, (example, ids) in enumerate(zip(examples, rows)):
            special = example.get("special_tokens_mask")
            special = np.isin(ids, self.special_ids) if special is None else np.asarray(special, dtype=bool)
            chosen, masked_ids = self._mask(ids, special, self._generator(example, ids))
            input_ids[i, : len(ids)] = masked_ids
            labels[i, : len(ids)][chosen] = ids[chosen]
        positions, ignored = np.flatnonzero(labels != IGNORE_INDEX), np.flatnonzero(labels == IGNORE_INDEX)
        filler = ignored[:1].repeat(POSITIONS_MULTIPLE - len(positions) % POSITIONS_MULTIPLE)
        return {"input_ids": input_ids, "labels": labels, "masked_positions": np.append(positions, filler)}

    def _mask(self, ids: np.ndarray, special: np.ndarray, generator: np.random.Generator) -> tuple:
        """Returns which positions are chosen (bool [length]) and the ids with these replaced, as a copy."""
        begins = self.begins_word[ids] | special
        begins[1:] |= special[:-1]
        begins[:1] = True
        word = np.cumsum(begins) - 1  # of each position
        chosen = (generator.random(len(ids)) < self.mlm_probability)[word] & ~special
        draw = generator.random(len(ids))
        masked_ids = np.where(chosen & (draw < 0.8), self.mask_token_id, ids)
        randomized = np.flatnonzero(chosen & (draw >= 0.8) & (draw < 0.9))
        masked_ids[randomized] = self.regular_ids[generator.integers(len(self.regular_ids), size=len(randomized))]
        return chosen, masked_ids

    def _generator(self, example, ids: np.ndarray) -> np.random.Generator:
        """The random numbers of one row: a counter-based generator (Salmon et al., 2011) set to where they begin."""
        keyed_by_hash = "row" not in example
        if keyed_by_hash:
            row = int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little")
        else:
            row = example["row"]
        epoch = example.get("epoch", self.epoch)
        return np.random.Generator(np.random.Philox(key=self.seed, counter=[0, keyed_by_hash, row, epoch]))


# ---------------------------------------------------------------- rows and their order


class UpdateSampler:
    """The batch sampler of a training run: for each micro-batch of this rank, a list of (epoch, row) pairs.

    An epoch is a permutation of the rows drawn from (seed, epoch), cut into global batches (the last incomplete
    one is dropped); a global batch is cut into `accumulation` micro-steps, each into `world_size` micro-batches of
    `batch_size` rows. So the rows of an update depend on the global batch alone, not on how it is cut, and an
    iteration may start at any update (`first_update`) without reading what was passed. It ends before `updates`.
    """

    def __init__(self, num_rows, batch_size, accumulation=1, rank=0, world_size=1, seed=0, first_update=0, updates=0):
        self.num_rows, self.rank, self.seed = num_rows, rank, seed
        self.shape = accumulation, world_size, batch_size
        self.global_batch = math.prod(self.shape)
        self.updates_per_epoch = num_rows // self.global_batch
        self.first_update, self.updates = first_update, updates

    def __len__(self) -> int:
        return (self.updates - self.first_update) * self.shape[0]

    def __iter__(self):
        permuted_epoch = None
        for update in range(self.first_update, self.updates):
            epoch, position = divmod(update, self.updates_per_epoch)
            if epoch != permuted_epoch:
                permuted_epoch = epoch
                permutation = np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
            rows = permutation[position * self.global_batch : (position + 1) * self.global_batch]
            for micro_batch in rows.reshape(self.shape)[:, self.rank]:
                yield [(epoch, row) for row in micro_batch.tolist()]


class EvaluationSampler:
    """The batch sampler of an evaluation: this rank's share of the rows, each row once on exactly one rank.

    Of more than `max_rows` rows (0: no limit) so many are drawn, always the same.
    """

    def __init__(self, num_rows: int, batch_size: int, rank: int = 0, world_size: int = 1, max_rows: int = 0):
        self.rows = list(range(num_rows))
        if 0 < max_rows < num_rows:
            self.rows = sorted(np.random.default_rng(0).choice(num_rows, max_rows, replace=False).tolist())
        self.rows, self.batch_size = self.rows[rank::world_size], batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __iter__(self):
        for start in range(0, len(self.rows), self.batch_size):
            yield [(EVALUATION_EPOCH, row) for row in self.rows[start : start + self.batch_size]]


class TokenRows:
    """One split of one or more of create_data.py's outputs. `rows[epoch, i]` is row i as arrays, from the memory map.

    Items: {"input_ids": uint16 or int32 [length], "special_tokens_mask": bool [length], "epoch": int, "row": int}.
    """

    def __init__(self, *splits):
        self.parts = [[s.data.column(name) for name in ("input_ids", "special_tokens_mask")] for s in splits]
        self.ends = list(itertools.accumulate(len(input_ids) for input_ids, _ in self.parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, key: tuple) -> dict:
        epoch, row = key
        part = bisect.bisect_right(self.ends, row)
        input_ids, special = (column[row - self.ends[part]] for column in self.parts[part])  # counted from its end
        special = special.values.to_numpy(zero_copy_only=False)
        return {"input_ids": input_ids.values.to_numpy(), "special_tokens_mask": special, "epoch": epoch, "row": row}

    @functools.cached_property
    def lengths(self) -> tuple:
        """The lengths of the shortest and of the longest row, without reading the rows."""
        import pyarrow.compute

        lengths = [pyarrow.compute.min_max(pyarrow.compute.list_value_length(ids)).as_py() for ids, _ in self.parts]
        return min(part["min"] or 0 for part in lengths), max(part["max"] or 0 for part in lengths)

    @functools.cached_property
    def token_counts(self) -> np.ndarray:
        """How often each id occurs (int64 [largest id + 1])."""
        counts = np.zeros(0, dtype=np.int64)
        for chunk in itertools.chain.from_iterable(input_ids.chunks for input_ids, _ in self.parts):
            chunk_counts = np.bincount(chunk.flatten().to_numpy(), minlength=len(counts))
            chunk_counts[: len(counts)] += counts
            counts = chunk_counts
        return counts

    def has_regular_token(self) -> bool:
        """Whether any position is not special, and so can be predicted."""
        chunks = itertools.chain.from_iterable(special.chunks for _, special in self.parts)
        return any(chunk.flatten().false_count for chunk in chunks)


# ---------------------------------------------------------------- yardsticks


def token_shares(rows: TokenRows, tokenizer) -> np.ndarray:
    """How often each token occurs in the rows, special ones left out: shares (float64 [vocab_size - special ones])."""
    counts = np.pad(rows.token_counts, (0, tokenizer.vocab_size - len(rows.token_counts)))
    counts = np.delete(counts, tokenizer.all_special_ids)
    return counts / counts.sum()


def unigram_entropy(shares: np.ndarray) -> float:
    """The entropy (nats) of `token_shares`: no model that predicts by frequency alone can have a lower loss."""
    occurring = shares[shares > 0]
    return float(-np.sum(occurring * np.log(occurring)))


def loss_without_context(shares: np.ndarray) -> float:
    """The lowest loss (nats, expected) of a model that sees each place that DataCollatorMLM chose, and no other.

    80 % of them hold <mask> and tell nothing. The others show a token r, kept with weight shares[r] or drawn with
    weight 1 / len(shares), and the optimal model predicts with these odds. Below this loss, a model uses the context.
    """
    even, occurring = 1 / len(shares), shares[shares > 0]
    entropy = unigram_entropy(shares)
    of_right = np.sum(occurring * (1 + even) * np.log((occurring + even) / (occurring * (1 + even))))
    of_others = even * np.sum((1 - shares) * np.log((shares + even) / even)) + (1 - even) * entropy
    return float(0.8 * entropy + 0.1 * (of_right + of_others))


# ---------------------------------------------------------------- to and from transformers


def to_transformers(weights: dict) -> dict:
    """PaddleNLP's weights of a RobertaForMaskedLM (arrays by name) under transformers' names and in its layout."""
    return _converted(weights, TRANSFORMERS_NAMES)


def from_transformers(weights: dict) -> dict:
    """The inverse of to_transformers(); adds what transformers leaves out of its files, as it is tied."""
    converted = _converted(weights, [(theirs, ours) for ours, theirs in TRANSFORMERS_NAMES])
    for tied, source in (
        ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ("lm_head.decoder.bias", "lm_head.bias"),
    ):
        if source in converted:
            converted.setdefault(tied, converted[source])
    return converted


def _converted(weights: dict, parts_of_names) -> dict:
    """Matrices of linear layers are [in, out] in Paddle and [out, in] in transformers; embeddings are alike."""
    converted = {}
    for name, array in weights.items():
        for old, new in parts_of_names:
            name = name.replace(old, new)
        is_linear = array.ndim == 2 and "embeddings" not in name and name != "lm_head.decoder.weight"
        converted[name] = np.ascontiguousarray(array.T) if is_linear else array
    return converted


def read_weights(folder: str) -> dict | None:
    """The float32 arrays by PaddleNLP's names in a model directory of PaddleNLP's or transformers' layout.

    Reads model.safetensors or its shards, also in half precision (numpy has no bfloat16); None where there are none.
    """
    import safetensors

    names = ["model.safetensors"]
    if os.path.exists(index := os.path.join(folder, "model.safetensors.index.json")):
        with open(index, encoding="utf-8") as file:
            names = sorted(set(json.load(file)["weight_map"].values()))
    elif not os.path.exists(os.path.join(folder, names[0])):
        return None
    weights = {}
    for name in names:
        with open(os.path.join(folder, name), "rb") as file:
            for key, tensor in safetensors.deserialize(file.read()):
                array = np.frombuffer(tensor["data"], STORED_DTYPES.get(tensor["dtype"], "<f4"))
                if tensor["dtype"] == "BF16":  # the upper half of a float32
                    array = (array.astype(np.uint32) << 16).view(np.float32)
                weights[key] = array.astype(np.float32).reshape(tensor["shape"])
    is_of_transformers = any(".encoder.layer." in key for key in weights)
    return from_transformers(weights) if is_of_transformers else weights


def vocabulary_of(folder: str) -> dict | None:
    """The ids by token of the tokenizer in a directory, or None where there is none."""
    for name, tokens_of in (("vocab.json", dict), ("tokenizer.json", all_tokens)):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            with explaining(f"cannot read {path}"), open(path, encoding="utf-8") as file:
                return tokens_of(json.load(file))
    return None


def export_checkpoint(checkpoint: str, output_dir: str) -> None:
    """Writes a checkpoint's model and tokenizer as transformers' from_pretrained() reads them."""
    import safetensors.numpy

    damage = damage_of(checkpoint)
    require(damage is None, f"--checkpoint {checkpoint}: {damage}")
    require(not os.path.exists(output_dir), f"--output_dir {output_dir} exists: choose another")
    with open(os.path.join(checkpoint, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    weights = to_transformers(read_weights(checkpoint))
    if config.get("tie_word_embeddings", True):  # the embeddings and lm_head.bias are the decoder
        del weights["lm_head.decoder.weight"], weights["lm_head.decoder.bias"]
    with atomic_directory(output_dir) as folder:
        for entry in os.scandir(checkpoint):  # the tokenizer
            if entry.is_file() and entry.name not in (CHECKSUMS, "config.json", "model.safetensors"):
                shutil.copy(entry.path, folder)
        safetensors.numpy.save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
            of_paddlenlp = ("paddlenlp_version", "dtype", "torch_dtype")
            config = {key: value for key, value in config.items() if key not in of_paddlenlp}
            json.dump({**config, "architectures": ["RobertaForMaskedLM"], "model_type": "roberta"}, file, indent=2)


def main(argv: list | None = None) -> None:
    parser = ArgumentParser("Turns a checkpoint into a model directory of Hugging Face transformers.")
    parser.add_argument("--checkpoint", required=True, help="a directory paddle_STEP that run_pretrain.py wrote")
    parser.add_argument("--output_dir", required=True, help="directory to write")
    args = parser.parse_args(argv)
    export_checkpoint(args.checkpoint, args.output_dir)
    print(f"written: {args.output_dir}")


def all_tokens(definition: dict) -> dict:
    """The ids by token, added ones included, that the content of a tokenizer.json defines."""
    return {**definition["model"]["vocab"], **{added["content"]: added["id"] for added in definition["added_tokens"]}}


# ---------------------------------------------------------------- directories that appear whole


def _fsync(path: str) -> None:
    if os.name == "nt" and os.path.isdir(path):  # Windows flushes no directories
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: str, message: str):
    """Holds a lock on the file `path`, which is made and removed; raises UserError(message) where a process has it.

    The kernel frees the lock when its process ends, however that ends. Where there is no flock (Windows, some network
    file systems), nothing is locked.
    """
    while True:
        file = open(path, "a+")  # noqa: SIM115 (it stays open for as long as it is locked)
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{message} (process {file.read() or 'unknown'})") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
        # Between our opening the file and locking it, the one who had it may have removed it: then we hold nothing.
        if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(file.fileno())):
            break
        file.close()
    with file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            if fcntl:  # Windows removes no open file
                os.remove(path)


def recover_directory(path: str) -> None:
    """Clears what a killed run left beside `path`, and puts `path` back if it was killed while replacing it.

    `path` may be the name of such a leftover, too. What a running process is writing is not touched: UserError.
    """
    path = re.sub(rf"({PARTIAL}[.0-9]*|{ASIDE}|{LOCK})$", "", os.path.realpath(path))
    if _leftovers(path) or os.path.exists(path + LOCK):
        with locked(path + LOCK, f"another process is writing {path}"):
            _clear_leftovers(path)


def _leftovers(path: str) -> list:
    return [found for suffix in (PARTIAL, ASIDE) for found in glob.glob(glob.escape(path + suffix) + "*")]


def _clear_leftovers(path: str) -> None:
    if os.path.isdir(path + ASIDE) and not os.path.isdir(path):
        os.rename(path + ASIDE, path)
    for leftover in _leftovers(path):
        shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def atomic_directory(path: str):
    """Yields a new directory to fill; it takes the name `path` when the block ends without an error.

    Whatever kills the process, `path` is what it was before or complete: the files are flushed to disk under a name
    that no other process uses, an old `path` is moved aside, and recover_directory() undoes a kill between the two
    renames. Meanwhile `path` is locked: a second process that would write it gets a UserError.
    """
    path = os.path.realpath(path)
    if f"{os.getcwd()}{os.sep}".startswith(f"{path}{os.sep}"):  # also where the name is empty
        raise UserError(f"{path} is the working directory, or holds it: choose another --output_dir")
    partial = f"{path}{PARTIAL}.{os.getpid()}"
    try:
        if not os.path.exists(os.path.dirname(path)):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with locked(path + LOCK, f"another process is writing {path}: wait for it, or choose another --output_dir"):
            try:
                _clear_leftovers(path)
                os.mkdir(partial)
                yield partial
                for folder, _, files in os.walk(partial):
                    for name in files:
                        _fsync(os.path.join(folder, name))
                    _fsync(folder)
                if os.path.isdir(path):
                    os.rename(path, path + ASIDE)
                os.rename(partial, path)
                _fsync(os.path.dirname(path))
            finally:  # after an error, this puts the old one back
                _clear_leftovers(path)
    except Exception as error:
        if getattr(error, "errno", None) in WRITE_ERRORS or is_full_disk(error):
            raise UserError(f"cannot write {path} ({brief(error)}); what was there is unchanged") from error
        raise


# ---------------------------------------------------------------- checksums


def write_checksums(folder: str) -> None:
    """Writes SHA256SUMS, as `sha256sum --check` reads it, over every file below the folder."""
    with open(os.path.join(folder, CHECKSUMS), "w") as file:
        file.write("".join(f"{line}\n" for line in sorted(_checksums(folder))))


def damage_of(folder: str) -> str | None:
    """Says what is wrong with a checkpoint that write_checksums() sealed, or None."""
    try:
        with open(os.path.join(folder, CHECKSUMS)) as file:
            expected = set(file.read().splitlines())
    except (OSError, ValueError):
        return f"{CHECKSUMS} is missing or unreadable"
    try:
        found = _checksums(folder)
    except OSError as error:
        return f"it cannot be read ({brief(error)})"
    listed = {line.partition("  ")[2] for line in expected}
    for name in NEEDED:
        if name not in listed:
            return f"{CHECKSUMS} is cut off: it lacks {name}"
    for line in sorted(expected - found):
        name = line.partition("  ")[2]
        return f"{name} is {'damaged' if os.path.exists(os.path.join(folder, name)) else 'missing'}"
    return None


def _checksums(folder: str) -> set:
    """The lines of SHA256SUMS."""
    lines = set()
    for parent, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(parent, name)
            if name != CHECKSUMS:
                lines.add(f"{sha256_of(path)}  {os.path.relpath(path, folder).replace(os.sep, '/')}")
    return lines


def sha256_of(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def rows_digests(folder: str, check: bool) -> dict:
    """ "SIZE bytes, SHA-256" of each Arrow file of a data set, by its name; as data_card.json has it, or with `check`
    (and where the card lacks it) as the file is now."""
    card, path = {}, os.path.join(folder, "data_card.json")
    if os.path.exists(path) and not check:
        with (
            explaining(f"{path} is damaged: prepare the data anew, or remove it"),
            open(path, encoding="utf-8") as file,
        ):
            card = dict(json.load(file).get("files", {}))
    digests = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*", "*.arrow"))):
        name = os.path.relpath(path, folder).replace(os.sep, "/")
        digest = card[name]["sha256"] if name in card else sha256_of(path)
        digests[name] = f"{os.path.getsize(path)} bytes, {digest}"
    return digests


# ---------------------------------------------------------------- errors and arguments


class UserError(Exception):
    """A mistake of the user's, or of their machine's: one line that names the thing and the remedy."""


def require(condition, message: str) -> None:
    if not condition:
        raise UserError(message)


@contextlib.contextmanager
def explaining(what: str):
    """Turns any error of the block into a UserError that begins with `what`; for loaders that raise all kinds."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} ({brief(error)})") from error


def brief(error: BaseException) -> str:
    """The first line of an error's text, at most 300 characters of it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


class ArgumentParser(argparse.ArgumentParser):
    """argparse with the defaults shown in the help, no abbreviations, and errors of one line.

    `gone` says for each flag of the past what to do instead.
    """

    def __init__(self, description: str, gone: dict | None = None):
        super().__init__(
            description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
        )
        self.gone = gone or {}

    def error(self, message: str):
        for flag, instead in self.gone.items():
            require(flag not in message.split(), f"{flag} is gone: {instead}")
        raise UserError(f"{message} (--help lists the arguments)")


def boolean(text: str) -> bool:
    """The argparse type of a flag written as `--amp True`."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() == "true"


def number(kind: type, low: float = -math.inf, high: float = math.inf, above: float = -math.inf):
    """An argparse type: a finite `kind` (int or float) with low <= value <= high and value > above."""

    def parse(text: str):
        value = kind(text)
        for holds, limit in (
            (math.isfinite(value), "finite"),
            (value >= low, f"at least {low}"),
            (value <= high, f"at most {high}"),
            (value > above, f"above {above}"),
        ):
            if not holds:
                raise argparse.ArgumentTypeError(f"{text} is not {limit}")
        return value

    parse.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return parse


def command_line(main) -> int:
    """Runs main(); returns the exit status: 2 and one line for a user's error, 1 and the traceback for a bug."""
    try:
        return main() or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, UserError) or is_full_disk(error):
            print(f"error: {error}", file=sys.stderr)
            return 2
        traceback.print_exc()
        return 1


def is_full_disk(error: BaseException) -> bool:
    """By its text, as safetensors' and shutil's own errors carry no errno."""
    return any(os.strerror(code) in str(error) for code in FULL_DISK)


# ---------------------------------------------------------------- settings before Paddle is imported


def prepare_for_paddle() -> None:
    """Settings that must precede `import paddle`; what the user has set stays.

    On two cores of an AMD EPYC, roberta-en-tiny on 16 x 128 tokens went from 2.4 to 4.4 updates a second with them.

    - Paddle computes with one thread unless told otherwise: one per core (shared by the ranks of this machine).
    - Paddle's MKL takes a slow path on AMD processors unless told the type of the processor.
    - glibc returns large tensors to the system, and fetches them anew, at each step unless told to keep them; above
      16 MB it still does, for kept blocks of all sizes take twice the memory that is in use, and save little time.
    - Paddle and PaddleNLP create directories in the home directory: where it cannot be written, in a temporary one.
    - This module's imports include zlib, without which Paddle 2.6.2 crashes at its first use by another library.
    """
    ranks = int(os.environ.get("PADDLE_LOCAL_SIZE", "1"))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, physical_cores() // ranks)))
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        if "AuthenticAMD" in file.read():
            os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        with contextlib.suppress(OSError, AttributeError):  # a C library that is not glibc
            libc = ctypes.CDLL(None)
            libc.mallopt(-3, 2**24)  # M_MMAP_THRESHOLD, in bytes
            libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap
    try:
        os.makedirs(os.path.expanduser("~/.cache"), exist_ok=True)
    except OSError:
        os.environ["HOME"] = tempfile.mkdtemp()
    warnings.filterwarnings("ignore", module="paddle|_distutils_hack")


def peak_memory() -> float:
    """The process's largest resident memory so far, in MB; nan on Windows, which does not tell."""
    if os.name == "nt":
        return math.nan
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def physical_cores() -> int:
    """The cores this process may use, hyper-threads of one core counted once where the system tells."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as file:
                siblings.add(file.read())
        except OSError:
            siblings.add(cpu)
    return len(siblings)


if __name__ == "__main__":
    sys.exit(command_line(main))
