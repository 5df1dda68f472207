"""Pretrain RoBERTa with masked language modelling on the rows that create_data.py wrote.

python run_pretrain.py --input_file demo_data --model_name_or_path roberta-en-tiny --max_steps 800
python -m paddle.distributed.launch --gpus "0,1" run_pretrain.py --input_file wiki --output_dir ckp
python run_pretrain.py --input_file demo_data --model_name_or_path ckp/paddle_800 --max_steps 0
"""

from __future__ import annotations

import argparse
import ctypes
import difflib
import faulthandler
import functools
import hashlib
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as it is behind a shell's &
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while Paddle is imported ends the process without a traceback

import utils
from utils import IGNORE_INDEX, DataCollatorMLM, TokenRows, UpdateSampler, UserError
from utils import checkpoints_in, explaining, log, number, onednn

if __name__ == "__main__":
    utils.open_standard_streams()  # closed ones, as by `2>&-`, which faulthandler and what Paddle imports need
    # Signals get a stack of their own: handled on that of a running kernel, SIGTERM crashed 7 of 72 processes.
    faulthandler.enable()
utils.prepare_for_paddle()  # threads and memory, which are read when Paddle is imported

import huggingface_hub
import numpy as np

with redirect_stderr(io.StringIO()):  # Paddle warns of more than one thread, which are wanted here
    import paddle
import paddle.distributed as dist
import paddle.nn.functional as F
import psutil  # which VisualDL brings along
from paddle import nn

if __name__ == "__main__":
    utils.import_paddlenlp()  # a second sooner; leave it out to use other parts of PaddleNLP, as its trainer
from paddlenlp import transformers
from paddlenlp.transformers.roberta.modeling import RobertaLMHead, TransposedLinear
from paddlenlp.utils.log import logger as paddlenlp_logger
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tqdm import tqdm
from visualdl import LogWriter

ARCHITECTURES = {  # layers, width, attention heads: of RoBERTa (section 5) and BERT's small models
    "roberta-en-tiny": (2, 128, 2),
    "roberta-en-mini": (4, 256, 4),
    "roberta-en-small": (4, 512, 8),
    "roberta-en-base": (12, 768, 12),
    "roberta-en-large": (24, 1024, 16),
}
SUPPORTED_SETTINGS = {  # of config.json, where it changes what is computed; other settings are read, or change nothing
    "model_type": "roberta",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "quantization_config": None,
}
NOT_COMPUTED = ("transformers_version", "_name_or_path", "use_cache", "dtype")  # settings that change no result
PLATEAU_UPDATES = 2000  # after which a model that does not use the context yet gets a word of advice
EPOCHS = 3  # where neither --num_train_epochs nor --max_steps is given
TAKES_LESS_MEMORY = (
    "halve --batch_size and double --gradient_accumulation_steps: the updates stay the same but for dropout, and you "
    "may do it on resuming; on a GPU, --recompute True takes less, too"
)
WORDS_UNKNOWN = "--whole_word_masking True cannot tell the words of this text: do as follows, or leave it out"


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, where no flag of the same name says otherwise."""

    optimizer: str  # "adamw", or "muon" for the layers' matrices: see Muon
    learning_rate: float  # the peak
    weight_decay: float  # decoupled, of matrices and embeddings
    mlm_probability: float  # share of the tokens that training predicts at its beginning
    final_mlm_probability: float  # and at its end; in between, the share follows a line
    dropout: float | None  # None: the model's, which is 0.1 from scratch
    initialization: str  # "normal": RoBERTa's; "sinusoids": see initialize_with_sinusoids()
    stages: tuple[tuple, ...]  # the length of pieces and until when they last: see end_of_stage()


RECIPES = {
    # RoBERTa's own settings (section 5 and its configuration), and the original page's rate.
    "roberta": Recipe(
        optimizer="adamw",
        learning_rate=1e-4,
        weight_decay=0.01,
        mlm_probability=0.15,
        final_mlm_probability=0.15,
        dropout=None,
        initialization="normal",
        stages=(),
    ),
    # Small models stay for thousands of updates where they do not use the context. These begin with pieces of rows so
    # short that attention has few places to choose from: tests/benchmarks/README.md tells what was tried, and why.
    "growing_rows": Recipe(
        optimizer="adamw",
        learning_rate=5e-4,
        weight_decay=0.1,
        mlm_probability=0.4,
        final_mlm_probability=0.15,
        dropout=0.0,
        initialization="sinusoids",
        stages=((8, 0.2, 600), (32, 0.3, 900)),
    ),
}
# The architectures whose recipe is growing_rows: their peak rates by each optimizer, the default one first. Muon makes
# an update take longer. In short runs, as the smallest model's are, it is worth it: tests/benchmarks/README.md.
GROWING = {
    "roberta-en-tiny": {"muon": 8e-3, "adamw": 4e-3},
    "roberta-en-mini": {"adamw": 2e-3, "muon": 3e-3},
    "roberta-en-small": {"adamw": 1e-3, "muon": 1e-3},  # with Muon untested
}
# Of initialize_with_sinusoids(): in units of 1 / sqrt(width), so that the logits of the tied output layer begin with
# this standard deviation at every width (0.0245 for width 768, where RoBERTa has 0.02).
EMBEDDINGS_RMS = 0.68
LINEAR_DEVIATION = 0.5  # with 1, roberta-en-mini collapses (AdamW, rate 2e-3): its layers drown what goes past them
MUON_MOMENTUM = 0.95
MUON_TOGETHER = 8  # matrices at a time: more are no faster, and take more memory
# Of orthogonalize(): (a, b, c) of each iteration, with which the largest error over [0.003, 1] is the smallest. Found
# by linear programming, one iteration after the other, which is the best way (Amsel et al., 2025, arXiv 2505.16932);
# each for an interval whose upper end is higher by 2 %. Without that margin the polynomials, which are steep there,
# made 5 to 2,500 of singular values that bfloat16 had rounded up.
NEWTON_SCHULZ = (
    (8.2218, -23.347, 16.6339),
    (3.9728, -2.8449, 0.517),
    (3.4735, -2.5057, 0.481),
    (2.5044, -1.7907, 0.4071),
)
SINUSOIDS_BASE = 100  # with 10,000, the usual one, half of the waves are constant over 128 positions


# -------- the task
def main(argv: list | None = None):
    """Trains; with --max_steps 0, evaluates."""
    args = parse_arguments(argv)
    recipe = choose_recipe(args)
    machine = start_machine(args)
    data = load_data(args, recipe)
    config = build_config(args, data.tokenizer, data.seq_length, recipe.dropout)
    collator = build_collator(args, data, args.eval_mlm_probability)
    identity = run_identity(args, recipe, machine, data, config, collator)
    check_ranks_agree(args, machine, identity)
    check_memory(args, recipe, machine, data, config)
    check_validation(args, data, collator)
    validation = {name: validation_batches(rows, collator, args, machine) for name, rows in data.validation.items()}
    report = Report(args, data)
    if args.output_dir is not None:
        check_output_dir(args.output_dir)
    if args.max_steps == 0:
        log_what_is_evaluated(args, data)
        model = build_model(args, config, machine, data.is_padded)
        check_ranks_agree_on_weights(machine, model)
        warn_of_longer_rows(args.model_name_or_path, data)
        run = Run(args, machine, model, report)
        with run.stop.catching_signals(), watching_progress(machine):
            evaluations = evaluate_all(run, validation)
        if evaluations is None:
            raise UserError("stopped by a signal before the evaluation was complete: start it again")
        return

    sampler = UpdateSampler(
        len(data.train),
        args.batch_size,
        rank=machine.rank,
        world_size=machine.world_size,
        accumulation=args.gradient_accumulation_steps,
        seed=args.seed,
    )
    with watching_progress(machine), utils.lock(args.output_dir) if machine.rank == 0 else nullcontext():
        if machine.rank == 0:
            utils.put_right_checkpoints(args.output_dir)  # of runs that were killed while they saved
        wait_for_all_ranks()
        run = start_or_resume(args, recipe, machine, data, config, identity, sampler, report)
        with run.stop.catching_signals():
            training_masks = build_collator(args, data, recipe.mlm_probability)
            show_masking(training_masks, data)
            batches = training_batches(run, sampler, training_masks)
            evaluations = train(run, batches, validation)
            report.log_end(run, evaluations)


def train(run: Run, batches: Iterator[dict], validation: dict[str, Callable]) -> dict | None:
    """Runs the updates that are left; returns the last evaluations, see evaluate_all(), or None after a signal."""
    args, progress = run.args, run.progress
    run.model.train()
    # A resumed run first repeats the evaluation of its checkpoint, which a signal or a kill may have cut off: where one
    # was due, or is due now (--save_steps and the end of training may have changed).
    if progress.is_evaluated or is_due(run):
        evaluations = evaluate_all(run, validation)
        if evaluations is None:
            return None
    delete_old_checkpoints(run)

    while progress.global_step < run.total_steps:
        started = time.perf_counter()
        micro_batches = [next(batches) for _ in range(args.gradient_accumulation_steps)]
        length = piece_length_at(progress.global_step + 1, run)
        if length is not None:
            micro_batches = [utils.cut_rows(batch, length) for batch in micro_batches]
        data_seconds = time.perf_counter() - started

        run.optimizer.set_lr(learning_rate_at(progress.global_step + 1, run))
        result = train_update(run, micro_batches)

        progress.global_step += 1
        add_to_window(run, result, micro_batches, data_seconds, time.perf_counter() - started)
        run.report.log_update(run, result)
        if progress.skipped_in_a_row >= args.max_skipped_updates:
            raise UserError(
                f"{progress.skipped_in_a_row} updates in a row, up to step {progress.global_step}, were not finite: "
                "in a new run, lower --learning_rate, or --scale_loss if it is in float16"
            )
        if progress.global_step % args.logging_steps == 0:
            run.report.log_training(run, result)
            progress.window = {}

        progress.is_evaluated = is_due(run)
        if progress.is_evaluated or result["stop"]:
            save_checkpoint(run)
        if result["stop"]:
            return None
        if progress.is_evaluated:
            evaluations = evaluate_all(run, validation)
            if evaluations is None:
                return None
            delete_old_checkpoints(run)  # now that it is known which is the best
    return evaluations  # after the last update one is always due


def is_due(run: Run) -> bool:
    """Whether there is a checkpoint and an evaluation after this update: each --save_steps, and at the end."""
    step = run.progress.global_step
    return step > 0 and (step % run.args.save_steps == 0 or step == run.total_steps)


def train_update(run: Run, batches: list[dict]) -> dict:
    """One optimizer update; the loss is the mean over all masked tokens of all micro-batches and ranks.

    batches: this rank's micro-batches, as DataCollatorMLM makes them, of tensors on the device.
    Returns {"loss_sum", "num_masked", "grad_norm", "loss_scale", "stop", "skipped"}, equal on all
    ranks. The host waits for the device once (in float16, GradScaler.update() does once more).
    """
    args, machine, model, scaler = run.args, run.machine, run.parallel, run.scaler

    # How many tokens does this update predict, on all ranks together?
    counts = [(batch["labels"] != IGNORE_INDEX).sum() for batch in batches]
    num_masked = sum_over_ranks(sum(counts).astype("float32"))

    # The gradient of (sum of losses) / (number of tokens); DataParallel averages over the ranks, hence the factor.
    # Dividing before the backward pass keeps float16 in range. At least 1: a batch may have no token to predict.
    per_token = machine.world_size / paddle.clip(num_masked, min=1)
    loss_sum = paddle.zeros([])
    for micro_step, batch in enumerate(batches):
        expect_progress(machine)
        seed_dropout(args.seed, run.progress.global_step, micro_step, machine.rank)
        # Only the last micro-batch's backward pass exchanges gradients.
        is_last = micro_step == len(batches) - 1
        with nullcontext() if is_last or machine.world_size == 1 else model.no_sync():
            with auto_cast(machine):
                loss, _ = masked_loss(model, batch)
            scaler.scale(loss * per_token).backward()
        loss_sum += loss.detach()

    # Does any rank want to stop? Asked behind the passes (which a GPU has queued, and a CPU done), so that a signal
    # during them ends the run with this update.
    totals = paddle.stack([loss_sum, paddle.full([], float(run.stop.requested))])
    loss_sum, stops = sum_over_ranks(totals)

    # Are loss and gradient finite, and how long is the gradient? This reads from the device, once.
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    loss_scale = scale_of(scaler)
    grad_norm = global_norm(gradients) / loss_scale
    numbers = paddle.stack([loss_sum, num_masked, grad_norm, loss_scale, stops]).tolist()
    result = dict(zip(("loss_sum", "num_masked", "grad_norm", "loss_scale", "stop"), numbers))
    result["skipped"] = not math.isfinite(result["loss_sum"] + result["grad_norm"])

    clip_and_step(run, gradients, result)
    return result


def clip_and_step(run: Run, gradients: list, result: dict):
    """The optimizer's step with the gradient clipped to --max_grad_norm; none where result["skipped"]."""
    with paddle.no_grad():
        if result["skipped"]:
            tell_scaler_of_overflow(gradients)
        elif result["grad_norm"] > run.args.max_grad_norm > 0:
            for gradient in gradients:
                gradient.scale_(run.args.max_grad_norm / result["grad_norm"])
    # An enabled scaler finds the infinity, and tells the optimizer; a disabled one's step() would just call the latter,
    # so it is left out.
    if run.scaler.is_enable() or not result["skipped"]:
        run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.clear_grad(set_to_zero=False)


def masked_loss(model, batch: dict) -> tuple:
    """The masked tokens' sum of losses (nats, float32), and in evaluations how many of them are predicted right.

    batch: input_ids and labels, int64 [batch, seq], and masked_positions, int64 [n].
    """
    labels = paddle.gather(batch["labels"].flatten(), batch["masked_positions"])
    return model(batch["input_ids"], masked_positions=batch["masked_positions"], labels=labels)


@paddle.no_grad()
def evaluate(run: Run, make_batches: Callable) -> dict | None:
    """The mean loss (nats), perplexity and accuracy over all ranks' masked tokens; None after a signal."""
    run.model.eval()
    totals = paddle.zeros([4], dtype="float64")  # sum of losses, right predictions, masked tokens, ranks that stop
    for batch in tqdm(make_batches(), desc="evaluating", leave=False, disable=None):
        expect_progress(run.machine)
        if run.stop.requested:
            break
        with auto_cast(run.machine):
            loss, num_correct = masked_loss(run.model, batch)
        sums = loss, num_correct, (batch["labels"] != IGNORE_INDEX).sum()
        totals[:3] += paddle.stack([value.astype("float64") for value in sums])
    run.model.train()
    totals[3] = float(run.stop.requested)
    loss_sum, correct, num_masked, stops = sum_over_ranks(totals).tolist()
    if stops:
        return None
    assert num_masked > 0  # check_validation() has seen to it
    loss = loss_sum / num_masked
    if not math.isfinite(loss):
        raise UserError(f"the evaluation's loss is {loss}: lower --learning_rate, or take other weights")
    perplexity = math.exp(min(loss, 700))  # a larger one is not a float64
    return {"eval_loss": loss, "perplexity": perplexity, "accuracy": correct / num_masked}


