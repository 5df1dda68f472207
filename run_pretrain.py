"""Pretrain RoBERTa with masked language modelling on the rows that create_data.py wrote.

python run_pretrain.py --input_file demo_data --model_name_or_path roberta-en-tiny --max_steps 800
python -m paddle.distributed.launch --gpus "0,1" run_pretrain.py --input_file wiki --output_dir ckp
python run_pretrain.py --input_file demo_data --model_name_or_path ckp/paddle_800 --max_steps 0
"""

import ctypes
import faulthandler
import io
import json
import math
import os
import shutil
import signal
import sys
import time
from contextlib import nullcontext, redirect_stderr, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports: no traceback
    faulthandler.enable()  # without, SIGTERM crashed 7 of 72 runs

import utils
from utils import IGNORE_INDEX, DataCollatorMLM, TokenRows, UpdateSampler
from utils import explaining, log, number, onednn, require, rounded

utils.prepare_for_paddle()  # threads and memory

import numpy as np

with redirect_stderr(io.StringIO()):  # it warns of threads
    import paddle
import paddle.distributed as dist
import paddle.nn.functional as F
from paddle import nn
from paddlenlp import transformers
from paddlenlp.transformers.roberta.modeling import TransposedLinear
from paddlenlp.utils.log import logger as paddlenlp_logger
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tqdm import tqdm
from visualdl import LogWriter

import datasets  # after paddlenlp, which warns otherwise

ARCHITECTURES = {  # layers, width, attention heads: of RoBERTa (section 5) and BERT's small models
    "roberta-en-tiny": (2, 128, 2),
    "roberta-en-mini": (4, 256, 4),
    "roberta-en-small": (4, 512, 8),
    "roberta-en-base": (12, 768, 12),
    "roberta-en-large": (24, 1024, 16),
}
# May change on resuming; run_identity() adds what of it matters, such as the global batch.
MAY_CHANGE = """
input_file model_name_or_path max_seq_length dropout batch_size gradient_accumulation_steps
num_train_epochs max_steps max_skipped_updates recompute output_dir logging_steps save_steps
save_total_limit max_eval_rows resume_from_checkpoint device amp amp_dtype
""".split()
STATE = ("global_step", "warmup_steps", "skipped_in_a_row", "best", "window")  # of a Run


# -------- the task
def main(argv: list | None = None):
    """Trains, or with --max_steps 0 evaluates."""
    args = parse_arguments(argv)
    set_device(args)
    tokenizer, rows = load_data(args)
    config = build_config(args, tokenizer)
    shortest, longest = zip(*(split.lengths for split in rows.values()))
    multiple = None if min(shortest) == max(longest) else utils.LENGTH_MULTIPLE  # packed rows stay as they are
    collator = DataCollatorMLM(tokenizer, args.mlm_probability, args.seed, args.whole_word_masking, multiple)
    report = Report(args, rows["validation"], tokenizer)
    sizes = args.batch_size, dist.get_rank(), dist.get_world_size()
    held_out = utils.evaluation_batches(len(rows["validation"]), *sizes, args.max_eval_rows)
    validation = partial(batches_of, rows["validation"], held_out, collator)
    if args.max_steps == 0:
        run = Run(args, build_model(args, config, rows), report=report)
        report.evaluation(run, evaluate(run, validation))
        return

    sampler = UpdateSampler(len(rows["train"]), *sizes, args.gradient_accumulation_steps, args.seed)
    total_steps = count_updates(args, sampler)
    with utils.lock(args.output_dir) if dist.get_rank() == 0 else nullcontext():
        run = start_or_resume(args, config, rows, sampler, total_steps, report)
        keys = sampler.batches(run.global_step, total_steps)
        evaluation = train(run, batches_of(rows["train"], keys, collator), validation)
        report.end(run, evaluation)


@dataclass
class Run:
    """What a run reads and changes; checkpoints hold much of it."""

    args: object  # of parse_arguments()
    model: nn.Layer  # RobertaForMaskedLM
    parallel: nn.Layer | None = None  # the same; of several ranks, in DataParallel
    optimizer: object = None
    scaler: object = None
    total_steps: int = 0
    identity: dict | None = None  # what a resumed run must share
    report: object = None
    stop: object = field(default_factory=lambda: StopSignal())
    global_step: int = 0  # updates done
    warmup_steps: int = 0
    skipped_in_a_row: int = 0
    best: dict = field(default_factory=dict)  # {"step", "eval_loss"}
    window: dict = field(default_factory=dict)  # sums since the last report


def train(run: Run, batches, validation) -> dict | None:
    """Runs the updates that are left; returns the last evaluation, or None after a signal."""
    args = run.args
    run.model.train()
    while True:
        if run.global_step and is_due(run):  # after its checkpoint: a resumed run repeats it
            evaluation = evaluate(run, validation)
            if evaluation is None:
                return None
            run.report.evaluation(run, evaluation)
            if run.global_step == run.total_steps:
                return evaluation
        started = time.perf_counter()
        micro_batches = [next(batches) for _ in range(args.gradient_accumulation_steps)]
        loaded = time.perf_counter()
        run.optimizer.set_lr(learning_rate_at(run.global_step + 1, run))
        result = train_update(run, micro_batches)
        run.global_step += 1
        run.report.update(run, result, micro_batches, loaded - started, time.perf_counter() - started)
        skipped = run.skipped_in_a_row = run.skipped_in_a_row + 1 if result["skipped"] else 0
        problem = f"{skipped} updates in a row, up to step {run.global_step}, were not finite"
        require(skipped < args.max_skipped_updates, f"{problem}: lower --learning_rate or --scale_loss")
        if result["stop"] or is_due(run):
            save_checkpoint(run)
        if result["stop"] and run.global_step < run.total_steps:
            return None


