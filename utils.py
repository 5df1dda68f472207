"""What the two other scripts share: masking, the order of rows, export, whole files.

Nothing here imports Paddle, so DataCollatorMLM works in anyone's loop:

    collator = DataCollatorMLM(tokenizer, mlm_probability=0.15, seed=42)
    batch = collator([{"input_ids": [0, 31414, 232, 328, 2]}, ...])

As a script, it turns a checkpoint into a model directory of Hugging Face transformers:

    python utils.py --checkpoint ckp/paddle_10000 --output_dir ckp_transformers
"""

import argparse
import contextlib
import ctypes
import errno
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import filelock
import numpy as np
import pyarrow.compute
import safetensors.numpy
from tqdm import tqdm

IGNORE_INDEX = -100  # the label of a position that is not predicted
MASKED, RANDOMIZED = 0.8, 0.1  # of the chosen positions; the others stay
EVALUATION_EPOCH = 2**32 - 1  # no training reaches it
CHECKSUMS = "SHA256SUMS"
TRANSFORMERS_NAMES = (  # parts of names, PaddleNLP's and transformers'; longer ones first
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
TIED = {  # weights that transformers leaves out, and what they are
    "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}


class DataCollatorMLM:
    """Masks rows of tokens, afresh in each epoch (RoBERTa, section 4.1).

    Each position that is not special is chosen with `mlm_probability`; of the chosen, 80 % become
    <mask>, 10 % any token that is not special, 10 % stay (BERT, section 3.1). `whole_words` chooses
    words: what begins with a space (in a BPE like RoBERTa's) or behind a special token.

    A row's mask depends on (seed, epoch, row) alone, not on the batch, the device or a restart. A
    row without these is known by a hash of its ids and the attribute `epoch`. ValueError: where
    mlm_probability is not in (0, 1], or the tokenizer has no mask or padding.

    Takes [{"input_ids": [length]}, ...], if need be with "special_tokens_mask". Returns in int64:
        input_ids: [batch, longest], masked and padded
        labels: [batch, longest], -100 where a position was not chosen
        masked_positions: [n], flat indices of the chosen ones, filled up with one that is not
    """

    def __init__(self, tokenizer, mlm_probability=0.15, seed=0, whole_words=False):
        if not 0 < mlm_probability <= 1:
            raise ValueError(f"mlm_probability is {mlm_probability}, not in (0, 1]")
        if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer lacks a mask token or a pad token")
        self.mlm_probability, self.seed, self.epoch = mlm_probability, seed, 0
        self.mask_token_id, self.pad_token_id = tokenizer.mask_token_id, tokenizer.pad_token_id
        self.special_ids = np.array(tokenizer.all_special_ids)
        self.regular_ids = np.setdiff1d(np.arange(tokenizer.vocab_size), self.special_ids)
        self.begins_word = np.ones(tokenizer.vocab_size, dtype=bool)  # each token is a word
        if whole_words:
            tokens = tokenizer.convert_ids_to_tokens(list(range(tokenizer.vocab_size)))
            self.begins_word = np.array([token.startswith("Ġ") for token in tokens])  # a space

    def __call__(self, examples: list) -> dict:
        rows = [self._mask(example) for example in examples]
        shape = len(rows), max(len(ids) for ids, _ in rows)
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        for i, (ids, targets) in enumerate(rows):
            input_ids[i, : len(ids)] = ids
            labels[i, : len(ids)] = targets
        positions = np.flatnonzero(labels != IGNORE_INDEX)
        ignored = np.flatnonzero(labels == IGNORE_INDEX)
        filler = ignored[:1].repeat(128 - len(positions) % 128)  # few sizes: for GPUs
        return {"input_ids": input_ids, "labels": labels, "masked_positions": np.append(positions, filler)}

    def _mask(self, example: dict) -> tuple:
        """Returns a row's masked ids and its labels (int64 [length])."""
        ids = np.asarray(example["input_ids"], dtype=np.int64)
        special = example.get("special_tokens_mask")
        special = np.isin(ids, self.special_ids) if special is None else np.asarray(special, dtype=bool)

        # The row's own random numbers, from a counter (Salmon et al., 2011)
        row, is_hash = example.get("row"), "row" not in example
        if is_hash:
            row = int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little")
        counter = [0, is_hash, row, example.get("epoch", self.epoch)]
        generator = np.random.Generator(np.random.Philox(key=self.seed, counter=counter))

        # Which positions are to be predicted? One draw for each word
        word = np.cumsum(self.begins_word[ids] | special) - 1  # of each position
        chosen = (generator.random(len(ids)) < self.mlm_probability)[word] & ~special

        # What does the model see there? 80 % the mask, 10 % any token, 10 % the right one
        draw = generator.random(len(ids))
        masked_ids = np.where(chosen & (draw < MASKED), self.mask_token_id, ids)
        randomized = chosen & (draw >= MASKED) & (draw < MASKED + RANDOMIZED)
        masked_ids[randomized] = generator.choice(self.regular_ids, randomized.sum())
        return masked_ids, np.where(chosen, ids, IGNORE_INDEX)


# ---------------------------------------------------------------- rows and their order


class UpdateSampler:
    """The rows of a training run: for each micro-batch of this rank, a list of (epoch, row).

    An epoch is a permutation of the rows, drawn from (seed, epoch) and cut into global batches (an
    incomplete last one is dropped), these into micro-steps, and these into ranks. So an update's
    rows depend on its number and the global batch alone.
    """

    def __init__(self, num_rows, batch_size, accumulation=1, rank=0, world_size=1, seed=0, first_update=0, updates=0):
        self.num_rows, self.rank, self.seed = num_rows, rank, seed
        self.shape = accumulation, world_size, batch_size
        self.global_batch = math.prod(self.shape)
        self.updates_per_epoch = num_rows // self.global_batch
        self.first_update, self.updates = first_update, updates

    def __iter__(self):
        for update in range(self.first_update, self.updates):
            epoch, position = divmod(update, self.updates_per_epoch)
            if position == 0 or update == self.first_update:
                permutation = np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
            rows = permutation[position * self.global_batch : (position + 1) * self.global_batch]
            for micro_batch in rows.reshape(self.shape)[:, self.rank]:
                yield [(epoch, row) for row in micro_batch.tolist()]


def evaluation_batches(num_rows, batch_size, rank=0, world_size=1, max_rows=0) -> list:
    """The same for an evaluation: this rank's share of all rows, or of `max_rows` drawn ones."""
    rows = np.arange(num_rows)
    if 0 < max_rows < num_rows:
        rows = np.sort(np.random.default_rng(0).choice(num_rows, max_rows, replace=False))
    keys = [(EVALUATION_EPOCH, row) for row in rows[rank::world_size].tolist()]
    return [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]


class TokenRows:
    """A split of one or more data sets; `rows[epoch, i]` is row i as DataCollatorMLM takes it."""

    def __init__(self, *splits):
        tables = [split.data.table.select(["input_ids", "special_tokens_mask"]) for split in splits]
        # "permissive" joins lists of one length, as packed rows are stored, with others.
        rows = pyarrow.concat_tables(tables, promote_options="permissive")
        self.input_ids, self.special_tokens_mask = rows.columns
        ends = pyarrow.compute.min_max(pyarrow.compute.list_value_length(self.input_ids)).as_py()
        self.lengths = ends["min"] or 0, ends["max"] or 0  # of the shortest and longest row

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, key: tuple) -> dict:
        epoch, row = key
        ids = self.input_ids[row].values.to_numpy()
        special = self.special_tokens_mask[row].values.to_numpy(zero_copy_only=False)
        return {"input_ids": ids, "special_tokens_mask": special, "epoch": epoch, "row": row}


def yardsticks(rows: TokenRows, tokenizer) -> tuple:
    """The lowest losses (nats) of models that see the place they predict alone, and nothing.

    The second is the entropy of the tokens. So is the first where the mask is shown; where a token
    is, it is the entropy of (shown, right) less that of (shown).
    """
    from scipy.special import entr  # -x log x

    found = pyarrow.compute.value_counts(pyarrow.compute.list_flatten(rows.input_ids))
    counts = np.bincount(found.field("values"), found.field("counts"), minlength=tokenizer.vocab_size)
    fits = len(counts) == tokenizer.vocab_size
    require(fits, "--input_file: ids beyond the tokenizer's vocabulary: prepare it anew")
    counts = np.delete(counts, tokenizer.all_special_ids)
    shares = counts / counts.sum()
    entropy = entr(shares).sum()
    kept, drawn = 1 - MASKED - RANDOMIZED, RANDOMIZED / len(shares)  # shares of what is shown
    equal, unequal = entr((kept + drawn) * shares).sum(), entr(drawn * shares).sum()
    shown = entr(kept * shares + drawn).sum()
    without_context = MASKED * entropy + equal + (len(shares) - 1) * unequal - shown
    return float(without_context), float(entropy)


# ---------------------------------------------------------------- to and from transformers


def main(argv: list | None = None) -> None:
    """Writes a checkpoint as transformers' from_pretrained() reads it."""
    parser = ArgumentParser("Turns a checkpoint into a model directory of transformers.")
    parser.add_argument("--checkpoint", required=True, help="a directory paddle_STEP")
    parser.add_argument("--output_dir", required=True, help="directory to write")
    args = parser.parse_args(argv)
    check_checksums(args.checkpoint)
    require(not os.path.exists(args.output_dir), f"--output_dir {args.output_dir} exists: choose another")
    config = json.loads(Path(args.checkpoint, "config.json").read_bytes())
    weights = to_transformers(read_weights(args.checkpoint))
    if config.get("tie_word_embeddings", True):
        weights = {name: array for name, array in weights.items() if name not in TIED}
    left_out = shutil.ignore_patterns("training_state", CHECKSUMS)
    with atomic_directory(args.output_dir) as folder:
        shutil.copytree(args.checkpoint, folder, dirs_exist_ok=True, ignore=left_out)
        safetensors.numpy.save_file(weights, f"{folder}/model.safetensors", {"format": "pt"})
    say(f"written: {args.output_dir}")


def to_transformers(weights: dict, names=TRANSFORMERS_NAMES) -> dict:
    """PaddleNLP's arrays of a RobertaForMaskedLM as transformers'; with `names` swapped, back."""
    converted = {}
    for name, array in weights.items():
        for old, new in names:
            name = name.replace(old, new)
        # Linear layers are [in, out] in Paddle, [out, in] in transformers.
        is_linear = array.ndim == 2 and "embeddings" not in name and name != "lm_head.decoder.weight"
        converted[name] = np.ascontiguousarray(array.T) if is_linear else array
    return converted


def read_weights(folder: str) -> dict:
    """The arrays in a directory of either, as PaddleNLP's in float32."""
    weights = safetensors.numpy.load_file(Path(folder, "model.safetensors"))
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    if any(".encoder.layer." in name for name in weights):  # transformers'
        weights = to_transformers(weights, [(new, old) for old, new in TRANSFORMERS_NAMES])
        tied = {name: weights[source] for name, source in TIED.items() if source in weights}
        weights = tied | weights
    return weights


# ---------------------------------------------------------------- whole directories


@contextlib.contextmanager
def atomic_directory(path: str):
    """Yields a new directory to fill; it becomes `path` when the block ends without an error.

    Whatever kills the process, `path` is as it was, or complete and flushed to disk: an old one waits
    beside until the new one has its name. What a kill leaves, the next call puts right.
    """
    path = os.path.realpath(path)
    beside, new, old = (f"{path}.being_written{name}" for name in ("", "/new", "/old"))
    holds_us = Path.cwd().is_relative_to(path)
    require(not holds_us, f"{path} holds the working directory: choose another --output_dir")

    def recover() -> None:
        if os.path.isdir(old) and not os.path.isdir(path):
            os.rename(old, path)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)

    with lock(beside):
        recover()
        try:
            os.mkdir(new)
            yield new
            for file in [*Path(new).rglob("*"), Path(new)]:
                if file.is_file():
                    file.chmod(os.stat(new).st_mode & 0o666)  # safetensors' is 0o600
                fsync(file)
            if os.path.isdir(path):
                os.rename(path, old)
            os.rename(new, path)
            fsync(os.path.dirname(path))
        finally:
            recover()
            shutil.rmtree(beside, ignore_errors=True)  # with the lock, last