def evaluate_all(run: Run, validation: dict[str, Callable]) -> dict[str, dict] | None:
    """Evaluates on each validation set, and reports; returns what evaluate() does by the sets' names, or None.

    The loss of the first set decides which checkpoint is the best.
    """
    evaluations = {}
    for name, make_batches in validation.items():
        evaluation = evaluate(run, make_batches)
        if evaluation is None:
            return None
        evaluations[name] = evaluation
    progress, loss = run.progress, first_of(evaluations)["eval_loss"]
    if progress.global_step > 0 and loss < progress.best.get("eval_loss", math.inf):
        progress.best = {"step": progress.global_step, "eval_loss": loss, "set": next(iter(evaluations))}
    run.report.log_evaluations(run, evaluations)
    return evaluations


def first_of(evaluations: dict[str, dict]) -> dict:
    """The evaluation on the first set: "validation", where the data has one of that name."""
    return next(iter(evaluations.values()))


def learning_rate_at(step: int, run: Run) -> float:
    """The rate of update `step`, counted from 1: as transformers' schedules for one update more, without their first
    one, whose rate is 0."""
    peak, warmup_steps = run.recipe.learning_rate, run.progress.warmup_steps
    if step <= warmup_steps:
        return peak * step / warmup_steps
    share = (step - warmup_steps) / (run.total_steps - warmup_steps + 1)  # of the way down: above 0, below 1
    if run.args.lr_scheduler == "linear":
        return peak * (1 - share)
    if run.args.lr_scheduler == "cosine":
        return peak * (1 + math.cos(math.pi * share)) / 2
    return peak  # constant_with_warmup


def piece_length_at(step: int, run: Run) -> int | None:
    """The length of the pieces into which update `step`, counted from 1, cuts its rows; None: whole rows.

    Each piece has the positions 0, 1, 2, ... anew, and tokens see only those of their own piece.
    """
    for stage in run.recipe.stages:
        if step <= end_of_stage(stage, run.progress.planned_steps):
            length = stage[0]
            return length if length < run.data.train.longest else None
    return None


def end_of_stage(stage: tuple, planned_steps: int) -> float:
    """The last update of a stage, which is (length, share of the updates) or (length, share, updates at most)."""
    _, share, *at_most = stage
    return min([updates_of(share, planned_steps), *at_most])


def updates_of(share: float, steps: int) -> float:
    """A share of the updates, or those of a number of epochs, without the error of the product.

    0.29 x 100 is 28.999999999999996 in floats.
    """
    return round(share * steps, 6)


def mlm_probability_at(step: int, run: Run) -> float:
    """The share of the tokens that update `step`, counted from 1, predicts."""
    begin, end = run.recipe.mlm_probability, run.recipe.final_mlm_probability
    return begin + (end - begin) * min(1, (step - 1) / run.progress.planned_steps)


# -------- what the functions above share
@dataclass(frozen=True)
class Machine:
    """The device, the precision and the place among the ranks; decided once, by start_machine()."""

    device: str  # "cpu", "gpu" or "xpu"
    precision: str  # of matrix products: "float32", "bfloat16" or "float16"
    rank: int = 0  # of this process
    world_size: int = 1  # processes in all


@dataclass(frozen=True)
class Data:
    """What --input_file holds, read once, by load_data(): what lies there later changes nothing."""

    tokenizer: transformers.PretrainedTokenizer
    tokenizer_files: dict[str, bytes]  # by name; a checkpoint gets them
    train: TokenRows
    validation: dict[str, TokenRows]  # by the split's name: "validation", "validation_german", ...
    seq_length: int  # positions that the model needs: the longest row's, or --max_seq_length
    is_padded: bool  # whether rows have different lengths, or end with <pad> themselves
    digests: dict[str, str]  # of each Arrow file of rows: its size and SHA-256
    description: str  # directories and numbers of rows, for people


@dataclass
class Progress:
    """Where a run stands, and what was settled at its start; a checkpoint holds it, beside weights and optimizer."""

    global_step: int = 0  # updates done
    planned_steps: int = 0  # updates in all as planned at the start, on which the ends of stages depend; it stays
    warmup_steps: int = 0  # updates until the peak learning rate
    skipped_in_a_row: int = 0  # updates, the last ones, that were not finite
    is_evaluated: bool = False  # whether an evaluation is due at this step: it follows the checkpoint that holds this
    best: dict = field(default_factory=dict)  # {"step", "eval_loss", "set"} of the best evaluation, once there is one
    window: dict = field(default_factory=dict)  # sums since the last report, see add_to_window()


@dataclass
class Run:
    """What the functions of a run share. Evaluating alone needs the first four."""

    args: argparse.Namespace  # never written to
    machine: Machine
    model: nn.Layer  # RobertaForMaskedLM
    report: Report
    recipe: Recipe | None = None
    progress: Progress = field(default_factory=Progress)
    parallel: nn.Layer | None = None  # the model; of several ranks, in DataParallel
    optimizer: paddle.optimizer.Optimizer | None = None
    scaler: paddle.amp.GradScaler | None = None
    total_steps: int = 0  # updates from the start to the end
    identity: dict = field(default_factory=dict)  # what a resumed run must have in common, see run_identity()
    data: Data | None = None
    stop: StopSignal = field(default_factory=lambda: StopSignal())  # a lambda, as the class comes later


# -------- the update's tools
def seed_dropout(seed: int, global_step: int, micro_step: int, rank: int):
    """Seeds Paddle's generator for one forward pass: so a resumed run needs no saved generator to be exact."""
    sequence = np.random.SeedSequence((seed, global_step, micro_step, rank))
    paddle.seed(int(sequence.generate_state(1)[0]))


def auto_cast(machine: Machine):
    """Mixed precision on a GPU (level O1); a CPU's layers round their operands themselves."""
    is_used = machine.precision != "float32" and machine.device != "cpu"
    return paddle.amp.auto_cast(enable=is_used, dtype=machine.precision if is_used else "float16")


@paddle.no_grad()
def global_norm(gradients: list) -> paddle.Tensor:
    """The Euclidean norm of all gradients together, a scalar; squared_l2_norm makes no copy of a gradient."""
    squares = [paddle._C_ops.squared_l2_norm(gradient).reshape([1]) for gradient in gradients]
    return paddle.concat(squares).sum().sqrt()


def scale_of(scaler: paddle.amp.GradScaler) -> paddle.Tensor:
    """The factor by which the scaler multiplies a loss, a scalar. No method returns it: so a one is multiplied."""
    return scaler.scale(paddle.ones([1])).squeeze()


def tell_scaler_of_overflow(gradients: list):
    """Makes a gradient infinite, so that an enabled scaler takes no step and lowers its scale.

    It looks for infinities in the gradients alone, and would not see an infinite loss, or a norm that overflows.
    """
    gradients[0].fill_(math.inf)


def sum_over_ranks(tensor: paddle.Tensor) -> paddle.Tensor:
    """The sum of all ranks' tensors, in place."""
    if dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def wait_for_all_ranks():
    """Returns when all ranks are here. By a sum of zeros: sums are what a run uses anyway, on whatever backend."""
    sum_over_ranks(paddle.zeros([1])).item()


def expect_progress(machine: Machine):
    """Of several ranks, ends this one, with its stack, unless it comes here again within PADDLE_PG_TIMEOUT.

    Paddle ends nothing by that variable (milliseconds; half an hour by default, no limit at 0): where a rank on another
    machine is gone, the others would wait for ever.
    """
    if machine.world_size > 1:
        milliseconds = int(os.environ.get("PADDLE_PG_TIMEOUT", "1800000"))
        if milliseconds > 0:
            faulthandler.dump_traceback_later(milliseconds / 1000, exit=True)


@contextmanager
def watching_progress(machine: Machine):
    """Expects progress within the block, from its beginning to its end."""
    expect_progress(machine)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def add_to_window(run: Run, result: dict, batches: list[dict], data_seconds: float, seconds: float):
    """Adds an update to the sums since the last report, and counts those in a row that were not finite."""
    progress = run.progress
    # Each batch is padded to a length of its own, and a token attends to as many as that length.
    shapes = [batch["input_ids"].shape for batch in batches]
    positions = sum(rows * length for rows, length in shapes)
    mean_length = sum(rows * length * length for rows, length in shapes) / positions
    tokens = run.machine.world_size * positions  # of all ranks, as if the others' rows were as long
    counts = {
        "updates": 1,
        "skipped_updates": int(result["skipped"]),
        "loss_sum": 0.0 if result["skipped"] else result["loss_sum"],
        "num_masked": 0.0 if result["skipped"] else result["num_masked"],
        "tokens": tokens,
        "flops": update_flops(run.model.config, tokens, mean_length, result["num_masked"]),
        "data_seconds": data_seconds,
        "seconds": seconds,
    }
    progress.window = {name: progress.window.get(name, 0) + count for name, count in counts.items()}
    progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if result["skipped"] else 0


def update_flops(config, tokens: int, seq_length: float, num_masked: float) -> float:
    """Operations of an update's matrix products: forward, and twice that backward."""
    h, f = config.hidden_size, config.intermediate_size
    layer = 8 * h * h + 4 * h * f + 4 * seq_length * h  # a token's
    head = 2 * h * (h + config.vocab_size)  # a masked token's
    return 3 * (tokens * config.num_hidden_layers * layer + num_masked * head)


# -------- model and optimizer
class RobertaForMaskedLM(transformers.RobertaForMaskedLM):
    """PaddleNLP's model and checkpoints; a quarter cheaper with masked_positions."""

    takes_attention_masks = True  # see use_fast_layers()

    def forward(self, input_ids, *, masked_positions=None, labels=None, **kwargs):
        """Logits [batch, seq, vocab]; with masked_positions (flat indices [n]) logits [n, vocab].

        With labels (int64 [n], -100 where masked_positions is filled up) the loss: the sum of the
        cross entropies, float32, and how many labels have the highest logit, int64 (None where
        gradients are recorded, as in training). kwargs: attention_mask, token_type_ids and position_ids.
        ValueError: an attention mask for a model whose fast layers are for rows without padding, and look at none.
        """
        if kwargs.get("attention_mask") is not None and not self.takes_attention_masks:
            raise ValueError("attention_mask: call use_fast_layers() with is_padded=True, or it is not looked at")
        if masked_positions is None:
            return super().forward(input_ids, labels=labels, **kwargs)
        hidden = paddle.gather(self.roberta(input_ids, **kwargs)[0].flatten(0, 1), masked_positions)
        if labels is not None and isinstance(self.lm_head, LMHead):  # a CPU's: output layer and loss as one
            return self.lm_head.loss(hidden, labels)
        logits = self.lm_head(hidden)
        if labels is None:
            return logits
        num_correct = None if paddle.is_grad_enabled() else (logits.argmax(-1) == labels).sum()
        return cross_entropy(logits.astype("float32"), labels), num_correct

    def resize_token_embeddings(self, *args, **kwargs):
        if isinstance(self.lm_head, LMHead):
            raise ValueError("resize before use_fast_layers(), which ties the embedding to the output layer in its way")
        return super().resize_token_embeddings(*args, **kwargs)


def cross_entropy(logits, labels):
    """The sum of the losses (nats) of logits [n, vocab] where labels [n] are not -100."""
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    # On a CPU, F.cross_entropy gives a finite loss where logits are NaN. 0 x NaN is NaN, and keeps it in sight.
    return loss + 0 * logits.detach().sum()


def build_config(args, tokenizer, seq_length: int, dropout: float | None = None):
    """The configuration of an architecture, a directory or a hub id, for rows of up to `seq_length` tokens."""
    if args.model_name_or_path in ARCHITECTURES:
        config = new_config(args.model_name_or_path, tokenizer, seq_length)
    else:
        config = found_config(args, tokenizer, seq_length)
    if dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    return config


def new_config(name: str, tokenizer, seq_length: int):
    """RoBERTa's configuration with the sizes of ARCHITECTURES; PaddleNLP's defaults are BERT's."""
    layers, width, heads = ARCHITECTURES[name]
    first_position = tokenizer.pad_token_id + 1
    if first_position > 100:  # as of GPT-2's vocabulary with <pad> added behind it; RoBERTa's is 2
        log(
            f"warning: <pad> is token {tokenizer.pad_token_id:,}, and RoBERTa counts positions from it: the model gets "
            f"{first_position:,} positions more that nothing uses; --tokenizer_name train has <pad> at the beginning"
        )
    return transformers.RobertaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        vocab_size=utils.vocabulary_size(tokenizer),
        max_position_embeddings=max(512, seq_length) + first_position,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        cls_token_id=tokenizer.cls_token_id,
    )


def found_config(args, tokenizer, seq_length: int):
    """The configuration of --model_name_or_path, refused unless this code computes it and it suits the data."""
    name, folder = args.model_name_or_path, model_directory(args.model_name_or_path)
    utils.check_model_directory(folder, "--model_name_or_path")
    problem = f"cannot load the model {name}: its config.json is damaged, or no RoBERTa's"
    with explaining(problem):
        settings = dict(json.loads(Path(folder, "config.json").read_bytes()))
    for setting, supported in SUPPORTED_SETTINGS.items():
        value = settings.get(setting)
        if value not in (None, supported):
            remedy = f"only {json.dumps(supported)} is supported: take another model"
            raise UserError(f"the config.json of {name} has {setting} {json.dumps(value)}, and {remedy}")
    with explaining(problem):
        config = transformers.RobertaConfig.from_pretrained(folder)

    check_token_ids(args, folder, config, tokenizer)

    # Are its embeddings large enough?
    size = utils.vocabulary_size(tokenizer)
    first = config.pad_token_id + 1  # positions are counted from it
    if args.resize_model:
        config.vocab_size = max(config.vocab_size, size)
        config.max_position_embeddings = max(config.max_position_embeddings, seq_length + first)
    if config.vocab_size < size:
        remedy = "let it grow by --resize_model True"
        if utils.read_tokenizer(folder) is None:
            remedy = f"set it to {size} in its config.json, or {remedy}"
        raise UserError(f"{name} has vocab_size {config.vocab_size}, the data {size} tokens: {remedy}")
    longest = config.max_position_embeddings - first
    if longest < seq_length:
        # The flag may ask for more than the data's rows need.
        asks = (
            f"--max_seq_length {seq_length} (leave it out where rows are shorter), or the data,"
            if args.max_seq_length
            else "the data"
        )
        rows = f"rows of {seq_length} tokens, and the positions of {name} are enough for {longest}"
        remedy = f"prepare it with --max_seq_length {longest}, or lengthen the model by --resize_model True"
        raise UserError(f"{asks} has {rows}: {remedy}")
    return config