def is_due(run: Run) -> bool:
    """Whether this step has a checkpoint and an evaluation."""
    return run.global_step % run.args.save_steps == 0 or run.global_step == run.total_steps


def train_update(run: Run, batches: list) -> dict:
    """One optimizer update; the loss is the mean over all masked tokens of all ranks.

    Returns {"loss_sum", "num_masked", "grad_norm", "loss_scale", "stop", "skipped"}, equal on all
    ranks. The host waits for the device once (in float16, GradScaler.update() does once more).
    """
    args, model, scaler = run.args, run.parallel, run.scaler
    rank, world_size = dist.get_rank(), dist.get_world_size()

    # How many tokens does this update predict, on all ranks? And does any rank want to stop?
    counts = [(batch["labels"] != IGNORE_INDEX).sum() for batch in batches]
    totals = paddle.stack([sum(counts).astype("float32"), paddle.full([], float(run.stop.requested))])
    num_masked, stops = sum_over_ranks(totals)

    # The gradient of (sum of losses) / (number of tokens); DataParallel averages over the ranks,
    # hence the factor. Only the last micro-batch's backward pass exchanges gradients.
    weight = world_size / paddle.clip(num_masked, min=1)
    loss_sum = paddle.zeros([])
    for micro_step, batch in enumerate(batches):
        key = np.random.SeedSequence((args.seed, run.global_step, micro_step, rank))
        paddle.seed(int(key.generate_state(1)[0]))  # dropout's, so no state is to be saved
        is_last = micro_step == len(batches) - 1
        with nullcontext() if is_last or world_size == 1 else model.no_sync():
            with auto_cast(args):
                loss, _, _ = masked_loss(model, batch)
            scaler.scale(loss * weight).backward()
        loss_sum += loss.detach()

    # Are loss and gradient finite, and how long is the gradient?
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    loss_scale = scaler.scale(paddle.ones([1])).squeeze()
    with paddle.no_grad():
        squares = [paddle._C_ops.squared_l2_norm(gradient).reshape([1]) for gradient in gradients]
        grad_norm = paddle.concat(squares).sum().sqrt() / loss_scale
    numbers = [sum_over_ranks(loss_sum), num_masked, grad_norm, loss_scale, stops]
    names = "loss_sum", "num_masked", "grad_norm", "loss_scale", "stop"
    result = dict(zip(names, paddle.stack(numbers).tolist()))
    result["skipped"] = not math.isfinite(result["loss_sum"] + result["grad_norm"])

    clip_and_step(run, gradients, result)
    return result


def clip_and_step(run: Run, gradients: list, result: dict):
    """The optimizer's step with the gradient clipped; none where it is not finite."""
    with paddle.no_grad():
        if result["skipped"]:
            gradients[0].fill_(math.inf)  # lets a scaler lower its scale
        elif result["grad_norm"] > run.args.max_grad_norm > 0:
            for gradient in gradients:
                gradient.scale_(run.args.max_grad_norm / result["grad_norm"])
    if run.scaler.is_enable() or not result["skipped"]:
        run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.clear_grad(set_to_zero=False)


def masked_loss(model, batch: dict) -> tuple:
    """The masked tokens' sum of losses (nats), logits [n, vocab], labels [n] (-100: filler)."""
    labels = paddle.gather(batch["labels"].flatten(), batch["masked_positions"])
    logits = model(batch["input_ids"], batch["masked_positions"]).astype("float32")
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return loss + 0 * logits.detach().sum(), logits, labels  # a CPU's cross_entropy hides NaN


@paddle.no_grad()
def evaluate(run: Run, batches) -> dict | None:
    """The mean loss (nats) etc. of all ranks' masked tokens; None after a signal."""
    run.model.eval()
    totals = paddle.zeros([4], dtype="float64")
    for batch in tqdm(batches(), desc="evaluating", leave=False, disable=None):
        if run.stop.requested:
            break
        with auto_cast(run.args):
            loss, logits, labels = masked_loss(run.model, batch)
        counts = loss, (logits.argmax(-1) == labels).sum(), (labels != IGNORE_INDEX).sum()
        totals[:3] += paddle.stack([count.astype("float64") for count in counts])
    run.model.train()
    totals[3] = float(run.stop.requested)
    loss_sum, correct, num_masked, stops = sum_over_ranks(totals).tolist()
    if stops:
        return None
    require(num_masked, "no validation token was chosen for prediction: hold out more text")
    loss = loss_sum / num_masked
    remedy = "lower --learning_rate, or take other weights"
    require(math.isfinite(loss), f"the evaluation's loss is {loss}: {remedy}")
    perplexity = math.exp(min(loss, 700))  # a larger one is not a float64
    return {"eval_loss": loss, "perplexity": perplexity, "accuracy": correct / num_masked}


def learning_rate_at(step: int, run: Run) -> float:
    """The rate of update `step`, from 1: transformers', one ahead, so that none is 0."""
    peak, warmup_steps = run.args.learning_rate, run.warmup_steps
    if step <= warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / (run.total_steps - warmup_steps + 1)
    if run.args.lr_scheduler == "linear":
        return peak * (1 - progress)
    if run.args.lr_scheduler == "cosine":
        return peak * (1 + math.cos(math.pi * progress)) / 2
    return peak  # constant_with_warmup


def auto_cast(args):
    """Mixed precision on a GPU (level O1); a CPU's layers do it themselves."""
    is_used = args.precision != "float32" and args.device != "cpu"
    return paddle.amp.auto_cast(enable=is_used, dtype=args.precision if is_used else "float16")


def sum_over_ranks(tensor):
    """The sum of all ranks' tensors, in place."""
    if dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