def fsync(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def lock(folder: str):
    """Locks a directory, which it creates, for `with` or until the process ends."""
    try:
        return filelock.FileLock(f"{folder}/.lock", timeout=0).acquire()
    except (filelock.Timeout, FileNotFoundError, FileExistsError):  # the holder removes it
        raise UserError(f"another process is using {folder}: wait, or choose another") from None
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP):  # a file system without locks
            return contextlib.nullcontext()
        raise


def write_checksums(folder: str) -> None:
    """Writes SHA256SUMS of all files below, for `sha256sum --check`, too."""
    sums = Path(folder, CHECKSUMS)
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path != sums]
    sums.write_text("".join(f"{sha256_of(path)}  {path.relative_to(folder)}\n" for path in sorted(files)))


def check_checksums(folder: str) -> None:
    """Raises UserError where a checkpoint is not as write_checksums() sealed it."""
    with explaining(f"{folder}: no checkpoint, or damaged"):
        lines = Path(folder, CHECKSUMS).read_text().splitlines()
        require(lines, f"{folder}: {CHECKSUMS} is empty")
        for digest, name in (line.split("  ", 1) for line in lines):
            require(sha256_of(Path(folder, name)) == digest, f"{folder}: {name} is damaged")


def sha256_of(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- errors, arguments, settings


class UserError(Exception):
    """A mistake of the user's, in one line: the thing and the remedy."""


def require(condition, message: str) -> None:
    if not condition:
        raise UserError(message)


@contextlib.contextmanager
def explaining(what: str):
    """Turns an error in the block into a UserError: what, and why."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise UserError(f"{what} ({reason})") from error


class ArgumentParser(argparse.ArgumentParser):
    """argparse with defaults in the help, no abbreviations, and errors of one line."""

    def __init__(self, description: str):
        super().__init__(description=description, allow_abbrev=False)
        self.formatter_class = argparse.ArgumentDefaultsHelpFormatter

    def error(self, message: str):
        raise UserError(f"{message} (--help lists the arguments)")


def boolean(text: str) -> bool:
    """The argparse type of a flag written as `--amp True`."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() == "true"


def number(kind: type, low: float = -math.inf, high: float = math.inf):
    """An argparse type: a finite `kind` (int or float), low <= value <= high."""

    def parse(text: str):
        value = kind(text)
        if not (low <= value <= high and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text} is not in the range from {low} to {high}")
        return value

    parse.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return parse


def command_line(main) -> None:
    """Runs main() and exits: 2 and a line for a user's error, 1 and a traceback for a bug."""
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # any text, at once
    try:
        status = int(main() or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except Exception as error:
        # OSError: as on a full disk. Rust's libraries have types of their own.
        is_users = isinstance(error, UserError | OSError) or "(os error " in str(error)
        print(f"error: {error}" if is_users else traceback.format_exc().rstrip(), file=sys.stderr)
        status = 2 if is_users else 1
    # At once: threads may wait for a slow network, and Paddle 3.3.1 aborted 5 of 76 finished runs.
    os._exit(status)


def say(line: str) -> None:
    """Prints a line on the first rank, above any progress bar; a closed pipe ends no run."""
    if os.environ.get("PADDLE_TRAINER_ID", "0") == "0":
        with contextlib.suppress(OSError):
            tqdm.write(line)


def prepare_for_paddle() -> None:
    """Settings that must precede `import paddle`."""
    import joblib  # brings zlib along, which Paddle 2.6.2 must not be the first to use

    # One thread per core, shared by this machine's ranks; Paddle's default is one.
    cores = joblib.cpu_count(only_physical_cores=True) // int(os.environ.get("PADDLE_LOCAL_SIZE", 1))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores)))
    # glibc returns large tensors to the system at each step, and fetches them anew: now only those
    # above 32 MB. Keeping all would take twice the memory.
    if not os.access(os.path.expanduser("~"), os.W_OK | os.X_OK):  # Paddle and PaddleNLP create directories there
        os.environ["HOME"] = tempfile.mkdtemp()
    with contextlib.suppress(AttributeError):  # macOS has no mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, in bytes
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap
    warnings.filterwarnings("ignore", module="paddle|_distutils_hack")


if __name__ == "__main__":
    command_line(main)