def ids_of(tokenizer) -> tuple:
    """The vocabulary {token: id} and merges [(left, right)] of the data's tokenizer, as read_tokenizer() gives them."""
    return tokenizer.get_vocab(), list(tokenizer.bpe_ranks)


def check_token_ids(args, folder: str, config, tokenizer):
    """Raises UserError where a model's token ids do not mean what the data's mean."""
    name = args.model_name_or_path
    current, own = ids_of(tokenizer), utils.read_tokenizer(folder)
    prepare = f"prepare the data with --tokenizer_name {name}"
    if config.pad_token_id != tokenizer.pad_token_id:
        padding = f"{config.pad_token_id}, in the data {tokenizer.pad_token_id}"
        remedy = prepare if own else f"set it to {tokenizer.pad_token_id} in its config.json, to train it from scratch"
        raise UserError(f"{name} does not suit the data: its pad_token_id is {padding}: {remedy}")
    if own is None:
        log(f"warning: {name} holds no tokenizer to compare with the data's: its token ids must mean the same")
    elif current != own:
        is_extended = own[0].items() < current[0].items() and current[1][: len(own[1])] == own[1]
        if not is_extended:
            raise UserError(f"{name} has another tokenizer than the data: {prepare}")
        if not args.resize_model:
            more = f"{len(current[0]) - len(own[0])} tokens that {name} lacks"
            raise UserError(f"the data has {more}: --resize_model True adds them to the model, or {prepare}")


@functools.cache
def model_directory(name: str) -> str:
    """A directory as it is, or a model of the hub that is downloaded: only its settings, weights and tokenizer."""
    if os.path.isdir(name):
        return name
    if re.fullmatch(r"paddle_\d+", Path(name).name):  # a checkpoint's name, and no model of the hub
        utils.check_model_directory(name, "--model_name_or_path")
    try:
        files = ["config.json", "model*.safetensors", "*.index.json", *utils.TOKENIZER_FILES]
        return huggingface_hub.snapshot_download(name, allow_patterns=files)
    except Exception as error:
        unknown = huggingface_hub.errors.RepositoryNotFoundError, huggingface_hub.errors.HFValidationError
        hub = "the hub has none of that name" if isinstance(error, unknown) else "the hub cannot be reached"
        known = f"neither a directory nor one of {', '.join(ARCHITECTURES)}, and {hub} ({type(error).__name__})"
        nearest = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        remedy = f"did you mean {nearest[0]}?" if nearest else "give a directory with config.json"
        raise UserError(f"cannot load the model {name}: {known}: {remedy}") from error


def build_model(args, config, machine: Machine, is_padded: bool, checkpoint=None, initialize: Callable | None = None):
    """The model with weights of a checkpoint, of --model_name_or_path, or new ones."""
    source = checkpoint or args.model_name_or_path
    paddle.seed(args.seed)
    with explaining(f"cannot load the weights of {source}"):
        model, action = load_model(source, config, resize=args.resize_model and checkpoint is None)
    is_new = action == "training from scratch"
    if is_new and initialize is not None:
        initialize(model)
    if not is_new and checkpoint is None and args.initialization and args.max_steps != 0:
        log("not used, as weights are continued: --initialization")
    if source in ARCHITECTURES and args.resize_model:
        log("not used, as the model is made for the data: --resize_model")
    use_fast_layers(model, machine.device, machine.precision, is_padded)
    if args.recompute and args.max_steps != 0:  # PaddleNLP's own way fails in paddle.DataParallel
        has_dropout = config.hidden_dropout_prob > 0 or config.attention_probs_dropout_prob > 0
        options = dict(use_reentrant=False, preserve_rng_state=has_dropout)
        for layer in model.roberta.encoder.layers:
            layer.forward = partial(dist.fleet.utils.recompute, layer.forward, **options)
    size = sum(parameter.size for parameter in model.parameters())
    log(f"model: {args.model_name_or_path}, {size:,} parameters, {action}")
    if is_new and args.max_steps == 0:
        log("warning: the weights evaluated here are new ones, that nobody trained: give a checkpoint's directory")
    return model


def warn_of_longer_rows(source: str, data: Data):
    """Says where rows to evaluate are longer than those that a checkpoint was last trained on."""
    try:
        trained = json.loads(Path(source, "training_state/state.json").read_bytes())["row_length"]
    except (OSError, ValueError, LookupError, TypeError):  # not a checkpoint of ours, or an earlier one
        return
    longest = max(rows.longest for rows in data.validation.values())
    if longest > trained:
        log(
            f"warning: rows of {longest} tokens, and {source} was last trained on rows of {trained}: unless it knows "
            f"the positions behind that from before, prepare the data with --max_seq_length {trained}"
        )


def load_model(source: str, config, resize: bool = False) -> tuple:
    """(model, what is done with it), of PaddleNLP's or transformers' layout; with `resize`, it grows to `config`."""
    model = RobertaForMaskedLM(config)
    if source in ARCHITECTURES:
        return model, "training from scratch"
    folder = model_directory(source)
    weights = utils.read_weights(folder)
    if not weights and folder != source:
        raise UserError(f"{source} of the hub has no model.safetensors: download it, and give its directory")
    if not weights:
        return model, "training from scratch"
    parameters, action = model.state_dict(), f"continuing from {source}"
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    if resize:
        weights, grown = utils.grow_weights(weights, shapes, config.pad_token_id)
        action += f"; {grown or 'nothing'} added"
    unused = utils.match_weights(weights, shapes, config.tie_word_embeddings, source)
    weights["lm_head.bias"] = weights["lm_head.decoder.bias"]  # one parameter; transformers 5 adds the latter
    for name, parameter in parameters.items():
        parameter.set_value(weights[name])
    if unused:
        action += f"; without {utils.shorten(unused)}, which it does not use"
    return model, action