# -------- model and optimizer
class RobertaForMaskedLM(transformers.RobertaForMaskedLM):
    """PaddleNLP's model and checkpoints; a quarter cheaper with masked_positions."""

    def forward(self, input_ids, masked_positions=None, **kwargs):
        """Logits [batch, seq, vocab]; [n, vocab] with masked_positions (flat indices [n])."""
        if masked_positions is None:
            return super().forward(input_ids, **kwargs)
        hidden = self.roberta(input_ids)[0]
        return self.lm_head(paddle.gather(hidden.flatten(0, 1), masked_positions))


def use_fast_layers(model, args, padded: bool):
    """Makes PaddleNLP's layers faster, on a CPU also bfloat16; their parameters stay."""
    on_cpu = args.device == "cpu" and onednn() is not None
    fast = {nn.Linear: linear, TransposedLinear: linear, nn.MultiHeadAttention: attention}
    fast |= {nn.Dropout: dropout} if on_cpu else {}
    for layer in model.sublayers(include_self=True):
        layer.on_cpu, layer.half, layer.padded = on_cpu, args.precision == "bfloat16", padded
        if type(layer) in fast:
            layer.forward = partial(fast[type(layer)], layer)
        if type(layer) is nn.TransformerEncoderLayer and on_cpu:
            layer.activation = partial(Function.apply, gelu_operation, layer)


def linear(layer, x):
    """TransposedLinear's weight is the embedding's; PaddleNLP would copy it."""
    if layer.on_cpu:
        return Function.apply(linear_operation, layer, x, layer.weight, layer.bias)
    out = paddle.matmul(x, layer.weight, transpose_y=isinstance(layer, TransposedLinear))
    return out + layer.bias.astype(out.dtype)  # 2.6.2 would give float32


def dropout(layer, x):
    return Function.apply(dropout_operation, x, layer.p) if layer.training and layer.p else x


def attention(layer, hidden, key=None, value=None, attn_mask=None, cache=None):
    """hidden and the result are [batch, seq, width], attn_mask is [batch, 1, 1, seq]."""
    mask = attn_mask if layer.padded else None
    dropout = layer.dropout if layer.training else 0.0
    query, key, value = layer.q_proj(hidden), layer.k_proj(hidden), layer.v_proj(hidden)
    if layer.on_cpu:
        mask = None if mask is None else mask.numpy()
        return layer.out_proj(Function.apply(attention_operation, layer, query, key, value, mask, dropout))
    heads = [x.reshape([*x.shape[:2], layer.num_heads, -1]) for x in (query, key, value)]
    if mask is None and query.dtype != paddle.float32 and has_ampere():  # FlashAttention
        context = F.scaled_dot_product_attention(*heads, dropout_p=dropout)
    else:
        q, k, v = (x.transpose([0, 2, 1, 3]) for x in heads)
        scores = paddle.matmul(q * q.shape[-1] ** -0.5, k, transpose_y=True)
        if mask is not None:
            scores = scores + mask.astype(scores.dtype)
        weights = F.dropout(F.softmax(scores), dropout)
        context = paddle.matmul(weights, v).transpose([0, 2, 1, 3])
    return layer.out_proj(context.reshape(query.shape))


def build_config(args, tokenizer):
    """The configuration of an architecture, a directory or a hub id."""
    name = args.model_name_or_path
    positions = args.max_seq_length + tokenizer.pad_token_id + 1  # counted from pad + 1
    if name in ARCHITECTURES:
        config = transformers.RobertaConfig(vocab_size=tokenizer.vocab_size)
        config.type_vocab_size, config.layer_norm_eps = 1, 1e-5  # the defaults are BERT's
        config.num_hidden_layers, config.hidden_size, config.num_attention_heads = ARCHITECTURES[name]
        config.intermediate_size = 4 * config.hidden_size
        config.max_position_embeddings = max(514, positions)
        for token_id in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id"):
            setattr(config, token_id, getattr(tokenizer, token_id))
    else:
        others = f"neither one of {', '.join(ARCHITECTURES)} nor a RoBERTa's directory"
        with explaining(f"cannot load the model {name}: {others}"):
            config = transformers.RobertaConfig.from_pretrained(name)
            found = config.to_dict() | config.get_config_dict(name)[0]
            path, vocab = Path(name, "tokenizer.json"), tokenizer.get_vocab()
            is_same = not path.exists() or Tokenizer.from_file(str(path)).get_vocab() == vocab
        suits = {
            "model_type": found["model_type"] == "roberta",
            "hidden_act": config.hidden_act == "gelu",
            "pad_token_id": config.pad_token_id == tokenizer.pad_token_id,
            "vocab_size": config.vocab_size >= tokenizer.vocab_size,  # larger where published
            "max_position_embeddings": config.max_position_embeddings >= positions,
            "another tokenizer": is_same,
        }
        unsuited = [f"{what} {found.get(what, '')}".rstrip() for what in suits if not suits[what]]
        problem = f"{name} has {', '.join(unsuited)}, which does not suit the data"
        remedy = f"take another, or data prepared with --tokenizer_name {name}"
        require(not unsuited, f"{problem}: {remedy}")
    if args.dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = args.dropout
    return config


def build_model(args, config, rows: dict, checkpoint: str | None = None):
    """The model with weights of a checkpoint, of --model_name_or_path, or new ones."""
    source = checkpoint or args.model_name_or_path
    paddle.seed(args.seed)
    needed = "model.safetensors must be a RobertaForMaskedLM's, as in config.json"
    with explaining(f"cannot load the weights of {source}: {needed}"):
        model, action = load_model(source, config)
    padded = any(split.lengths[0] < split.lengths[1] for split in rows.values())
    use_fast_layers(model, args, padded)
    if args.recompute:  # PaddleNLP's own way fails in paddle.DataParallel
        suits = args.device != "cpu" or onednn() is None
        require(suits, "--recompute True is for GPUs: a CPU's layers keep little")
        options = dict(use_reentrant=False, preserve_rng_state=args.dropout != 0)
        for layer in model.roberta.encoder.layers:
            layer.forward = partial(dist.fleet.utils.recompute, layer.forward, **options)
    size = sum(parameter.size for parameter in model.parameters())
    log(f"model: {args.model_name_or_path}, {size:,} parameters, {action}")
    return model