def initialize_with_sinusoids(model, token_counts: np.ndarray, seed: int):
    """Begins a new model as the recipe growing_rows does; what is not named here begins as RoBERTa's.

    Positions: sinusoids (Vaswani et al., 2017, section 3.5; sines and cosines side by side), which are learned on.
    Words: normal, with the same root mean square. Linear layers: normal. The output layer's bias: the logarithm of the
    tokens' frequencies in the training rows, which is what a model learns first. `token_counts`: as
    utils.token_counts() returns them.
    """
    width = model.config.hidden_size
    generator = np.random.default_rng(seed)

    def set_normal(parameter, deviation: float):
        parameter.set_value(generator.normal(0, deviation, parameter.shape).astype(np.float32))

    embeddings = model.roberta.embeddings
    rms = EMBEDDINGS_RMS / math.sqrt(width)
    set_normal(embeddings.word_embeddings.weight, rms)
    positions = np.arange(model.config.max_position_embeddings)[:, None]
    angles = positions * SINUSOIDS_BASE ** (-np.arange(width // 2) / (width // 2))
    sinusoids = math.sqrt(2) * rms * np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    embeddings.position_embeddings.weight.set_value(sinusoids.astype(np.float32))
    for layer in model.sublayers():
        if type(layer) is nn.Linear:
            set_normal(layer.weight, LINEAR_DEVIATION / math.sqrt(width))
    counts = np.ones(model.config.vocab_size)  # so that no logarithm is infinite
    counts[: len(token_counts)] += token_counts
    model.lm_head.decoder.bias.set_value(np.log(counts / counts.sum()).astype(np.float32))


def build_optimizer(model, args, recipe: Recipe, machine: Machine):
    """AdamW or Muon, decaying matrices and embeddings only, and the scaler that float16 needs."""
    decayed = {parameter.name for parameter in model.parameters() if parameter.ndim >= 2}
    settings = dict(
        learning_rate=0.0,  # train() sets it for each update
        beta1=0.9,
        beta2=0.98,  # RoBERTa, section 3.1
        epsilon=args.adam_epsilon,
        parameters=model.parameters(),
    )
    decay = dict(weight_decay=recipe.weight_decay, apply_decay_param_fun=decayed.__contains__)
    if recipe.optimizer == "muon":
        optimizer = Muon(matrices_of_layers(model), machine, **settings, **decay)
    else:
        optimizer = paddle.optimizer.AdamW(**settings, **decay)
    is_float16 = machine.precision == "float16"  # else the scaler does nothing
    return optimizer, paddle.amp.GradScaler(enable=is_float16, init_loss_scaling=args.scale_loss)


def matrices_of_layers(model) -> set[str]:
    """Paddle's names of the weights by which layers multiply; embeddings and the output layer are not among them."""
    tables = "embeddings.", "lm_head.decoder."
    return {
        parameter.name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and not any(table in name for table in tables)
    }


class Muon(paddle.optimizer.AdamW):
    """Muon (Jordan et al., 2024) for the matrices of layers, AdamW for all else.

    Each value of AdamW's step is divided by the size that its gradient usually has. Muon does so for a whole matrix: it
    moves along the momentum with all singular values made about 1, so that what many tokens ask for does not drown what
    few ask for. The step is scaled to a root mean square of 0.2 times the rate, about that of AdamW's steps, so that
    both have one rate and one weight decay (Liu et al., 2025, section 2.2). It keeps one tensor, "momentum", for a
    matrix, where AdamW keeps two.
    """

    def __init__(self, names: set[str], machine: Machine, **settings):
        """`names`: Paddle's, of the parameters [in, out] that are Muon's. `settings`: AdamW's."""
        super().__init__(**settings)
        self.names, self.precision = names, machine.precision
        self.on_cpu = machine.device == "cpu" and onednn() is not None

    def _create_accumulators(self, block, parameters):
        for parameter in parameters:
            if parameter.name in self.names:
                self._add_accumulator("momentum", parameter)
        super()._create_accumulators(block, [p for p in parameters if p.name not in self.names])

    def _append_optimize_op(self, block, param_and_grad):
        if param_and_grad[0].name not in self.names:
            super()._append_optimize_op(block, param_and_grad)

    def _finish_update(self, block, parameters_and_grads):
        """Muon's steps, for several matrices of one shape, or its transposed, at a time.

        One by one, small products take twice as long. Paddle calls this after AdamW's steps; in float16 it does so even
        where a scaler has found an infinity and AdamW's steps were left out: then Muon's are, too.
        """
        if self._get_auxiliary_var("found_inf"):
            return
        by_shape = {}
        for parameter, gradient in parameters_and_grads:
            if parameter.name in self.names:
                by_shape.setdefault(tuple(sorted(parameter.shape)), []).append((parameter, gradient))
        for pairs in by_shape.values():
            for start in range(0, len(pairs), MUON_TOGETHER):
                self.step_together(pairs[start : start + MUON_TOGETHER])

    def step_together(self, pairs: list[tuple]):
        """A step of some parameters with their gradients, which all have one shape, or its transposed."""
        directions = []
        for parameter, gradient in pairs:
            momentum = self._get_accumulator("momentum", parameter)
            gradient = gradient.scale(1 - MUON_MOMENTUM)
            momentum.scale_(MUON_MOMENTUM).add_(gradient)
            direction = momentum.scale(MUON_MOMENTUM).add_(gradient)  # Nesterov's
            directions.append(direction.t() if is_tall(direction) else direction)
        steps = orthogonalize(paddle.stack(directions), self.product)
        rate = self.get_lr()
        # An orthogonal matrix has a root mean square of one by the root of its longer side.
        steps.scale_(0.2 * rate * math.sqrt(steps.shape[-1]))
        for (parameter, _), step in zip(pairs, steps):
            parameter.scale_(1 - rate * self._weight_decay)
            parameter.subtract_(step.t() if is_tall(parameter) else step)

    def product(self, left, right, transpose_right: bool = False):
        """left right, or left right^T, of several matrices: float32, computed in the run's precision."""
        if not self.on_cpu:
            operands = left.astype(self.precision), right.astype(self.precision)
            return paddle.matmul(*operands, transpose_y=transpose_right).astype("float32")
        left, right = (utils.as_operand(onednn(), array_of(x), self.precision) for x in (left, right))
        right = right.transpose(0, 2, 1) if transpose_right else right
        out = paddle.empty([*left.shape[:2], right.shape[2]])
        onednn().matmul(left, right, array_of(out))
        return out


def is_tall(matrix) -> bool:
    return matrix.shape[0] > matrix.shape[1]


def orthogonalize(matrices, product: Callable):
    """U V^T of each matrix U S V^T, about: [count, m, n] with m <= n, by Newton-Schulz iterations.

    Each iteration takes a singular value s to a s + b s^3 + c s^5: those from 0.003 to 1 times the matrix's norm become
    0.78 to 1.22, and smaller ones up to 284 times as large. `product` is Muon's.
    """
    # Not norm(): see findings/paddle-3.3-cpu-norm-of-an-embedding-is-too-small.sh.
    norms = paddle.stack([global_norm([matrix]) for matrix in matrices]).reshape([-1, 1, 1])
    x = matrices * (1 / (norms + 1e-12))  # no singular value is above 1
    identity = paddle.stack([paddle.eye(x.shape[1])] * len(x))
    for a, b, c in NEWTON_SCHULZ:
        squared = product(x, x, transpose_right=True)
        polynomial = identity.scale(a) + squared.scale(b) + product(squared, squared).scale(c)
        x = product(polynomial, x)
    return x


def build_collator(args, data: Data, mlm_probability: float) -> DataCollatorMLM:
    """The masking of training or of evaluations; rows of different lengths are padded to few lengths."""
    multiple = utils.LENGTH_MULTIPLE if data.is_padded else None
    unsuited = "--whole_word_masking True does not suit the tokenizer; leave it out"
    with explaining(unsuited) if args.whole_word_masking else nullcontext():
        return DataCollatorMLM(data.tokenizer, mlm_probability, args.seed, args.whole_word_masking, multiple)


def explaining_words(collator: DataCollatorMLM):
    """Explains an error in the block as one about the words of the text, where whole words are masked."""
    return explaining(WORDS_UNKNOWN) if collator.words is not None else nullcontext()


def show_masking(collator: DataCollatorMLM, data: Data):
    """Shows a training row as the model sees it; warns where rows are masked otherwise than single tokens would be."""
    with explaining_words(collator):
        log(utils.describe_row(collator, data.tokenizer, data.train[0, 0]))
        problem = utils.masking_problem(collator, data.train)
    if collator.words is not None:
        collator.words.is_strict = False  # a row among millions ends no run
    hint = utils.missing_dictionary(collator, data.train)
    if hint is not None:
        log(hint)
    if problem is not None:
        log(f"warning: {problem}")


def batches_of(rows: TokenRows, keys: Iterator[list], collator: DataCollatorMLM) -> Iterator[dict]:
    """Yields a batch of tensors for each list of (epoch, row), read and masked when it is asked for.

    A plain generator: paddle.io.DataLoader reads ahead in a thread of its own even without workers, and taking that
    thread down where a signal ended a run crashed 5 of 36 processes. Masking 16 x 512 tokens takes 0.5 ms.
    """
    for batch_keys in keys:
        batch = collator([rows[key] for key in batch_keys])
        yield {name: paddle.to_tensor(array) for name, array in batch.items()}


def training_batches(run: Run, sampler: UpdateSampler, collator: DataCollatorMLM) -> Iterator[dict]:
    """Yields the micro-batches of the updates that are left, as many for each as --gradient_accumulation_steps."""
    first_step = run.progress.global_step + 1
    keys = sampler.batches(first_step - 1, run.total_steps)
    for step in range(first_step, run.total_steps + 1):
        collator.mlm_probability = mlm_probability_at(step, run)
        yield from batches_of(run.data.train, islice(keys, run.args.gradient_accumulation_steps), collator)


def validation_batches(rows: TokenRows, collator: DataCollatorMLM, args, machine: Machine) -> Callable:
    """A function that yields this rank's batches of an evaluation, the same ones at each call."""
    keys = utils.evaluation_batches(len(rows), args.batch_size, machine.rank, machine.world_size, args.max_eval_rows)
    return partial(batches_of, rows, keys, collator)


# -------- checkpoints
def start_or_resume(
    args, recipe: Recipe, machine: Machine, data: Data, config, identity: dict, sampler: UpdateSampler, report: Report
) -> Run:
    """The run at its beginning, or as a checkpoint holds it."""
    total_steps = updates_in_all(args, sampler)
    if args.lr_scheduler != "constant_with_warmup":  # whose runs may go on for as long as one likes
        identity = identity | {"total_steps": total_steps}
    checkpoint = find_checkpoint(args)
    if checkpoint is None:
        warmup_steps = args.warmup_steps
        if warmup_steps < 1:
            warmup_steps = updates_of(warmup_steps, total_steps)
        progress = Progress(planned_steps=total_steps, warmup_steps=math.ceil(warmup_steps))
        state = {}
    else:
        progress, state = load_state(checkpoint, args, identity, data, total_steps)
    check_ranks_agree_on_checkpoint(machine, checkpoint)

    def initialize(model):
        if recipe.initialization == "sinusoids":
            initialize_with_sinusoids(model, utils.token_counts(data.train, data.tokenizer), args.seed)

    model = build_model(args, config, machine, data.is_padded, checkpoint, initialize)
    optimizer, scaler = build_optimizer(model, args, recipe, machine)
    if checkpoint:
        load_optimizer(checkpoint, args.output_dir, state, model, optimizer, scaler)
    # DataParallel gives every rank the first one's weights.
    parallel = paddle.DataParallel(model) if machine.world_size > 1 else model
    run = Run(
        args=args,
        machine=machine,
        model=model,
        report=report,
        recipe=recipe,
        progress=progress,
        parallel=parallel,
        optimizer=optimizer,
        scaler=scaler,
        total_steps=total_steps,
        identity=identity,
        data=data,
    )
    # A checkpoint of another directory brings no metrics along, and those that lie here are another run's.
    report.log_start(run, sampler, goes_on=checkpoint is not None and is_in(checkpoint, args.output_dir))
    return run


def updates_in_all(args, sampler: UpdateSampler) -> int:
    """Updates from the start to the end of training.

    --num_train_epochs x updates per epoch, or --max_steps where that is fewer; --max_steps alone where no epochs
    are given.
    """
    if sampler.updates_per_epoch == 0:
        remedy = "lower --batch_size or --gradient_accumulation_steps"
        if sampler.num_rows == 0:
            remedy = "prepare some to train on, or evaluate with --max_steps 0"
        raise UserError(f"a global batch of {sampler.global_batch} rows, but {sampler.num_rows} in the data: {remedy}")
    if args.num_train_epochs is None and args.max_steps > 0:
        total_steps = args.max_steps
    else:
        epochs = EPOCHS if args.num_train_epochs is None else args.num_train_epochs
        total_steps = math.floor(updates_of(epochs, sampler.updates_per_epoch))
        if 0 < args.max_steps < total_steps:
            total_steps = args.max_steps
    if total_steps == 0:
        raise UserError("nothing to train: --num_train_epochs gives no update: raise it, or leave it out")
    if args.warmup_steps > total_steps:
        raise UserError(
            f"--warmup_steps {args.warmup_steps:g} is longer than the training ({total_steps} updates): lower it"
        )
    return total_steps


def run_identity(args, recipe: Recipe, machine: Machine, data: Data, config, collator: DataCollatorMLM) -> dict:
    """What the result depends on, by name: a resumed run must have all of it in common with its checkpoint.

    start_or_resume() adds the number of updates.
    """
    may_change = build_parser().may_change()
    identity = {name: value for name, value in vars(args).items() if name not in may_change}
    identity |= {name: value for name, value in asdict(recipe).items() if name != "dropout"}  # the configuration has it
    identity["precision"] = machine.precision
    identity["global_batch"] = args.batch_size * args.gradient_accumulation_steps * machine.world_size
    for name, value in config.to_dict().items():
        if name not in ("architectures", "paddlenlp_version"):
            identity[f"architecture.{name}"] = value
    identity |= collator.identity()
    del identity["masking.mlm_probability"], identity["masking.seed"]  # of flags, which are compared themselves
    identity["tokenizer"] = digest_of(data.tokenizer_files)
    identity.update({f"data.{name}": digest for name, digest in data.digests.items()})
    return json.loads(json.dumps(identity))  # as state.json gives it back


def digest_of(files: dict[str, bytes]) -> str:
    """The SHA-256 of files' names and contents."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def check_ranks_agree(args, machine: Machine, identity: dict):
    """Raises UserError, on all ranks, where they would not do the same: other arguments, models or data."""
    # Where these lie may differ from machine to machine: their contents are compared, not their names.
    places = ("input_file", "output_dir", "model_name_or_path", "resume_from_checkpoint")
    arguments = {name: str(value) for name, value in vars(args).items() if name not in places}

    def part(*beginnings: str) -> dict:
        return {name: value for name, value in identity.items() if name.startswith(beginnings)}

    compare_over_ranks(  # in this order: what differs is told by the first that does
        machine,
        {
            "arguments: start them with the same command": arguments,
            "data or tokenizers: share one --input_file, or copy it": part("data.", "tokenizer"),
            "rules of masking: run the same utils.py, with the same Python and icu4py": part("masking."),
            "models or precisions: give all the same --model_name_or_path, on devices of one kind": identity,
        },
    )


def check_ranks_agree_on_checkpoint(machine: Machine, checkpoint: str | None):
    """Raises UserError where the ranks go on from different checkpoints, or some start anew."""
    sums = Path(checkpoint, utils.CHECKSUMS).read_text() if checkpoint else None
    compare_over_ranks(machine, {"checkpoints: share one --output_dir": sums})


def check_ranks_agree_on_weights(machine: Machine, model):
    """Raises UserError where an evaluation's ranks have different weights; training gives all the first one's."""
    if machine.world_size > 1:
        weights = hashlib.sha256()
        for parameter in model.parameters():
            weights.update(parameter.numpy().tobytes())
        compare_over_ranks(machine, {"weights: share one --model_name_or_path, or copy it": weights.hexdigest()})


def compare_over_ranks(machine: Machine, values: dict):
    """Raises UserError on all ranks where one of the values, {what it is and a remedy: value}, is not equal on all."""
    expect_progress(machine)  # another rank may have ended before it came here
    digests = []
    for value in values.values():  # 48 bits each: a sum over ranks stays exact in int64
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
        digests.append(int.from_bytes(digest[:6], "little"))
    sums = sum_over_ranks(paddle.to_tensor(digests, dtype="int64")).tolist()
    for what, digest, total in zip(values, digests, sums):
        if total != digest * machine.world_size:
            raise UserError(f"the processes have different {what}")


def check_output_dir(output_dir: str):
    """Raises UserError where a run would write into a checkpoint, and be deleted with it, or among the rows."""
    if not output_dir:
        raise UserError("--output_dir is empty: name a directory")
    path = Path(output_dir).resolve()
    if (path / "dataset_dict.json").exists() or any(path.glob("*.arrow")):
        raise UserError(f"--output_dir {output_dir} is a data set: choose another")
    for folder in (path, *path.parents):
        if (folder / "training_state").exists():
            relation = "is a checkpoint" if folder == path else f"lies in the checkpoint {folder}"
            raise UserError(f"--output_dir {output_dir} {relation}: choose one outside of it")


def find_checkpoint(args) -> str | None:
    """The checkpoint to resume from, or None for a fresh start; never a damaged one."""
    given = args.resume_from_checkpoint
    found = list(checkpoints_in(args.output_dir).values())
    if given not in ("no", "auto"):
        inside = list(checkpoints_in(given).values())
        if inside:
            raise UserError(f"--resume_from_checkpoint {given} holds checkpoints: did you mean {inside[-1]}?")
        if not os.path.isdir(given):
            there = list(checkpoints_in(os.path.dirname(given) or ".").values()) or found
            meant = [path for path in there if Path(path).name == Path(given).name] or there
            remedy = f"did you mean {meant[-1]}?" if meant else "give a checkpoint's, or auto"
            raise UserError(f"cannot resume from {given}, which is no directory: {remedy}")
    if found and given != "auto" and not is_in(given, args.output_dir):
        more = "add --resume_from_checkpoint auto" if given == "no" else f"go on from one of them, as {found[-1]}"
        raise UserError(f"--output_dir {args.output_dir} holds checkpoints: choose another directory, or {more}")
    if given == "no":
        return None
    if given == "auto" and not found:
        log(f"--resume_from_checkpoint auto: no checkpoint in {args.output_dir}, starting anew")
        return None
    for path in reversed(found if given == "auto" else [given]):
        try:
            utils.check_checksums(path)
            return path
        except UserError as error:
            problem = f"cannot resume from {error}"
            if given == "auto":  # which looks on
                log(f"warning: {problem}")
    raise UserError(f"{problem}: give another, or start in another --output_dir")


def is_in(checkpoint: str, output_dir: str) -> bool:
    """Whether a path, however it is written, is a checkpoint of this directory."""
    return os.path.realpath(checkpoint) in map(os.path.realpath, checkpoints_in(output_dir).values())


def load_state(checkpoint: str, args, identity: dict, data: Data, total_steps: int) -> tuple[Progress, dict]:
    """The progress of a checkpoint that this run may continue from, and all of its state.json."""
    refusal, in_new_run = f"cannot resume from {checkpoint}", "to go on from its weights in a new run:"
    command = command_to_continue(checkpoint, args.output_dir)
    with explaining(f"{refusal}: its state.json is damaged, or of another version; {in_new_run} {command}"):
        state = json.loads(Path(checkpoint, "training_state/state.json").read_bytes())
        state.setdefault("planned_steps", total_steps)  # earlier checkpoints have no stages that would need it
        state.setdefault("is_evaluated", False)  # nor this
        progress = Progress(**{name: state[name] for name in asdict(Progress())})
        for name, value in asdict(Progress()).items():
            if not isinstance(state[name], type(value)):
                raise ValueError(f"{name} is {state[name]!r}")
        if progress.global_step < 1:
            raise ValueError(f"global_step is {progress.global_step}")
        max_eval_rows = state["arguments"]["max_eval_rows"]
        changes = changes_between(state, identity, data)
    if changes:
        kept = {name: value for name, value in state["identity"].items() if identity.get(name) == value}
        instead = f"{in_new_run} {command_to_continue(checkpoint, args.output_dir, kept)}"
        if utils.read_tokenizer(checkpoint) != ids_of(data.tokenizer):  # in a new run, the weights would not suit them
            instead = f"prepare the text with --tokenizer_name {shlex.quote(checkpoint)}, and {instead}"
        raise UserError(f"{refusal}: these would change the result: {'; '.join(changes)}; undo them, or, {instead}")
    if progress.global_step > total_steps:
        step = progress.global_step
        remedy = f"give --max_steps {step} or more, without --num_train_epochs"
        raise UserError(f"{refusal}: it has done {step} of {total_steps} updates: {remedy}")
    if max_eval_rows != args.max_eval_rows:
        best = "the best checkpoint is chosen by losses over different rows"
        log(f"warning: --max_eval_rows was {max_eval_rows}: {best}")
    was, now = progress.best.get("set"), next(iter(data.validation))
    if was not in (None, now):
        log(f"warning: the best checkpoint was chosen by {was}, and is chosen anew, by {now}")
        progress.best = {}
    return progress, state


def command_to_continue(checkpoint: str, output_dir: str, kept: dict | None = None) -> str:
    """The flags with which a new run begins with a checkpoint's weights, in a directory that is not there yet.

    `kept` are parts of its identity that stay: of these the optimizer's, where they are not such a run's defaults.
    """
    base, suffix = Path(output_dir), 2
    while Path(f"{base}_{suffix}").exists():
        suffix += 1
    places = f"--model_name_or_path {shlex.quote(str(checkpoint))} --output_dir {shlex.quote(f'{base}_{suffix}')}"
    usual = asdict(RECIPES["roberta"])
    settings = ""
    for name in ("optimizer", "learning_rate", "weight_decay"):
        value = (kept or {}).get(name, usual[name])
        settings += f" --{name} {value}" if value != usual[name] else ""
    return f"{places}{settings} --resume_from_checkpoint auto"


def changes_between(state: dict, current: dict, data: Data) -> list[str]:
    """What differs between the identity in a checkpoint's state.json and the current one, in a user's words."""
    saved = state["identity"]
    # What the checkpoint does not know was added to the code later. Until then a flag's default applied, and for a
    # setting of the recipe, RoBERTa's. Any other name that it lacks is not compared, except masking.whole_words:
    # earlier code chose words by other rules, for which None stands here.
    defaults = vars(parse_arguments([])) | asdict(RECIPES["roberta"]) | {"masking.whole_words": None}
    defaults["final_mlm_probability"] = saved.get("mlm_probability")  # which was the same to the end
    defaults = json.loads(json.dumps(defaults))  # as state.json gives it back
    was = {name: defaults[name] for name in current if name in defaults} | saved
    changes = []
    is_data = {name for name in [*saved, *current] if name.startswith("data.")}
    if any(saved.get(name) != current.get(name) for name in is_data):
        saved_data = state.get("data") or f"that of {' '.join(state['arguments']['input_file'])}"
        changes.append(f"the data of --input_file (was {saved_data}; is {data.description})")
    changed = {name for name in was if name not in is_data and was[name] != current.get(name)}
    changed -= {f"architecture.{name}" for name in NOT_COMPUTED}
    if "whole_word_masking" in changed:
        changed.discard("masking.whole_words")  # which it sets
    if "total_steps" not in current:
        changed.discard("total_steps")  # at a constant rate a run may have any number of updates
    for name, recipe in RECIPES.items():
        if "stages" in changed and was["stages"] == json.loads(json.dumps(recipe.stages)):
            changes.append(f"the recipe (--recipe {name} gives the former)")
    changes += [describe_change(name, was[name], current.get(name)) for name in sorted(changed)]
    return changes


def describe_change(name: str, was, now) -> str:
    """One difference between two identities, by the flags that set it."""
    if name == "tokenizer":
        return "the tokenizer's files in --input_file"
    if name == "total_steps":
        remedy = f"--max_steps {was} without --num_train_epochs gives the former"
        return f"the number of updates (was {was}, is {now}: {remedy})"
    if name == "global_batch":
        return (
            f"the global batch (was {was} rows, is {now}: "
            "--batch_size x --gradient_accumulation_steps x the number of processes)"
        )
    if name == "precision":
        return f"the precision (was {was}, is {now}: --amp, --amp_dtype or another device)"
    if name.startswith("masking."):
        return f"the masking's {name.removeprefix('masking.')} (was {was}, is {now})"
    if name.startswith("architecture."):
        return f"the model's {name.removeprefix('architecture.')} (was {was}, is {now})"
    if name == "stages":
        was, now = stages_as_text(was), stages_as_text(now)
    return f"--{name} (was {was}, is {now})"


def load_optimizer(checkpoint: str, output_dir: str, state: dict, model, optimizer, scaler):
    """Gives the optimizer and the scaler back what save_checkpoint() wrote of them."""
    wrote, reads = state.get("optimizer", "AdamW"), type(optimizer).__name__
    if wrote != reads:
        raise UserError(
            f"cannot resume from {checkpoint}: {wrote} wrote its state, and build_optimizer() makes {reads}: change it "
            f"back, or go on from its weights in a new run: {command_to_continue(checkpoint, output_dir)}"
        )
    with explaining(f"cannot resume from {checkpoint}: its optimizer state is damaged"):
        arrays = load_file(f"{checkpoint}/training_state/optimizer.safetensors")
        if len(arrays) != state["num_moments"]:
            raise UserError(f"{checkpoint} lacks optimizer tensors")
        parameters, tensors, owners = dict(model.named_parameters()), {}, {}
        for name, array in arrays.items():
            owner, kind = name.rsplit("/", 1)
            owners[owner] = parameters[owner]
            tensors[f"{parameters[owner].name}_{kind}_0"] = paddle.to_tensor(array)
        optimizer.set_state_dict(tensors)
        take_over_state(optimizer, list(owners.values()))
        if scaler.is_enable():
            scale = np.array(state["scaler"]["scale"], dtype=np.float32)
            scaler.load_state_dict({**state["scaler"], "scale": scale})


def take_over_state(optimizer, parameters: list):
    """Has the optimizer make its tensors for these parameters now, from what set_state_dict() gave it.

    Left alone it does so in its first step, for the parameters that have a gradient then: one that is frozen at that
    moment would lose its state, and one that was frozen until then, which has none yet, would be refused.
    """
    if optimizer.helper is None:  # 2.6.2 makes it in the first step, too
        optimizer.helper = paddle.base.layer_helper.LayerHelper(type(optimizer).__name__)
    optimizer._create_accumulators(paddle.static.default_main_program().global_block(), parameters)
    if optimizer._accumulators_holder:
        raise ValueError(f"nothing here takes {min(optimizer._accumulators_holder)}")


def optimizer_arrays(model, optimizer) -> dict[str, np.ndarray]:
    """Whatever the optimizer keeps for each parameter, as "roberta.encoder.layers.0.linear1.weight/moment1".

    Paddle's own names, like linear_3.w_0_moment1_0, depend on the models that the process built before.
    """
    names = {parameter.name: name for name, parameter in model.named_parameters()}
    arrays = {}
    for key, value in optimizer.state_dict().items():
        owners = [name for name in names if key.startswith(f"{name}_")]
        if not owners or not isinstance(value, paddle.Tensor):
            raise UserError(f"the optimizer keeps {key}, of no parameter: have optimizer_arrays() say how to save it")
        owner = max(owners, key=len)
        kind = key.removeprefix(f"{owner}_").removesuffix("_0")
        arrays[f"{names[owner]}/{kind}"] = value.numpy()
    return arrays


def save_checkpoint(run: Run):
    """Rank 0 writes a checkpoint, whole or not at all."""
    if run.machine.rank == 0:
        path = f"{run.args.output_dir}/paddle_{run.progress.global_step}"
        try:
            with utils.atomic_directory(path) as folder:
                write_checkpoint(run, folder)
        except (OSError, SafetensorError) as error:
            found = list(checkpoints_in(run.args.output_dir).values())
            remedy = f"; --resume_from_checkpoint auto goes on from {found[-1]}" if found else ""
            raise UserError(f"cannot write {path} ({error}): see to the disk{remedy}") from error
    wait_for_all_ranks()  # a rank that ends, and is started again, must find the checkpoint


def write_checkpoint(run: Run, folder: str):
    """Fills a directory with all that a checkpoint holds."""
    training_state = Path(folder, "training_state")
    training_state.mkdir()
    run.model.save_pretrained(folder, safe_serialization=True)
    for name, content in run.data.tokenizer_files.items():
        Path(folder, name).write_bytes(content)
    utils.limit_length(folder)
    arrays = optimizer_arrays(run.model, run.optimizer)
    save_file(arrays, training_state / "optimizer.safetensors")
    state = asdict(run.progress) | {
        "identity": run.identity,
        "data": run.data.description,
        "row_length": run.data.train.longest,
        "scaler": run.scaler.state_dict(),
        "optimizer": type(run.optimizer).__name__,
        "num_moments": len(arrays),
        "arguments": vars(run.args),
    }
    text = json.dumps(state, indent=2, default=np.ndarray.tolist)  # the scaler's scale is an array
    (training_state / "state.json").write_text(text)
    utils.write_checksums(folder)


def delete_old_checkpoints(run: Run):
    """On rank 0, keeps the newest --save_total_limit checkpoints up to this step, and the best one."""
    limit, found = run.args.save_total_limit, checkpoints_in(run.args.output_dir)
    if limit is None or run.machine.rank != 0:
        return
    # Those beyond this step are of an abandoned run; the one just written counts.
    steps = [step for step in found if step <= run.progress.global_step]
    for step in steps[:-limit]:
        if step == run.progress.best.get("step"):
            continue
        try:
            if os.path.islink(found[step]):  # of one that was moved elsewhere, where it stays
                os.unlink(found[step])
            else:
                shutil.rmtree(found[step])
        except OSError as error:
            log(f"warning: an old checkpoint could not be deleted: {error}")


# -------- the report
class Report:
    """What rank 0 tells: on the terminal, in metrics.jsonl, to VisualDL and as curve.png."""

    def __init__(self, args, data: Data):
        self.output_dir, self.data_description = args.output_dir, data.description
        self.visualdl, self.bar = None, None
        self.yardsticks = {}  # of each validation set
        for name, rows in data.validation.items():
            without_context, entropy = utils.yardsticks(rows, data.tokenizer)
            self.yardsticks[name] = {"unigram_entropy": entropy, "loss_without_context": without_context}
            log(
                f"yardsticks{in_words(name)}: below {without_context:.3f} the model uses the context; "
                f"{entropy:.3f} is the best from word frequencies"
            )

    def log_start(self, run: Run, sampler: UpdateSampler, goes_on: bool):
        """Says what is about to be trained; opens the files of a run, which goes on with those here or begins them."""
        args, total_steps, step = run.args, run.total_steps, run.progress.global_step
        ended_by = ""
        if args.num_train_epochs is not None and args.max_steps > 0:
            ended_by = ", ended by --max_steps" if total_steps == args.max_steps else ", ended by --num_train_epochs"
        log(
            f"data: {sampler.num_rows:,} rows, {total_steps:,} updates of {sampler.global_batch:,} rows "
            f"({total_steps / sampler.updates_per_epoch:.3g} epochs{ended_by}), "
            f"{run.progress.warmup_steps:,} of them warmup{describe_stages(run)}"
        )
        if total_steps < args.logging_steps:
            log(f"--logging_steps {args.logging_steps}: more than there are updates; no training loss will be reported")
        self.bar = tqdm(desc="training", total=total_steps, initial=step, unit="update", disable=None)
        if run.machine.rank == 0:
            if goes_on:
                utils.cut_metrics(self.output_dir, step)
            else:
                utils.set_aside_earlier_run(self.output_dir)
            # VisualDL shows only one file of a directory, so each start gets a directory of its own.
            self.visualdl = LogWriter(utils.free_path(f"{self.output_dir}/visualdl/from_{step}"))

    def log_update(self, run: Run, result: dict):
        """Moves the bar, and says that an update was skipped."""
        if result["skipped"]:
            what = "loss {loss_sum:g}, gradient norm {grad_norm:g}".format(**result)
            log(f"step {run.progress.global_step:,}: skipped ({what})")
        self.bar.update()

    def log_training(self, run: Run, result: dict):
        """Reports the updates since the last report: their mean loss, their speed, when the run will end."""
        step, window = run.progress.global_step, run.progress.window
        seconds = window["seconds"]
        record = {
            "loss": window["loss_sum"] / window["num_masked"] if window["num_masked"] else None,
            "learning_rate": run.optimizer.get_lr(),
            "grad_norm": result["grad_norm"],  # of the last update, before clipping
            "skipped_updates": window["skipped_updates"],
            "loss_scale": result["loss_scale"],
            "steps_per_second": window["updates"] / seconds,
            "tokens_per_second": window["tokens"] / seconds,  # all positions, of all ranks
            "tflops": window["flops"] / seconds / 1e12,
            "data_wait_percent": 100 * window["data_seconds"] / seconds,
            "eta_hours": (run.total_steps - step) * seconds / window["updates"] / 3600,
        }
        log(
            f"step {step:,}/{run.total_steps:,}  loss {shown_loss(record, window)}  "
            f"rate {record['learning_rate']:.2e}  {record['tokens_per_second']:,.0f} tokens/s  "
            f"{utils.duration(3600 * record['eta_hours'])} left"
        )
        self.write("train", step, record)

    def log_evaluations(self, run: Run, evaluations: dict[str, dict]):
        """Reports an evaluation of each validation set; draws the curve anew."""
        step, is_training = run.progress.global_step, run.total_steps > 0
        records = {}
        for name, evaluation in evaluations.items():
            records[name] = evaluation | self.yardsticks[name]
            place = in_words(name) + (f" at step {step:,}" if is_training else "")
            numbers = f"{loss_and_perplexity(evaluation)}, accuracy {evaluation['accuracy']:.2%}"
            verdict = where_it_stands(records[name])
            if is_training and piece_length_at(step, run) is not None:
                verdict += " (so far this run has trained on short pieces alone; this is the loss on whole rows)"
            log(f"evaluation{place}: {numbers}: {verdict}")
        first, *others = records
        if is_on_plateau(run, records[first]):
            log(
                f"still on the plateau after {step:,} updates: start anew, in another --output_dir, with "
                f"{'another --learning_rate' if run.recipe.stages else '--recipe growing_rows'} and --dropout 0; "
                "a large model may only need more updates"
            )
        # The first set's numbers stand in the record itself, those of the others below their names.
        record = records[first] | {name: records[name] for name in others}
        if first != "validation":
            record["first_set"] = first
        if not is_training:  # several may stand in one file
            record |= {"model": run.args.model_name_or_path, "data": self.data_description}
        self.write("evaluation", step, record)
        if is_training and run.machine.rank == 0:
            try:
                utils.draw_curve(utils.read_metrics(f"{self.output_dir}/metrics.jsonl"), f"{self.output_dir}/curve.png")
            except ValueError as error:  # somebody else wrote into metrics.jsonl: no reason to end a training
                log(f"warning: no curve is drawn: {error}")

    def log_end(self, run: Run, evaluations: dict[str, dict] | None):
        """Says where the run ended, and what is best; None stands for an end by a signal."""
        progress = run.progress
        if evaluations is None:
            step, found = progress.global_step, checkpoints_in(self.output_dir)
            way = "auto"
            if step != max(found, default=None):  # then auto would take that of an abandoned run, or none
                way = shlex.quote(found.get(step, run.args.resume_from_checkpoint))
            log(f"stopped by a signal after step {step}: add --resume_from_checkpoint {way} to go on")
            return
        place, best = in_words(next(iter(evaluations))), progress.best
        log(f"best: step {best['step']}, evaluation{place} loss {best['eval_loss']:.4f}")
        # A run that had nothing left to do may have begun from a checkpoint elsewhere, and written none here.
        reached = checkpoints_in(self.output_dir).get(progress.global_step, run.args.resume_from_checkpoint)
        log(f"done: {reached}, evaluation{place} {loss_and_perplexity(first_of(evaluations))}")

    def write(self, event: str, step: int, record: dict):
        """Adds a record to metrics.jsonl, and its numbers to VisualDL. On rank 0, where there is an --output_dir."""
        if self.output_dir is None or dist.get_rank() != 0:
            return
        utils.add_metrics(self.output_dir, {"event": event, "step": step} | record)
        if self.visualdl:
            for name, value in numbers_of(record).items():
                self.visualdl.add_scalar(f"{event}/{name}", value, step)
            self.visualdl.flush()  # its thread does so only now and then


def log_what_is_evaluated(args, data: Data):
    """Before an evaluation alone: which rows it is of."""
    together = " together" if len(args.input_file) > 1 else ""
    for name, rows in data.validation.items():
        drawn = f"{args.max_eval_rows:,} drawn of " if 0 < args.max_eval_rows < len(rows) else ""
        log(f"evaluating{in_words(name)}: {drawn}{len(rows):,} rows of {' '.join(args.input_file)}{together}")


def shown_loss(record: dict, window: dict) -> str:
    """The loss of a report, or why there is none."""
    if record["loss"] is not None:
        return f"{record['loss']:.3f}"
    return "none: all skipped" if window["skipped_updates"] == window["updates"] else "none: no token was masked"


def in_words(name: str) -> str:
    """What stands behind "evaluation" for a validation set that has a name of its own."""
    return "" if name == "validation" else f" of {name}"


def loss_and_perplexity(evaluation: dict) -> str:
    perplexity = evaluation["perplexity"]
    digits = ".2f" if perplexity < 1e6 else ".1e"  # of a run that diverged it has up to 304
    return f"loss {evaluation['eval_loss']:.4f}, perplexity {perplexity:{digits}}"


def numbers_of(record: dict) -> dict[str, float]:
    """The finite numbers in a record, those of a further validation set as "validation_german/eval_loss"."""
    numbers = {}
    for name, value in record.items():
        if isinstance(value, dict):
            numbers |= {f"{name}/{key}": inner for key, inner in numbers_of(value).items()}
        elif isinstance(value, int | float) and math.isfinite(value):
            numbers[name] = value
    return numbers


def where_it_stands(evaluation: dict) -> str:
    """What a model of that loss has learned, in words, held against both yardsticks."""
    if evaluation["eval_loss"] < evaluation["loss_without_context"]:
        return "it uses the context"
    if evaluation["eval_loss"] < evaluation["unigram_entropy"]:
        return "it knows how often words occur, and does not use the context yet"
    return "it does not know yet how often words occur"


def describe_stages(run: Run) -> str:
    """Until which updates of this run rows are cut into pieces, as an addition to a sentence; none says nothing."""
    longest, planned_steps = run.data.train.longest, run.progress.planned_steps
    return "".join(
        f"; pieces of {stage[0]} tokens until update {math.floor(end_of_stage(stage, planned_steps)):,}"
        for stage in run.recipe.stages
        if stage[0] < longest and end_of_stage(stage, planned_steps) >= 1
    )


def is_on_plateau(run: Run, evaluation: dict) -> bool:
    """Whether a model does not use the context though it has seen whole rows, and PLATEAU_UPDATES updates."""
    step = run.progress.global_step
    if step < PLATEAU_UPDATES or piece_length_at(step, run) is not None:
        return False
    return evaluation["eval_loss"] >= evaluation["loss_without_context"]


class StopSignal:
    """Whether the run is asked to end: by SIGTERM, SIGHUP or SIGINT, within catching_signals()."""

    def __init__(self):
        self.requested = False

    @contextmanager
    def catching_signals(self):
        """In the block these signals set `requested`; a second SIGINT ends the process."""
        before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
        for signum, handler in before.items():
            if handler != signal.SIG_IGN:  # nohup ignores SIGHUP, and so does the run then
                signal.signal(signum, self.handle)
        try:
            yield
        finally:
            for signum, handler in before.items():
                if handler is not None:  # one that was not set in Python
                    signal.signal(signum, handler)

    def handle(self, signum, frame):
        self.requested = True  # and nothing else: the launcher sends SIGTERM up to three times
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


# -------- machine, data, arguments
def start_machine(args) -> Machine:
    """Selects device and precision, and says which; joins a launcher's other ranks.

    It comes before anything slow, so that a wrong device is refused at once.
    """
    paddlenlp_logger.set_level("WARNING")
    version = f"Paddle {paddle.__version__}"
    device = choose_device(args.device)
    paddle.set_device(device)
    if "PADDLE_TRAINER_ID" in os.environ:
        end_with_the_launcher()
    if dist.get_world_size() > 1:
        if device == "cpu":  # else Paddle takes NCCL, and the GPU, where it sees one (distributed/parallel.py)
            os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"
        dist.init_parallel_env()
    with explaining(f"{version} does not compute on this device: see the README's Install"):
        (paddle.ones([2]) + 1).numpy()  # PyPI's 2.6.2 has code for sm_61 to sm_86 only
    precision, reason = choose_precision(args, device)
    if args.recompute and args.max_steps != 0 and device == "cpu" and onednn() is not None:
        raise UserError("--recompute True is for GPUs: a CPU's layers keep little; leave it out")
    machine = Machine(device, precision, dist.get_rank(), dist.get_world_size())
    threads = f" of {os.environ['OMP_NUM_THREADS']} thread(s)" if device == "cpu" else ""
    processes = f"{machine.world_size} process(es){threads}"
    log(f"device: {device}, {processes}, {version}; products in {precision} ({reason})")
    log_unused_flags(args, machine)
    return machine


def choose_device(given: str | None) -> str:
    """The device of --device, or the GPU where Paddle sees one, or the CPU."""
    has_gpu = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    device = given or ("gpu" if has_gpu else "cpu")
    is_there = {"cpu": True, "gpu": has_gpu, "xpu": paddle.is_compiled_with_xpu()}
    if not is_there[device]:
        raise UserError(f"--device {device}: Paddle {paddle.__version__} sees none; try cpu")
    return device


def choose_precision(args, device: str) -> tuple[str, str]:
    """The precision of matrix products, and why."""
    if not args.amp:
        if args.amp_dtype:
            raise UserError(f"--amp_dtype {args.amp_dtype} needs --amp True: leave one of them out")
        return "float32", "--amp False"
    if device == "cpu":
        if args.amp_dtype == "float16":
            raise UserError("--amp_dtype float16: a CPU computes in bfloat16 or float32; leave it out")
        if onednn() is not None and onednn().has_bfloat16:
            return "bfloat16", "native on this processor"
        if args.amp_dtype:
            raise UserError("--amp_dtype bfloat16: this processor computes in float32 alone; leave it out")
        return "float32", "no bfloat16 on this processor"
    precision = args.amp_dtype or ("bfloat16" if has_ampere() else "float16")
    if precision == "bfloat16" and device == "gpu" and not has_ampere():
        raise UserError("--amp_dtype bfloat16: this GPU is older than Ampere; take float16")
    return precision, "--amp True"


def has_ampere() -> bool:
    """Whether the device is a GPU with bfloat16 and FlashAttention."""
    is_gpu = paddle.get_device().startswith("gpu")
    return is_gpu and paddle.device.cuda.get_device_capability() >= (8, 0)


def end_with_the_launcher():
    """Has Linux end this rank when its launcher ends, as by SIGKILL, or SIGHUP, which it passes on to none.

    By SIGTERM, so that the ranks save. Of several machines by SIGKILL: those of the others would save, too, and end in
    peace, and the loop around their launcher with them.
    """
    signum = signal.SIGTERM if os.environ.get("PADDLE_NNODES", "1") == "1" else signal.SIGKILL
    with suppress(OSError, AttributeError):  # other systems have no prctl
        ctypes.CDLL(None).prctl(1, signum)  # 1 is PR_SET_PDEATHSIG


def choose_recipe(args) -> Recipe:
    """The recipe of --recipe, or of the architecture, with the flags that are given instead; says what it is."""
    default = "growing_rows" if args.model_name_or_path in GROWING else "roberta"
    name = args.recipe or default
    recipe = RECIPES[name]
    if name == "growing_rows" and args.model_name_or_path in GROWING:
        rates = GROWING[args.model_name_or_path]
        optimizer = args.optimizer or next(iter(rates))
        recipe = replace(recipe, optimizer=optimizer, learning_rate=rates[optimizer])
    if args.mlm_probability is not None:  # a given share is kept to the end, unless that is given, too
        recipe = replace(recipe, final_mlm_probability=args.mlm_probability)
    given = {name: getattr(args, name) for name in asdict(recipe) if getattr(args, name) is not None}
    recipe = replace(recipe, **given)
    if args.max_steps != 0:
        other = "" if name == "roberta" else "; --recipe roberta for RoBERTa's own settings"
        log(f"recipe {name}: {describe_recipe(recipe)}{other}")
    return recipe


def describe_recipe(recipe: Recipe) -> str:
    """A recipe in a line, as the start of a run prints it."""
    rows = "whole rows"
    if recipe.stages:
        pieces = []
        for length, share, *at_most in recipe.stages:
            limit = f" (at most {at_most[0]:,})" if at_most else ""
            pieces.append(f"pieces of {length} tokens until {percent(share)} of the updates{limit}")
        rows = f"rows cut into {', '.join(pieces)}, then whole"
    share = percent(recipe.mlm_probability)
    if recipe.final_mlm_probability != recipe.mlm_probability:
        share += f" falling to {percent(recipe.final_mlm_probability)}"
    dropout = "the model's dropout" if recipe.dropout is None else f"dropout {recipe.dropout:g}"
    return (
        f"{rows}; {share} of the tokens predicted; {recipe.optimizer}, rate {recipe.learning_rate:g}; "
        f"weight decay {recipe.weight_decay:g}; {dropout}; "
        f"{recipe.initialization} initialization of a new model"
    )


def percent(share: float) -> str:
    """A share in percent, to three digits: 0.002 is 0.2%, and not 0%."""
    return f"{100 * share:.3g}%"


def load_data(args, recipe: Recipe) -> Data:
    """Reads the data sets of --input_file as one."""
    named = f"--input_file {' '.join(args.input_file)}"
    with explaining(f"{named}: not a data set of create_data.py, or damaged: prepare it anew"):
        digests = {}
        for i, folder in enumerate(args.input_file):
            digests |= {f"{i}.{name}": digest for name, digest in digests_of_rows(folder).items()}
        tokenizer, files = load_tokenizer(args.input_file)
        sets = [utils.open_data_set(folder) for folder in args.input_file]
        train = TokenRows(*(one["train"] for one in sets))
        validation = {name: TokenRows(*(one[name] for one in sets if name in one)) for name in names_of(sets)}
        check_ids([train, *validation.values()], tokenizer)
    for name, rows in validation.items():
        if len(rows) == 0 and len(validation) > 1:
            log(f"warning: {named}: {name} has no rows and is left out")
    validation = {name: rows for name, rows in validation.items() if len(rows)}
    if not validation:
        raise UserError(f"{named}: no rows to evaluate: hold out more text")

    warn_of_repeated_parts(args.input_file, sets, digests)

    splits = [train, *validation.values()]
    longest = max(rows.longest for rows in splits)
    limit = args.max_seq_length or longest
    if longest > limit:
        raise UserError(
            f"{named}: rows of {longest} tokens, --max_seq_length {limit}: raise it, or prepare shorter ones"
        )
    is_padded = any(rows.shortest < rows.longest or rows.ends_with(tokenizer.pad_token_id) for rows in splits)
    # Rows whose length is no multiple of a stage's pieces are padded, too.
    is_padded = is_padded or any(length < train.longest and train.longest % length for length, *_ in recipe.stages)
    counts = [f"{len(one['train']):,} rows of {folder}" for folder, one in zip(args.input_file, sets)]
    counts += [f"{len(rows):,} of {name}" for name, rows in validation.items()]
    description = f"{', '.join(counts)}, digest {digest_of_names(digests)}"
    return Data(
        tokenizer=tokenizer,
        tokenizer_files=files,
        train=train,
        validation=validation,
        seq_length=limit,
        is_padded=is_padded,
        digests=digests,
        description=description,
    )


def warn_of_repeated_parts(folders: list[str], sets: list, digests: dict[str, str]):
    """Warns where two data sets of --input_file hold the same training rows."""
    first_sets = {}  # their places, by the digests of their files to train on
    for i, folder in enumerate(folders):
        rows = tuple(digest for name, digest in digests.items() if name.startswith(f"{i}.train/"))
        first = first_sets.setdefault(rows, i)
        if first != i and len(sets[i]["train"]) > 0:
            log(
                f"warning: {folder} holds the same rows as {folders[first]}: each is trained on as often as it is named"
            )


def names_of(sets: list) -> list[str]:
    """The names of the validation sets: "validation" first, where there is one, then as they come."""
    names = [name for splits in sets for name in splits if name.startswith("validation")]
    return sorted(dict.fromkeys(names), key=lambda name: name != "validation")


def check_ids(splits: list[TokenRows], tokenizer):
    """Raises UserError where a row holds an id that the tokenizer does not have: the model would have no row for it."""
    size = utils.vocabulary_size(tokenizer)
    for rows in splits:
        if rows.lowest_id < 0 or rows.highest_id >= size:
            ids = f"ids from {rows.lowest_id} to {rows.highest_id}"
            raise UserError(f"--input_file: {ids}, beyond the tokenizer's vocabulary of {size}: prepare it anew")


def load_tokenizer(folders: list[str]) -> tuple:
    """The tokenizer of the first data set, and its files' contents; that of the others must be the same."""
    first, *others = [Path(folder, "tokenizer") for folder in folders]
    files = {path.name: path.read_bytes() for path in sorted(first.iterdir()) if path.is_file()}
    for name in ("tokenizer_config.json", "vocab.json", "merges.txt"):
        if name not in files:
            raise FileNotFoundError(f"{first}/{name} is missing")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(first))
    for other in others:
        same_ids = json.loads(Path(other, "vocab.json").read_bytes()) == json.loads(files["vocab.json"])
        if not same_ids or Path(other, "merges.txt").read_bytes() != files["merges.txt"]:
            raise UserError(f"{other} is another tokenizer: prepare all with --tokenizer_name {first}")
    return tokenizer, files


def digests_of_rows(folder: str) -> dict[str, str]:
    """Size and SHA-256 of a data set's Arrow files; each file that data_card.json knows is compared with it."""
    card = Path(folder, "data_card.json")
    expected = json.loads(card.read_bytes()).get("files", {}) if card.exists() else {}
    # `datasets` writes cache-....arrow beside the rows where someone has looked at them with map() or filter().
    rows = (path for path in Path(folder).glob("*/*.arrow") if not path.name.startswith("cache-"))
    names = {path.relative_to(folder).as_posix() for path in rows}
    digests = {}
    for name in sorted(names | set(expected)):
        path = Path(folder, name)
        digest = utils.sha256_of(path)
        if name in expected and expected[name]["sha256"] != digest:
            raise UserError(f"{path} is not as create_data.py wrote it (SHA-256 in data_card.json): prepare it anew")
        if name in names:
            digests[name] = f"{path.stat().st_size} bytes, {digest}"
    return digests


def digest_of_names(digests: dict[str, str]) -> str:
    """The first 8 digits of a digest of all files' digests, for people to tell data sets apart."""
    text = "".join(f"{name} {digest} " for name, digest in sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def check_memory(args, recipe: Recipe, machine: Machine, data: Data, config):
    """Raises UserError where the machine cannot hold what is certainly needed: better now than in an hour's time."""
    for_model, for_batch = least_memory(args, recipe, machine, data, config)
    there = memory_of(machine.device)
    if for_model + for_batch > there:
        remedy = "lower --batch_size" if for_batch > for_model else "take a smaller model, or fewer positions"
        raise UserError(
            f"out of memory: {for_model / 1e9:,.1f} GB for the model and {for_batch / 1e9:,.1f} GB for --batch_size "
            f"{args.batch_size} are needed, or more, and this machine has {there / 1e9:,.1f} GB: {remedy}"
        )


def least_memory(args, recipe: Recipe, machine: Machine, data: Data, config) -> tuple[float, float]:
    """The bytes that a model and one micro-batch of average rows need, each a lower bound.

    The model: weights, and in training their gradients and moments (two; of Muon one), in float32. The batch, in half
    precision: the widest activations of one layer (evaluation, recomputation) or of all, and the logits of what is
    predicted, which an evaluation on a CPU never holds.
    """
    is_evaluation = args.max_steps == 0
    width, layers = config.hidden_size, config.num_hidden_layers
    embeddings = (config.vocab_size + config.max_position_embeddings) * width
    matrices = layers * (4 * width + 2 * config.intermediate_size) * width
    for_model = 4 * (4 * embeddings + (3 if recipe.optimizer == "muon" else 4) * matrices)
    predicted = recipe.mlm_probability
    splits, rows = [data.train], args.batch_size
    if is_evaluation:
        for_model = 4 * (embeddings + matrices)
        predicted = 0 if machine.device == "cpu" else args.eval_mlm_probability
        splits = data.validation.values()
        if args.max_eval_rows > 0:
            rows = min(args.batch_size, math.ceil(args.max_eval_rows / machine.world_size))

    tokens = max(split.num_tokens * min(rows, len(split)) / max(1, len(split)) for split in splits)
    kept_layers = 1 if is_evaluation or args.recompute else layers
    for_batch = 2 * tokens * (kept_layers * config.intermediate_size + predicted * config.vocab_size)
    return for_model, for_batch


def check_validation(args, data: Data, collator: DataCollatorMLM):
    """Raises UserError where a validation set has no token to predict, or one whose words cannot be told: better now
    than at the first evaluation."""
    for name, rows in data.validation.items():
        batches = utils.evaluation_batches(len(rows), args.batch_size, max_rows=args.max_eval_rows)
        with explaining_words(collator):
            if collator.words is not None:
                collator(utils.sample_of(rows))
            is_evaluated = any((collator([rows[key]])["labels"] >= 0).any() for keys in batches for key in keys)
        if not is_evaluated:
            raise UserError(
                f"no validation token was chosen for prediction in {name}, {len(rows):,} rows: hold out more text for "
                "it, or raise --eval_mlm_probability or --max_eval_rows"
            )
    if collator.words is not None:
        collator.words.is_strict = False


def memory_of(device: str) -> int:
    """The bytes of memory that a device has in all."""
    if device == "gpu":
        return paddle.device.cuda.get_device_properties().total_memory
    limits = [psutil.virtual_memory().total]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container, in the two versions of cgroups
        with suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(Path("/sys/fs/cgroup", file).read_text()))
    return min(limits)


def parse_arguments(argv: list | None) -> argparse.Namespace:
    """The command line's arguments. Whatever follows from them is a value of its own: nothing is written to them."""
    parser = build_parser()
    given = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(given)
    if args.max_steps != 0:
        # Evaluating alone writes nothing unless it is asked to; training always has a directory.
        return parser.parse_args(["--output_dir", "ckp", *given])
    if args.resume_from_checkpoint != "no":
        newest = list(checkpoints_in(args.output_dir or "ckp").values())[-1:] or ["CHECKPOINT"]
        raise UserError(
            "--max_steps 0 evaluates and resumes nothing: leave out --resume_from_checkpoint, and give "
            f"--model_name_or_path {shlex.quote(newest[0])}"
        )
    return args


def log_unused_flags(args, machine: Machine):
    """Says which flags were given another value than their default, and do nothing in this run."""
    parser = build_parser()
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    if args.max_steps == 0:
        unused = sorted(f"--{name}" for name in given & parser.for_training())
        if unused:
            log(f"not used by an evaluation alone (--max_steps 0): {', '.join(unused)}")
    elif "scale_loss" in given and machine.precision != "float16":
        log(f"not used, as products are in {machine.precision} and not in float16: --scale_loss")


def checkpoint_to_resume(text: str) -> str:
    """The argparse type of --resume_from_checkpoint."""
    if text.lower() in ("true", "false") and not os.path.exists(text):
        instead = "auto" if text.lower() == "true" else "no"
        raise argparse.ArgumentTypeError(f"{text} is no checkpoint: write {instead}, or a checkpoint's path")
    return text


def stages(text: str) -> tuple[tuple, ...]:
    """The argparse type of --stages: none, or (length, share) or (length, share, updates) of each, all rising."""
    if text == "none":
        return ()
    found = [stage.split(":") for stage in text.split(",")]
    if {len(stage) for stage in found} not in ({2}, {3}):
        raise argparse.ArgumentTypeError(
            f"{text}: give LENGTH:SHARE of each stage, or LENGTH:SHARE:UPDATES of each, with commas between them"
        )
    lengths, shares, *updates = zip(*found)
    lengths, shares = [int(length) for length in lengths], [float(share) for share in shares]
    if not rises(lengths) or any(utils.LENGTH_MULTIPLE % length for length in lengths):
        raise argparse.ArgumentTypeError(f"{text}: lengths must rise, and be divisors of {utils.LENGTH_MULTIPLE}")
    if not rises(shares) or shares[-1] > 1:
        raise argparse.ArgumentTypeError(f"{text}: shares of the updates must rise, up to 1")
    if not updates:
        return tuple(zip(lengths, shares))
    at_most = [int(update) for update in updates[0]]
    if not rises(at_most):
        raise argparse.ArgumentTypeError(f"{text}: numbers of updates must rise")
    return tuple(zip(lengths, shares, at_most))


def rises(numbers: list) -> bool:
    """Whether each number is larger than the one before it, and the first one than 0."""
    return all(before < number for before, number in zip([0, *numbers], numbers))


def stages_as_text(found) -> str:
    """Stages as --stages takes them."""
    return ",".join(":".join(map(str, stage)) for stage in found) or "none"


def build_parser() -> utils.ArgumentParser:
    """All flags. One changes the result, and is refused on resuming, unless it says that it may change.

    One that says `for_training` does nothing where --max_steps 0 evaluates.
    """
    parser = utils.ArgumentParser("Pretrain RoBERTa with masked language modelling.")
    positive, not_negative, boolean = number(int, 1, 10**9), number(float, 0, 1e30), utils.boolean

    add = parser.group("data")
    add(
        "--input_file",
        may_change=True,  # its rows are compared instead
        nargs="+",
        default=["wiki"],
        metavar="DIR",
        help="directories that create_data.py wrote; several are trained on as one data set",
    )
    add(
        "--max_seq_length",
        may_change=True,  # the model's positions are compared instead
        type=number(int, 4, 2**20),
        help="tokens in the longest row that is accepted, which a new model's positions are made for; rows are not "
        "cut: a longer one is an error (default: the longest row of the data)",
    )
    add(
        "--mlm_probability",
        for_training=True,
        type=number(float, 1e-9, 1),
        help="share of the tokens that are predicted in training: of these 80 %% are masked, 10 %% replaced by any "
        "token and 10 %% left as they are (default: the recipe's, 0.15 or 0.4)",
    )
    add(
        "--final_mlm_probability",
        for_training=True,
        type=number(float, 1e-9, 1),
        help="the share at the end of training, to which it goes in a line from update to update (default: "
        "--mlm_probability where that is given, else the recipe's, 0.15)",
    )
    add(
        "--eval_mlm_probability",
        type=number(float, 1e-9, 1),
        default=0.15,
        help="the same share in evaluations, so that runs with different shares in training can be compared",
    )
    add(
        "--whole_word_masking",
        type=boolean,
        default=False,
        help="whether all tokens of a word are chosen together, instead of single tokens; in evaluations, too",
    )

    add = parser.group("model")
    add(
        "--model_name_or_path",
        may_change=True,  # the configuration is compared instead
        default="roberta-en-base",
        help=f"an architecture to train from scratch ({', '.join(ARCHITECTURES)}), or a directory or hub id with "
        "weights to continue from; a directory with a config.json alone is trained from scratch",
    )
    add(
        "--resize_model",
        may_change=True,  # the configuration is compared instead
        type=boolean,
        default=False,
        help="whether the model of --model_name_or_path gets more tokens and positions where the data needs them: new "
        "tokens begin as the mean of the others, new positions repeat the others; False refuses such data",
    )
    add(
        "--dropout",
        for_training=True,
        may_change=True,  # the configuration is compared instead
        type=number(float, 0, 0.99),
        help="share of hidden values and attention weights that are dropped in training (default: the recipe's, which "
        "is 0, or the model's own, 0.1 from scratch)",
    )
    add(
        "--recipe",
        for_training=True,
        may_change=True,  # what it sets is compared instead
        choices=list(RECIPES),
        help="settings for what is not given: `roberta` has RoBERTa's; `growing_rows` takes small models past the "
        "plateau where they do not use the context: rows cut into short pieces at first, more tokens predicted, a "
        "higher rate and weight decay, no dropout, positions that begin as sinusoids (default: growing_rows for "
        f"{', '.join(GROWING)}, "
        "roberta for others and for weights that are continued)",
    )
    add(
        "--initialization",
        for_training=True,
        choices=["normal", "sinusoids"],
        help="how a new model begins: `normal` is RoBERTa's way; `sinusoids` begins positions as sinusoids, which are "
        "learned on, other weights larger, and the output bias as word frequencies (default: the recipe's)",
    )
    add(
        "--stages",
        for_training=True,
        type=stages,
        metavar="LENGTH:SHARE[:UPDATES],...",
        help="8:0.2:600,32:0.3:900 cuts rows into pieces of 8 tokens until 20 %% of the updates, and until update 600 "
        "at most, then into pieces of 32 until 30 %%, and update 900 at most, and leaves them whole then; 8:0.2,32:0.3 "
        "sets shares alone; each piece has positions of its own and sees no other; `none` leaves rows whole "
        "(default: the recipe's)",
    )

    add = parser.group("optimization")
    rates = [f"{name} " + ", ".join(f"{rate:g} ({by})" for by, rate in own.items()) for name, own in GROWING.items()]
    by_muon = [name for name, own in GROWING.items() if next(iter(own)) == "muon"]
    add(
        "--optimizer",
        for_training=True,
        choices=["adamw", "muon"],
        help="`adamw` is RoBERTa's; `muon` gives the matrices of layers steps whose singular values are all about the "
        "same, and the rest AdamW's: more is learned from as many tokens, most of all in short runs, and an update "
        f"takes longer (default: adamw; muon for {', '.join(by_muon)} with the recipe growing_rows)",
    )
    add(
        "--batch_size",
        may_change=True,  # as long as the global batch stays
        type=positive,
        default=16,
        help="rows per device and micro-batch; the global batch is this times --gradient_accumulation_steps times "
        "the number of processes",
    )
    add(
        "--gradient_accumulation_steps",
        for_training=True,
        may_change=True,  # as long as the global batch stays
        type=positive,
        default=1,
        help="micro-batches of each device in an update; more take less memory for the same global batch",
    )
    add(
        "--learning_rate",
        for_training=True,
        type=not_negative,
        help="the peak learning rate, reached after the warmup (default: 1e-4; with the recipe growing_rows "
        f"{'; '.join(rates)}; {RECIPES['growing_rows'].learning_rate:g} for others)",
    )
    add(
        "--lr_scheduler",
        for_training=True,
        choices=["linear", "cosine", "constant_with_warmup"],
        default="linear",
        help="what follows the warmup: a line or a half cosine to 0 just after the last update, or the peak for as "
        "long as you like",
    )
    add(
        "--warmup_steps",
        for_training=True,
        type=not_negative,
        default=0.06,
        help="updates in which the learning rate rises to its peak; below 1, their share of all updates",
    )
    add(
        "--weight_decay",
        for_training=True,
        type=not_negative,
        help="decoupled decay of matrices and embeddings; biases and LayerNorms never decay (default: "
        f"{RECIPES['roberta'].weight_decay:g}; with the recipe growing_rows {RECIPES['growing_rows'].weight_decay:g})",
    )
    add(
        "--adam_epsilon",
        for_training=True,
        type=number(float, 1e-30, 1e30),
        default=1e-6,
        help="AdamW's epsilon, which bounds its steps",
    )
    add(
        "--max_grad_norm",
        for_training=True,
        type=not_negative,
        default=1.0,
        help="the norm of the whole gradient to which a longer one is clipped; 0 clips none",
    )
    add(
        "--num_train_epochs",
        for_training=True,
        may_change=True,  # the number of updates is compared instead
        type=number(float, 0, 10**9),
        help=f"passes over the training rows (default: {EPOCHS}, or as many as --max_steps needs where that is given)",
    )
    add(
        "--max_steps",
        may_change=True,  # the number of updates is compared instead
        type=number(int, -1, 10**12),
        default=-1,
        help="updates after which training ends, if --num_train_epochs has not ended it before; -1 sets no limit, "
        "0 trains nothing and evaluates",
    )
    add(
        "--max_skipped_updates",
        for_training=True,
        may_change=True,
        type=positive,
        default=5,
        help="an update whose loss or gradient is not finite changes no weight; so many in a row end the run",
    )
    add(
        "--recompute",
        for_training=True,
        may_change=True,
        type=boolean,
        default=False,
        help="whether the backward pass computes each layer's activations anew, on GPUs: less memory, a third more "
        "arithmetic",
    )
    add(
        "--seed",
        type=number(int, 0, 2**31),
        default=42,
        help="what weights, the order of rows, masks and dropout are drawn from; equal seeds give equal runs",
    )

    add = parser.group("logging and checkpoints")
    add(
        "--output_dir",
        may_change=True,
        help="directory for checkpoints, metrics.jsonl and curve.png (default: ckp; with --max_steps 0, none)",
    )
    add(
        "--logging_steps",
        for_training=True,
        may_change=True,
        type=positive,
        default=100,
        help="updates between reports of loss, learning rate and speed",
    )
    add(
        "--save_steps",
        for_training=True,
        may_change=True,
        type=positive,
        default=10000,
        help="updates between checkpoints, each with an evaluation; the last update always has both",
    )
    add(
        "--save_total_limit",
        for_training=True,
        may_change=True,
        type=positive,
        help="newest checkpoints that are kept, beside the best one (default: all, 1.7 GB each for roberta-en-base)",
    )
    add(
        "--max_eval_rows",
        may_change=True,
        type=number(int, 0, 2**62),
        default=10000,
        help="rows of each validation set that are evaluated, always the same drawn ones; 0 takes all",
    )
    add(
        "--resume_from_checkpoint",
        may_change=True,
        type=checkpoint_to_resume,
        default="no",
        help="`auto` goes on from the newest undamaged checkpoint in --output_dir, or starts where there is none; a "
        "path goes on from that one; `no` starts, and is refused where checkpoints are",
    )

    add = parser.group("runtime")
    add(
        "--device",
        may_change=True,
        choices=["cpu", "gpu", "xpu"],
        help="what computes (default: the GPU, if Paddle sees one, else the CPU)",
    )
    add(
        "--amp",
        may_change=True,  # the precision is compared instead
        type=boolean,
        default=True,
        help="mixed precision: matrix products in bfloat16 where the processor or GPU has it, else in float16 on GPUs "
        "and in float32 on CPUs; weights stay float32",
    )
    add(
        "--amp_dtype",
        may_change=True,  # the precision is compared instead
        choices=["float16", "bfloat16"],
        help="the type of mixed precision (default: chosen by the device, see --amp)",
    )
    add(
        "--scale_loss",
        for_training=True,
        type=number(float, 1e-30, 1e30),
        default=2.0**15,
        help="first factor of the loss in float16, which keeps small gradients; it doubles after 2,000 good updates "
        "and halves after an overflow",
    )
    return parser


# -------- layers in the place of PaddleNLP's (skip on first reading)
def use_fast_layers(model, device: str, precision: str, is_padded: bool):
    """Has the model's layers compute in our ways, once; leave it out for PaddleNLP's, and the same numbers.

    A layer becomes one of another class, and keeps all it has: parameters and their names, hooks, whether it is in
    training. On a CPU it computes with oneDNN then (utils.py), products in `precision` (float16: in float32);
    elsewhere as Paddle does under auto_cast, attention by FlashAttention where the device has it. `is_padded` says
    whether rows may hold <pad>, and so whether attention masks are looked at. Layers that ours do not cover stay as
    they are: see `suits`. So adapters and hooks inside an encoder's layer come first, and this call last.

    ValueError: another precision, or a second call.
    """
    if precision not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"precision is {precision!r}, and none of float32, bfloat16, float16")
    on_cpu = device == "cpu" and onednn() is not None
    classes = {nn.Linear: Linear, TransposedLinear: OutputLayer, nn.MultiHeadAttention: Attention}
    if on_cpu:
        classes |= {nn.LayerNorm: LayerNorm, nn.Dropout: Dropout}
        classes |= {nn.TransformerEncoderLayer: EncoderLayer, RobertaLMHead: LMHead}
    layers = model.sublayers(include_self=True)
    if any(type(layer) in classes.values() for layer in layers):
        raise ValueError("use_fast_layers() was called for this model before")
    for layer in layers:
        faster = classes.get(type(layer))
        if faster is not None and faster.suits(layer):
            layer.__class__ = faster
            layer.on_cpu, layer.precision, layer.is_padded = on_cpu, precision, is_padded
        if hasattr(layer, "takes_attention_masks"):
            layer.takes_attention_masks = is_padded
    if on_cpu and isinstance(getattr(model, "lm_head", None), LMHead):
        embedding, output_layer = model.roberta.embeddings.word_embeddings, model.lm_head.decoder
        if type(embedding) is nn.Embedding and embedding.weight is output_layer.weight:
            embedding.__class__ = Embedding
            embedding.tied_to = [output_layer]  # in a list, so that it is no sublayer
            output_layer.is_tied, output_layer.is_awaited, output_layer.grad_weight = True, False, None


def has_hooks(layer: nn.Layer) -> bool:
    """Whether something is to be called before or behind a layer, which one that is not called itself would lose."""
    return bool(layer._forward_pre_hooks or layer._forward_post_hooks)


class Linear(nn.Linear):
    """[..., in] to [..., out] with a weight [in, out]."""

    @staticmethod
    def suits(layer: nn.Linear) -> bool:
        return layer.bias is not None

    def forward(self, x):
        return linear(self, x, transposed=False)


class OutputLayer(TransposedLinear):
    """PaddleNLP's linear layer whose weight [out, in] is the embedding's, which PaddleNLP would copy."""

    # Whether the embedding's backward pass takes the weight's gradient, which the loss leaves in `grad_weight` for it.
    is_tied = False

    @staticmethod
    def suits(layer: TransposedLinear) -> bool:
        return layer.bias is not None

    def forward(self, x):
        return linear(self, x, transposed=True)


def linear(layer, x, transposed: bool):
    if layer.on_cpu:
        operation = utils.LinearOperation(onednn(), layer.precision, transposed)
        out_shape = [*x.shape[:-1], layer.bias.shape[0]]
        return Function.apply(operation, out_shape, x, layer.weight, layer.bias)
    out = paddle.matmul(x, layer.weight, transpose_y=transposed)
    return out + layer.bias.astype(out.dtype)  # 2.6.2 would give float32