def load_model(source: str, config) -> tuple:
    """(model, what is done with it), of PaddleNLP's or transformers' layout."""
    if source in ARCHITECTURES:
        return RobertaForMaskedLM(config), "training from scratch"
    if not os.path.isdir(source):
        model = RobertaForMaskedLM.from_pretrained(source, config=config)
        return model, f"continuing from {source}"
    model, files = RobertaForMaskedLM(config), os.listdir(source)
    if "model.safetensors" not in files:
        others = [x for x in files if x.endswith((".bin", ".pdparams", ".safetensors"))]
        require(not others, f"{source} has {' '.join(others)}: save it as one model.safetensors")
        return model, "training from scratch"
    weights = utils.read_weights(source)
    for name, parameter in model.state_dict().items():
        parameter.set_value(weights[name])
    return model, f"continuing from {source}"


def build_optimizer(model, args):
    """AdamW, decaying matrices and embeddings only, and the scaler that float16 needs."""
    decayed = {parameter.name for parameter in model.parameters() if parameter.ndim >= 2}
    optimizer = paddle.optimizer.AdamW(
        learning_rate=args.learning_rate,
        beta1=0.9,
        beta2=0.98,  # RoBERTa, section 3.1
        epsilon=args.adam_epsilon,
        parameters=model.parameters(),
        weight_decay=args.weight_decay,
        apply_decay_param_fun=decayed.__contains__,
    )
    is_float16 = args.precision == "float16"  # else the scaler does nothing
    return optimizer, paddle.amp.GradScaler(enable=is_float16, init_loss_scaling=args.scale_loss)


def batches_of(rows: TokenRows, batches, collator: DataCollatorMLM):
    """Yields batches of (epoch, row) as dicts of tensors, masked when asked for."""
    for keys in batches:
        batch = collator([rows[key] for key in keys])
        yield {name: paddle.to_tensor(array) for name, array in batch.items()}


# -------- checkpoints
def start_or_resume(args, config, rows: dict, sampler, total_steps: int, report) -> Run:
    """The run at its beginning, or as a checkpoint holds it."""
    checkpoint = find_checkpoint(args)
    identity = run_identity(args, config, sampler, total_steps)
    state = load_state(checkpoint, identity, total_steps) if checkpoint else {"global_step": 0}
    steps = sum_over_ranks(paddle.to_tensor(state["global_step"])).item()
    is_same = steps == state["global_step"] * dist.get_world_size()
    require(is_same, "the processes find different checkpoints: share one --output_dir")
    model = build_model(args, config, rows, checkpoint)
    optimizer, scaler = build_optimizer(model, args)
    if checkpoint:
        with explaining(f"cannot resume from {checkpoint}: its optimizer state is damaged"):
            names = moment_names(model)
            arrays = load_file(f"{checkpoint}/training_state/optimizer.safetensors")
            require(len(arrays) == state["num_moments"], f"{checkpoint} lacks optimizer tensors")
            optimizer.set_state_dict({names[x]: paddle.to_tensor(arrays[x]) for x in arrays})
            if scaler.is_enable():
                scale = np.array(state["scaler"]["scale"], dtype=np.float32)
                scaler.load_state_dict({**state["scaler"], "scale": scale})
    # DataParallel gives every rank the first one's weights.
    parallel = paddle.DataParallel(model) if dist.get_world_size() > 1 else model
    run = Run(args, model, parallel, optimizer, scaler, total_steps, identity, report)
    is_share = args.warmup_steps < 1
    run.warmup_steps = math.ceil(args.warmup_steps * (run.total_steps if is_share else 1))
    for name in STATE:
        setattr(run, name, state.get(name, getattr(run, name)))
    report.start(run, sampler)
    return run


def run_identity(args, config, sampler, total_steps: int) -> dict:
    """What the result depends on: arguments not in MAY_CHANGE, and what follows."""
    identity = {name: value for name, value in vars(args).items() if name not in MAY_CHANGE}
    identity["global_batch"] = sampler.global_batch
    if args.lr_scheduler != "constant_with_warmup":  # its runs may go on
        identity["total_steps"] = total_steps
    for name, value in config.to_dict().items():
        if name not in ("architectures", "paddlenlp_version"):
            identity[f"architecture.{name}"] = value
    for i, folder in enumerate(args.input_file):
        for path in sorted(Path(folder).glob("*/*.arrow")):
            rows = f"{path.stat().st_size} bytes, {utils.sha256_of(path)}"
            identity[f"data.{i}.{path.relative_to(folder)}"] = rows
    return json.loads(json.dumps(identity))