class LayerNorm(nn.LayerNorm):
    """On a CPU, over the last axis."""

    @staticmethod
    def suits(layer: nn.LayerNorm) -> bool:
        return len(layer._normalized_shape) == 1 and layer.weight is not None and layer.bias is not None

    def forward(self, x):
        return Function.apply(utils.LayerNormOperation(onednn(), self._epsilon), x.shape, x, self.weight, self.bias)


class Dropout(nn.Dropout):
    """On a CPU; it follows paddle.seed()."""

    @staticmethod
    def suits(layer: nn.Dropout) -> bool:
        return layer.axis is None and layer.mode == "upscale_in_train"

    def forward(self, x):
        if not (self.training and self.p):
            return x
        return Function.apply(utils.DropoutOperation(onednn(), self.p, drawn_seed()), x.shape, x)


def drawn_seed() -> int:
    return paddle.randint(2**31 - 1).item()


class Attention(nn.MultiHeadAttention):
    """Self-attention of hidden [batch, seq, width]; attn_mask, [batch or 1, 1, 1, seq], is added to the scores.

    Anything else that nn.MultiHeadAttention does is left to it. A CPU's EncoderLayer holds one for its parameters and
    computes attention itself.
    """

    @staticmethod
    def suits(layer: nn.MultiHeadAttention) -> bool:
        return True

    def forward(self, hidden, key=None, value=None, attn_mask=None, cache=None):
        is_self_attention = all(given is None or given is hidden for given in (key, value))
        # PaddleNLP makes a mask of <pad> in any case, [batch, 1, 1, seq]. Others are somebody's own.
        is_padding = attn_mask is None or (attn_mask.dtype != paddle.bool and attn_mask.shape[-2] == 1)
        if cache is not None or self.need_weights or not is_self_attention or not is_padding:
            return super().forward(hidden, key, value, attn_mask, cache)
        mask = attn_mask if self.is_padded else None
        dropout = self.dropout if self.training else 0.0
        query, key, value = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        heads = [x.reshape([*x.shape[:2], self.num_heads, -1]) for x in (query, key, value)]
        if mask is None and query.dtype != paddle.float32 and has_ampere():  # FlashAttention
            context = F.scaled_dot_product_attention(*heads, dropout_p=dropout)
        else:
            q, k, v = (x.transpose([0, 2, 1, 3]) for x in heads)
            scores = paddle.matmul(q * q.shape[-1] ** -0.5, k, transpose_y=True)
            if mask is not None:
                scores = scores + mask.astype(scores.dtype)
            weights = F.dropout(F.softmax(scores), dropout)
            context = paddle.matmul(weights, v).transpose([0, 2, 1, 3])
        return self.out_proj(context.reshape(query.shape))