def save_checkpoint(run: Run):
    """Rank 0 writes a checkpoint, whole or not at all, and keeps so many others."""
    args = run.args
    if dist.get_rank() == 0:
        with utils.atomic_directory(f"{args.output_dir}/paddle_{run.global_step}") as folder:
            training_state = Path(folder, "training_state")
            training_state.mkdir()
            run.model.save_pretrained(folder, safe_serialization=True)
            shutil.copytree(f"{args.input_file[0]}/tokenizer", folder, dirs_exist_ok=True)
            moments, names = run.optimizer.state_dict(), moment_names(run.model).items()
            arrays = {ours: moments[its].numpy() for ours, its in names if its in moments}
            save_file(arrays, training_state / "optimizer.safetensors")
            state = {name: getattr(run, name) for name in (*STATE, "identity")}
            state.update(scaler=run.scaler.state_dict(), num_moments=len(arrays), arguments=vars(args))
            text = json.dumps(state, indent=2, default=np.ndarray.tolist)
            (training_state / "state.json").write_text(text)
            utils.write_checksums(folder)
        found = checkpoints_in(args.output_dir)
        older = [step for step in reversed(found) if step < run.global_step]
        for step in older[(args.save_total_limit or len(found)) - 1 :]:
            if step != run.best.get("step"):
                shutil.rmtree(found[step])
    sum_over_ranks(paddle.zeros([1])).item()


def load_state(checkpoint: str, identity: dict, total_steps: int) -> dict:
    """The state of a checkpoint, if this run may continue from it."""
    refusal = f"cannot resume from {checkpoint}"
    remedy = f"--model_name_or_path {checkpoint} continues from its weights in a new run"
    with explaining(f"{refusal}: its state.json is damaged, or of another version; {remedy}"):
        state = json.loads(Path(checkpoint, "training_state/state.json").read_bytes())
        defaults = vars(parse_arguments([]))  # of a flag that the checkpoint does not know
        was = {name: defaults.get(name) for name in identity} | state["identity"]
        step = state["global_step"]
        require(0 < step <= total_steps, f"{refusal}: step {step} of {total_steps}: raise --max_steps")
    changed = [name for name in was if was[name] != identity.get(name)]
    changes = "; ".join(f"{x} (was {was[x]}, is {identity.get(x)})" for x in changed)
    remedy = "undo it (--max_steps and --num_train_epochs set total_steps), or take a new --output_dir"
    require(not changes, f"{refusal}: these would change the result: {changes}; {remedy}")
    return state


def moment_names(model) -> dict:
    """Our names of AdamW's tensors, and Paddle's, which depend on earlier models."""
    kinds = ("moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc")
    named = product(model.named_parameters(), kinds)
    return {f"{name}/{kind}": f"{parameter.name}_{kind}_0" for (name, parameter), kind in named}


def checkpoints_in(output_dir: str) -> dict:
    paths = {path.name.removeprefix("paddle_"): path for path in Path(output_dir).glob("paddle_*")}
    return {int(step): str(paths[step]) for step in sorted(filter(str.isdecimal, paths), key=int)}


def find_checkpoint(args) -> str | None:
    """The checkpoint to resume from, or None for a fresh start; never a damaged one."""
    found, given = list(checkpoints_in(args.output_dir).values()), args.resume_from_checkpoint
    goes_on = given == "auto" or os.path.realpath(given) in map(os.path.realpath, found)
    remedy = "choose another, or --resume_from_checkpoint auto"
    require(goes_on or not found, f"--output_dir {args.output_dir} holds checkpoints: {remedy}")
    if given == "no":
        return None
    problem = None
    for path in reversed(found if given == "auto" else [given]):
        try:
            utils.check_checksums(path)
            return path
        except utils.UserError as error:
            problem = f"cannot resume from {error}"
            log(f"warning: {problem}")
    require(problem is None, f"{problem}: give another, or start in another --output_dir")
    return None