class EncoderLayer(nn.TransformerEncoderLayer):
    """On a CPU, a whole layer of the encoder at once; its sublayers hold the parameters and PaddleNLP's names."""

    @staticmethod
    def suits(layer: nn.TransformerEncoderLayer) -> bool:
        """Whether it is as BERT's and RoBERTa's are, with nothing in it that would have to be called."""
        is_standard = layer.activation is F.gelu and not layer.normalize_before and not layer.dropout.p
        is_even = layer.dropout1.p == layer.dropout2.p and layer.norm1._epsilon == layer.norm2._epsilon
        parts = [*EncoderLayer.parts_of(layer), layer.self_attn]
        is_plain = all(type(part) in (nn.Linear, nn.LayerNorm, nn.MultiHeadAttention) for part in parts)
        called = [*parts, layer.dropout, layer.dropout1, layer.dropout2]
        if not (is_standard and is_even and is_plain) or any(map(has_hooks, called)):
            return False
        return all(part.weight is not None and part.bias is not None for part in EncoderLayer.parts_of(layer))

    def forward(self, src, src_mask=None, cache=None, output_attentions=False):
        """src and the result are [batch, seq, width]; src_mask is as Attention's, or [..., seq, seq]."""
        if cache is not None or output_attentions:
            return super().forward(src, src_mask, cache, output_attentions)
        attention = self.self_attn
        mask = None
        if src_mask is not None and (self.is_padded or src_mask.shape[-2] > 1):  # see Attention
            mask = src_mask.expand([len(src), *src_mask.shape[1:]]).numpy()
        dropouts = (self.dropout1.p, attention.dropout) if self.training else (0.0, 0.0)
        seeds = [drawn_seed() for _ in range(3)] if any(dropouts) else [0, 0, 0]
        epsilon = self.norm1._epsilon
        operation = utils.EncoderLayerOperation(
            onednn(), self.precision, attention.num_heads, epsilon, mask, *dropouts, seeds
        )
        parameters = [parameter for part in EncoderLayer.parts_of(self) for parameter in (part.weight, part.bias)]
        return Function.apply(operation, src.shape, src, *parameters)

    @staticmethod
    def parts_of(layer: nn.TransformerEncoderLayer) -> list:
        """The layers that hold its parameters, in the order of utils.EncoderParameters."""
        attention = layer.self_attn
        projections = [attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj]
        return [*projections, layer.norm1, layer.linear1, layer.linear2, layer.norm2]