# -------- the report
class Report:
    """What rank 0 tells: on the terminal, in metrics.jsonl and to VisualDL."""

    def __init__(self, args, validation: TokenRows, tokenizer):
        self.output_dir, self.visualdl = args.output_dir, None
        below, best = utils.yardsticks(validation, tokenizer)
        self.yardsticks = {"unigram_entropy": best, "loss_without_context": below}
        line = f"yardsticks: below {below:.3f} the model uses the context; "
        log(f"{line}{best:.3f} is the best from word frequencies")

    def start(self, run: Run, sampler):
        epochs = f"{run.total_steps / sampler.updates_per_epoch:.3g} epochs"
        updates = f"{run.total_steps:,} updates of {sampler.global_batch:,} ({epochs})"
        log(f"data: {sampler.num_rows:,} rows, {updates}, {run.warmup_steps:,} of them warmup")
        self.progress = tqdm(None, "training", run.total_steps, initial=run.global_step, disable=None)
        if dist.get_rank() == 0:  # VisualDL shows one file of a directory
            self.visualdl = LogWriter(f"{self.output_dir}/visualdl/from_{run.global_step}")

    def update(self, run: Run, result: dict, batches: list, data_seconds, seconds):
        batch_size, seq_length = batches[0]["input_ids"].shape
        tokens = dist.get_world_size() * len(batches) * batch_size * seq_length
        num_masked = result["num_masked"]
        counts = {
            "updates": 1,
            "skipped_updates": int(result["skipped"]),
            "loss_sum": 0.0 if result["skipped"] else result["loss_sum"],
            "num_masked": 0.0 if result["skipped"] else num_masked,
            "tokens": tokens,
            "flops": update_flops(run.model.config, tokens, seq_length, num_masked),
            "data_seconds": data_seconds,
            "seconds": seconds,
        }
        run.window = {name: run.window.get(name, 0) + count for name, count in counts.items()}
        if result["skipped"]:
            what = "loss {loss_sum:g}, gradient norm {grad_norm:g}".format(**result)
            log(f"step {run.global_step:,}: skipped ({what})")
        self.progress.update()
        if run.global_step % run.args.logging_steps == 0:
            self.training(run, result)
            run.window = {}

    def training(self, run: Run, result: dict):
        window, seconds = run.window, run.window["seconds"]
        record = {
            "loss": window["loss_sum"] / (window["num_masked"] or math.nan),
            "learning_rate": run.optimizer.get_lr(),
            "grad_norm": result["grad_norm"],
            "skipped_updates": window["skipped_updates"],
            "loss_scale": result["loss_scale"],
            "steps_per_second": window["updates"] / seconds,
            "tokens_per_second": window["tokens"] / seconds,  # all positions, of all ranks
            "tflops": window["flops"] / seconds / 1e12,
            "data_wait_percent": 100 * window["data_seconds"] / seconds,
            "eta_hours": (run.total_steps - run.global_step) * seconds / window["updates"] / 3600,
        }
        line = "loss {loss:.3f}  rate {learning_rate:.2e}  {tokens_per_second:,.0f} tokens/s"
        line = f"step {run.global_step:,}/{run.total_steps:,}  {line}  ETA {{eta_hours:.2f}} h"
        self.write("train", run.global_step, record, line.format(**record))

    def evaluation(self, run: Run, evaluation: dict):
        if run.global_step and evaluation["eval_loss"] < run.best.get("eval_loss", math.inf):
            run.best = {"step": run.global_step, "eval_loss": evaluation["eval_loss"]}
        place = f" at step {run.global_step:,}" if run.total_steps else ""
        line = "loss {eval_loss:.4f}, perplexity {perplexity:.2f}, accuracy {accuracy:.2%}"
        line = f"evaluation{place}: {line.format(**evaluation)}"
        self.write("evaluation", run.global_step, evaluation | self.yardsticks, line)

    def end(self, run: Run, evaluation: dict | None):
        if evaluation is None:
            log(f"stopped by a signal after step {run.global_step}: add --resume_from_checkpoint auto")
            return
        log("best: step {step}, evaluation loss {eval_loss:.4f}".format(**run.best))
        line = "evaluation loss {eval_loss:.4f}, perplexity {perplexity:.2f}".format(**evaluation)
        log(f"done: {Path(self.output_dir, f'paddle_{run.global_step}')}, {line}")

    def write(self, event: str, step: int, record: dict, line: str):
        log(line)
        if self.output_dir is None or dist.get_rank() != 0:
            return
        os.makedirs(self.output_dir, exist_ok=True)
        finite = {name: value for name, value in record.items() if math.isfinite(value)}
        record = {"event": event, "step": step} | dict.fromkeys(record) | finite  # JSON has no NaN
        with open(f"{self.output_dir}/metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        if self.visualdl:
            for name, value in finite.items():
                self.visualdl.add_scalar(f"{event}/{name}", value, step)
            self.visualdl.flush()  # its thread does so only now and then


def update_flops(config, tokens: int, seq_length: int, num_masked: float) -> float:
    """Operations of an update's matrix products: forward, and twice that backward."""
    h, f = config.hidden_size, config.intermediate_size
    layer = 8 * h * h + 4 * h * f + 4 * seq_length * h  # a token's
    head = 2 * h * (h + config.vocab_size)  # a masked token's
    return 3 * (tokens * config.num_hidden_layers * layer + num_masked * head)


class StopSignal:
    """SIGTERM, SIGHUP and SIGINT set `requested`; a second SIGINT ends at once."""

    def __init__(self):
        self.requested = False
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            if signal.getsignal(signum) != signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(signum, self.handle)

    def handle(self, signum, frame):
        self.requested = True
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


# -------- device, data, arguments
def set_device(args):
    """Selects device and precision, and prints them; joins a launcher's other ranks."""
    paddlenlp_logger.set_level("WARNING")
    version = f"Paddle {paddle.__version__}"
    has_gpu = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    args.device = args.device or ("gpu" if has_gpu else "cpu")
    is_there = {"cpu": True, "gpu": has_gpu, "xpu": paddle.is_compiled_with_xpu()}
    require(is_there[args.device], f"--device {args.device}: {version} sees none; try cpu")
    paddle.set_device(args.device)
    if "PADDLE_TRAINER_ID" in os.environ:  # PR_SET_PDEATHSIG: a rank ends with its launcher
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if dist.get_world_size() > 1:
        if args.device == "cpu":  # else Paddle takes NCCL, and the GPU, where it sees one
            os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"
        dist.init_parallel_env()
    with explaining(f"{version} does not compute on this device: see the README's Install"):
        (paddle.ones([2]) + 1).numpy()  # PyPI's 2.6.2 has code for sm_61 to sm_86 only
    processes, precision = dist.get_world_size(), set_precision(args)
    log(f"device: {args.device}, {processes} process(es), {version}; products in {precision}")


def set_precision(args) -> str:
    """Sets args.precision, that of matrix products; returns it with the reason."""
    args.precision, reason = "float32", "--amp False"
    if args.amp and args.device != "cpu":
        default, reason = "bfloat16" if has_ampere() else "float16", "--amp True"
        args.precision = args.amp_dtype or default
        suits = args.precision == "float16" or args.device == "xpu" or has_ampere()
        require(suits, "--amp_dtype bfloat16: this GPU is older than Ampere; take float16")
    elif args.amp and onednn() is not None and onednn().has_bfloat16:
        args.precision, reason = "bfloat16", "native on this processor"
    elif args.amp:
        reason = "no bfloat16 on this processor"
    return f"{args.precision} ({reason})"


def has_ampere() -> bool:
    """Whether the device is a GPU with bfloat16 and FlashAttention."""
    is_gpu = paddle.get_device().startswith("gpu")
    return is_gpu and paddle.device.cuda.get_device_capability() >= (8, 0)


def load_data(args) -> tuple:
    """The tokenizer and {"train": TokenRows, "validation": TokenRows}."""
    data = f"--input_file {' '.join(args.input_file)}"
    first, *others = [os.path.join(folder, "tokenizer") for folder in args.input_file]
    with explaining(f"{data}: not a data set of create_data.py, or damaged: prepare it anew"):
        sets = [datasets.load_from_disk(folder) for folder in args.input_file]
        rows = {name: TokenRows(*(splits[name] for splits in sets)) for name in ("train", "validation")}
        for name in ("tokenizer_config.json", "vocab.json", "merges.txt"):
            os.stat(os.path.join(first, name))
        tokenizer = transformers.AutoTokenizer.from_pretrained(first)
        for folder in others:
            is_same = json.loads(Path(folder, "vocab.json").read_bytes()) == tokenizer.get_vocab()
            require(is_same, f"{folder} is another tokenizer: prepare all with --tokenizer_name {first}")
    longest = max(split.lengths[1] for split in rows.values())
    limit = args.max_seq_length = args.max_seq_length or longest
    remedy = f"--max_seq_length {limit}: raise it, or prepare shorter ones"
    require(longest <= limit, f"{data}: rows of {longest} tokens, {remedy}")
    require(len(rows["validation"]), f"{data}: no rows to evaluate: hold out more text")
    return tokenizer, rows


def count_updates(args, sampler: UpdateSampler) -> int:
    """Epochs x updates per epoch, or max_steps if that is positive and smaller."""
    sizes = f"a global batch of {sampler.global_batch} rows, but {sampler.num_rows} in the data"
    require(sampler.updates_per_epoch, f"{sizes}: lower --batch_size or --gradient_accumulation_steps")
    total = math.floor(args.num_train_epochs * sampler.updates_per_epoch)
    total = min(total, args.max_steps) if args.max_steps > 0 else total
    require(total, "nothing to train: --num_train_epochs gives no update")
    require(args.warmup_steps <= total, f"--warmup_steps {args.warmup_steps:g} is longer than the training: lower it")
    return total


def parse_arguments(argv: list | None):
    parser = utils.ArgumentParser("Pretrain RoBERTa with masked language modelling.")
    positive, not_negative, boolean = number(int, 1), number(float, 0), utils.boolean
    add = parser.add_argument_group("data").add_argument
    add("--input_file", nargs="+", default=["wiki"], metavar="DIR", help="what create_data.py wrote")
    add("--max_seq_length", type=number(int, 4), help="most tokens in a row; left out: the data's")
    add("--mlm_probability", type=number(float, 1e-9, 1), default=0.15, help="share of the tokens predicted")
    add("--whole_word_masking", type=boolean, default=False, help="predict words, not single tokens")
    add = parser.add_argument_group("model").add_argument
    names = f"{', '.join(ARCHITECTURES)}: from scratch; or a directory or hub id"
    add("--model_name_or_path", default="roberta-en-base", help=names)
    add("--dropout", type=number(float, 0, 0.99), help="dropout; left out: the model's")
    add = parser.add_argument_group("optimization").add_argument
    add("--batch_size", type=positive, default=16, help="rows per device and micro-batch")
    add("--gradient_accumulation_steps", type=positive, default=1, help="micro-batches per update")
    add("--learning_rate", type=not_negative, default=1e-4, help="peak, reached after the warmup")
    add("--lr_scheduler", choices=["linear", "cosine", "constant_with_warmup"], default="linear", help="of the rate")
    add("--warmup_steps", type=not_negative, default=0.06, help="updates; below 1, a share of all")
    add("--weight_decay", type=not_negative, default=1e-2, help="of matrices and embeddings")
    add("--adam_epsilon", type=number(float, 1e-30), default=1e-6, help="AdamW's")
    add("--max_grad_norm", type=not_negative, default=1.0, help="clips the gradient; 0: never")
    add("--num_train_epochs", type=not_negative, default=3, help="passes over the data")
    add("--max_steps", type=number(int, -1), default=-1, help="most updates; -1: no limit; 0: only evaluate")
    add("--max_skipped_updates", type=positive, default=5, help="so many in a row end the run")
    add("--recompute", type=boolean, default=False, help="less memory, a third more arithmetic")
    add("--seed", type=number(int, 0, 2**31), default=42, help="of weights, order, masks and dropout")
    add = parser.add_argument_group("logging and checkpoints").add_argument
    add("--output_dir", help="for checkpoints and metrics; left out: ckp if training")
    add("--logging_steps", type=positive, default=100, help="updates between reports")
    add("--save_steps", type=positive, default=10000, help="updates between checkpoints")
    add("--save_total_limit", type=positive, help="checkpoints kept beside the best; left out: all")
    add("--max_eval_rows", type=number(int, 0), default=10000, help="rows evaluated; 0: all")
    add("--resume_from_checkpoint", default="no", help="`auto`, a path, or `no`")
    add = parser.add_argument_group("runtime").add_argument
    add("--device", choices=["cpu", "gpu", "xpu"], help="left out: the GPU, if Paddle sees one")
    add("--amp", type=boolean, default=True, help="mixed precision, on devices that have it")
    add("--amp_dtype", choices=["float16", "bfloat16"], help="on a GPU; left out: by its age")
    add("--scale_loss", type=number(float, 1e-30), default=2.0**15, help="first loss scale in float16")
    for gone in ("--num_workers", "--amp_level"):
        given = sys.argv if argv is None else argv
        require(gone not in given, f"{gone} is gone: leave it out")
    args = parser.parse_args(argv)
    args.output_dir = args.output_dir or ("ckp" if args.max_steps else None)
    return args


# -------- the CPU's layers (skip on first reading)
# They compute on arrays that share the tensors' memory. Where a layer's `half` is set, operands
# of products are rounded to bfloat16; all else is float32.
CHUNK = 2**21  # attention weights in memory; at least one row's


class Function(paddle.autograd.PyLayer):
    """Calls operation(out, *arguments), which fills out and returns what fills the gradients."""

    @staticmethod
    def forward(ctx, operation, *arguments):
        ctx.shapes = [x.shape for x in arguments if isinstance(x, paddle.Tensor)]
        out = paddle.empty([*ctx.shapes[0][:-1], ctx.shapes[-1][-1]])  # as wide as the last
        arguments = (array_of(x) if isinstance(x, paddle.Tensor) else x for x in (out, *arguments))
        ctx.write = operation(*arguments)
        return out

    @staticmethod
    def backward(ctx, by_out):
        gradients = [paddle.empty(shape) for shape in ctx.shapes]
        ctx.write(*map(array_of, (by_out, *gradients)))
        return tuple(gradients)


def array_of(tensor):
    """The memory of a float32 tensor as an array, which keeps it alive."""
    tensor = tensor.contiguous()
    assert tensor.dtype == paddle.float32 and tensor.place.is_cpu_place()
    memory = (ctypes.c_float * tensor.size).from_address(tensor.data_ptr())
    memory.owner = tensor
    return np.frombuffer(memory, np.float32).reshape(tensor.shape)


def linear_operation(out, layer, x, weight, bias):
    # As [out, in], which the embedding's weight is that the output layer shares
    turned = np.asarray if isinstance(layer, TransposedLinear) else np.transpose
    weight, width = turned(rounded(weight, layer.half)), len(bias)
    rows = rounded(x.reshape(-1, x.shape[-1]), layer.half)
    onednn().matmul(rows, weight.T, out.reshape(-1, width), bias.reshape(1, -1))

    def write(by_out, by_x, by_weight, by_bias):
        by_rows = rounded(by_out.reshape(-1, width), layer.half)
        onednn().matmul(by_rows, weight, by_x.reshape(rows.shape))
        values = dict(src=rows, diff_weights=turned(by_weight), diff_bias=by_bias, diff_dst=by_rows)
        onednn().run("inner_product_backward_weights", **values, hint=None)

    return write


def gelu_operation(out, layer, x):
    onednn().run("eltwise_forward", prop="forward", algorithm="gelu", src=x, dst=out, alpha=0.0, beta=0.0)
    kept = rounded(x, layer.half)  # half the memory

    def write(by_out, by_x):
        src = onednn().run("reorder", src=kept, dst=np.empty(kept.shape, np.float32)) if layer.half else kept
        values = dict(diff_src=by_x, diff_dst=by_out, src=src, alpha=0.0, beta=0.0)
        onednn().run("eltwise_backward", algorithm="gelu", **values, hint=None)

    return write


def dropout_operation(out, x, dropout: float):
    kept, factor = draw_kept(x.shape, dropout), np.float32(1 / (1 - dropout))
    np.multiply(onednn().multiply(x, kept, out), factor, out=out)
    return lambda by_out, by_x: np.multiply(onednn().multiply(by_out, kept, by_x), factor, out=by_x)


def draw_kept(shape, dropout: float):
    """Which values dropout keeps, as uint8: 16 random bits each, which follow paddle.seed()."""
    size, generator = math.prod(shape), np.random.SFC64(paddle.randint(2**31 - 1).item())
    draw = generator.random_raw(-(-size // 4)).view(np.uint16)[:size].reshape(shape)
    return (draw >= round(dropout * 2**16)).view(np.uint8)


def attention_operation(out, layer, query, key, value, mask, dropout: float):
    """The backward pass computes the weights anew (Dao et al., 2022, section 3.1)."""
    (batch, seq, width), heads, half = query.shape, layer.num_heads, layer.half
    dnn, step = onednn(), max(1, CHUNK // (heads * seq**2))
    chunks = [slice(start, start + step) for start in range(0, batch, step)]
    kept = draw_kept([batch, heads, seq, seq], dropout) if dropout else None
    factors = (width // heads) ** -0.5, 1, 1 / (1 - dropout)  # so that products need none

    def by_head(array):
        return array.reshape(batch, seq, heads, -1).swapaxes(1, 2)

    scaled = [x * np.float32(factor) for x, factor in zip((query, key, value), factors)]
    query, key, value = (by_head(rounded(x, half)) for x in scaled)

    def weights_of(chunk):
        """softmax(query key^T + mask), float32 [rows, heads, seq, seq]; and after dropout."""
        weights = dnn.matmul(query[chunk], key[chunk].swapaxes(2, 3))
        if mask is not None:
            weights += mask[chunk]
        dnn.run("softmax_forward", prop="forward", algorithm="softmax", src=weights, dst=weights, axis=3)
        dropped = weights if kept is None else dnn.multiply(weights, kept[chunk], np.empty_like(weights))
        return weights, rounded(dropped, half)

    for chunk in chunks:
        dnn.matmul(weights_of(chunk)[1], value[chunk], by_head(out)[chunk])

    def write(by_out, *gradients):
        by_context = by_head(rounded(by_out, half))
        by_query, by_key, by_value = map(by_head, gradients)
        for chunk in chunks:
            weights, dropped = weights_of(chunk)
            dnn.matmul(dropped.swapaxes(2, 3), by_context[chunk], by_value[chunk])
            by_weights = dnn.matmul(by_context[chunk], value[chunk].swapaxes(2, 3))
            if kept is not None:
                dnn.multiply(by_weights, kept[chunk], by_weights)
            values = dict(diff_src=by_weights, diff_dst=by_weights, dst=weights, axis=3, hint=None)
            dnn.run("softmax_backward", algorithm="softmax", **values)
            by_weights = rounded(by_weights, half)
            dnn.matmul(by_weights, key[chunk], by_query[chunk])
            dnn.matmul(by_weights.swapaxes(2, 3), query[chunk], by_key[chunk])
        for array, factor in zip(gradients, factors):
            array *= np.float32(factor)

    return write


if __name__ == "__main__":
    utils.command_line(main)