class LMHead(RobertaLMHead):
    """PaddleNLP's head of the language model on a CPU, with a loss that never holds all logits."""

    @staticmethod
    def suits(head: RobertaLMHead) -> bool:
        decoder = head.decoder  # whose parameters the loss takes, without a call of it or of the head
        return type(decoder) is TransposedLinear and not has_hooks(decoder) and not has_hooks(head)

    def forward(self, features, **kwargs):
        return self.decoder(self.transform(features))

    def transform(self, features):
        activated = self.dense(features)
        return self.layer_norm(Function.apply(utils.GeluOperation(onednn()), activated.shape, activated))

    def loss(self, features, labels) -> tuple:
        """The same as cross_entropy(self(features), labels), and how many labels have the highest logit."""
        x, decoder = self.transform(features), self.decoder
        needs_gradient = paddle.is_grad_enabled()
        operation = utils.MaskedLossOperation(onednn(), self.precision, labels.numpy(), needs_gradient)
        loss = MaskedLoss.apply(operation, decoder, x, decoder.weight, decoder.bias)
        return loss, None if needs_gradient else paddle.to_tensor(operation.num_correct)


class Function(paddle.autograd.PyLayer):
    """Runs an operation of utils.py, which computes on arrays, for tensors and their gradients."""

    @staticmethod
    def forward(ctx, operation, out_shape: list, *tensors):
        """The operation keeps what its backward pass needs, and lives as long as Paddle's record."""
        out = paddle.empty(out_shape)
        operation.forward(array_of(out), *map(array_of, tensors))
        ctx.operation, ctx.shapes = operation, [tensor.shape for tensor in tensors]
        ctx.is_frozen = [tensor.stop_gradient for tensor in tensors]
        return out

    @staticmethod
    def backward(ctx, grad_out, gradients=None):
        """gradients: the tensors to write them into, where they are there already."""
        gradients = gradients or [empty_tensor(shape) for shape in ctx.shapes]
        ctx.operation.backward(array_of(grad_out), *map(array_of, gradients))
        ctx.operation = None  # what it kept is free for the backward passes that follow
        # Paddle wants None where a tensor has no gradient, as a weight that is frozen. (In paddle.grad(loss, x) it
        # wants None for weights, too, which cannot be told from here: ask for theirs as well.)
        return tuple(None if frozen else gradient for gradient, frozen in zip(gradients, ctx.is_frozen))


def empty_tensor(shape: list):
    """A float32 tensor; a large one in memory that stays (utils.Buffers)."""
    if math.prod(shape) * 4 < utils.LARGE:
        return paddle.empty(shape)
    array = utils.BUFFERS.take(tuple(shape), np.float32)
    # As paddle.to_tensor() makes one, without its copy: the tensor holds the array. (2.6.2's from_dlpack() copies.)
    settings = {"place": paddle.CPUPlace(), "persistable": False, "stop_gradient": True}
    name = paddle.utils.unique_name.generate("lent")
    return paddle.base.core.eager.Tensor(value=array, zero_copy=True, name=name, **settings)


class MaskedLoss(Function):
    """The same; the memory of the weight's gradient is taken in the forward pass already, which works in it.

    If the weight is the embedding's, its gradient is left for the embedding's backward pass. That runs last, and
    returns one matrix, where Paddle would make two, and add up 50,265 rows.
    """

    @staticmethod
    def forward(ctx, operation, output_layer, x, weight, bias):
        # Where the embedding is frozen, it has no backward pass that would take the gradient.
        is_trained = not x.stop_gradient and not weight.stop_gradient
        leaves_it = is_trained and output_layer.is_tied and output_layer.is_awaited
        ctx.output_layer = output_layer if leaves_it else None
        ctx.grad_weight = None
        if operation.needs_gradient:
            ctx.grad_weight = empty_tensor(weight.shape)
            operation.memory = array_of(ctx.grad_weight)
        return Function.forward(ctx, operation, [], x, weight, bias)

    @staticmethod
    def backward(ctx, grad_loss):
        grad_x, grad_bias = empty_tensor(ctx.shapes[0]), empty_tensor(ctx.shapes[2])
        gradients = Function.backward(ctx, grad_loss, [grad_x, ctx.grad_weight, grad_bias])
        ctx.grad_weight = None
        if ctx.output_layer is None:
            return gradients
        grad_x, grad_weight, grad_bias = gradients
        if ctx.output_layer.grad_weight is not None:  # of another loss, before any embedding's backward pass
            grad_weight.add_(ctx.output_layer.grad_weight)
        ctx.output_layer.grad_weight = grad_weight
        return grad_x, None, grad_bias


class Embedding(nn.Embedding):
    """The word embedding whose weight is the output layer's, too, on a CPU."""

    def forward(self, ids):
        output_layer = self.tied_to[0]
        output_layer.is_awaited = paddle.is_grad_enabled()  # else no backward pass of this one takes the gradient
        return TiedEmbedding.apply(ids, self.weight, self._padding_idx, output_layer)


class TiedEmbedding(paddle.autograd.PyLayer):
    """weight[ids], zeros for <pad>; its gradient is the output layer's with the rows' added."""

    @staticmethod
    def forward(ctx, ids, weight, padding_id: int, output_layer):
        ctx.ids, ctx.shape, ctx.padding_id, ctx.output_layer = ids, weight.shape, padding_id, output_layer
        return F.embedding(ids, weight, padding_idx=padding_id)

    @staticmethod
    def backward(ctx, grad_out):
        grad_weight, ctx.output_layer.grad_weight = ctx.output_layer.grad_weight, None
        if grad_weight is None:
            grad_weight = paddle.zeros(ctx.shape)
        ids, rows = ctx.ids.numpy().reshape(-1), array_of(grad_out).reshape(-1, ctx.shape[1])
        is_word = ids != ctx.padding_id
        utils.add_rows(array_of(grad_weight), ids[is_word], rows[is_word])
        return None, grad_weight


def array_of(tensor):
    """The memory of a float32 tensor as an array, which keeps it alive."""
    tensor = tensor.contiguous()
    if tensor.dtype != paddle.float32 or not tensor.place.is_cpu_place():
        found = f"{tensor.dtype} on {tensor.place}"
        raise TypeError(f"a CPU's layers compute with float32 on the CPU, and this is {found}: leave auto_cast out")
    memory = (ctypes.c_float * tensor.size).from_address(tensor.data_ptr())
    memory.owner = tensor
    return np.frombuffer(memory, np.float32).reshape(tensor.shape)


if __name__ == "__main__":
    utils.command_line(main, TAKES_LESS_MEMORY)
