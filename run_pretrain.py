"""Pretrain RoBERTa with masked language modelling on the rows that create_data.py wrote.

On a laptop; on two GPUs; an evaluation alone:

    python run_pretrain.py --input_file demo_data --model_name_or_path roberta-en-tiny --max_steps 800
    python -m paddle.distributed.launch --gpus "0,1" run_pretrain.py --input_file wiki --output_dir ckp
    python run_pretrain.py --input_file demo_data --model_name_or_path ckp/paddle_800 --max_steps 0
"""

import contextlib
import ctypes
import dataclasses
import faulthandler
import functools
import io
import json
import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports: no traceback
    faulthandler.enable()  # gives signals their own stack: without, SIGTERM crashed 7 of 72 processes

import utils
from utils import IGNORE_INDEX, DataCollatorMLM, TokenRows, UpdateSampler, explaining, number, require, say

utils.prepare_for_paddle()  # threads and memory: read when Paddle is imported

import numpy as np

with contextlib.redirect_stderr(io.StringIO()):  # Paddle warns of more than one thread
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

ARCHITECTURES = {  # layers, width, attention heads; base and large: RoBERTa, section 5; the others: BERT's small models
    "roberta-en-tiny": (2, 128, 2),
    "roberta-en-mini": (4, 256, 4),
    "roberta-en-small": (4, 512, 8),
    "roberta-en-base": (12, 768, 12),
    "roberta-en-large": (24, 1024, 16),
}
# What may change on resuming; what of it changes the result, run_identity() compares in another form.
MAY_CHANGE = """
input_file model_name_or_path max_seq_length dropout batch_size gradient_accumulation_steps
num_train_epochs max_steps max_skipped_updates recompute output_dir logging_steps save_steps
save_total_limit max_eval_rows resume_from_checkpoint device amp amp_dtype
""".split()
STATE = ("global_step", "warmup_steps", "skipped_in_a_row", "best", "window")  # a Run's, in its checkpoints


# ---------------------------------------------------------------- the task


def main(argv: list | None = None) -> None:
    """Trains; or with --max_steps 0 evaluates, and writes a line if --output_dir is given."""
    args = parse_arguments(argv)
    set_device(args)
    tokenizer, rows = load_data(args)
    config = build_config(args, tokenizer)
    collator = DataCollatorMLM(tokenizer, args.mlm_probability, args.seed, args.whole_word_masking)
    report = Report(args, rows["validation"], tokenizer)
    ranks = dist.get_rank(), dist.get_world_size()
    held_out = utils.evaluation_batches(len(rows["validation"]), args.batch_size, *ranks, args.max_eval_rows)
    validation = functools.partial(batches_of, rows["validation"], held_out, collator)
    if args.max_steps == 0:
        run = Run(args, build_model(args, config, rows), report=report)
        report.evaluation(run, evaluate(run, validation))
        return

    sampler = UpdateSampler(len(rows["train"]), args.batch_size, args.gradient_accumulation_steps, *ranks, args.seed)
    sampler.updates = count_updates(args, sampler)
    with output_directory(args):
        run = start_or_resume(args, config, rows, sampler, report)
        sampler.first_update = run.global_step
        evaluation = train(run, batches_of(rows["train"], sampler, collator), validation)
        report.end(run, evaluation)


@dataclasses.dataclass
class Run:
    """What a run reads and changes; a checkpoint holds the model, optimizer, scaler and STATE."""

    args: object  # of parse_arguments()
    model: nn.Layer  # RobertaForMaskedLM; with several ranks, inside paddle.DataParallel
    optimizer: object = None
    scaler: object = None
    total_steps: int = 0
    identity: dict | None = None  # what a resumed run must have in common with this one
    report: object = None
    stop: object = dataclasses.field(default_factory=lambda: StopSignal())
    global_step: int = 0  # updates done
    warmup_steps: int = 0
    skipped_in_a_row: int = 0
    best: dict = dataclasses.field(default_factory=dict)  # evaluation: {"step", "eval_loss"}
    window: dict = dataclasses.field(default_factory=dict)  # sums since the last report


def train(run: Run, batches, validation) -> dict | None:
    """Runs the updates that are left; returns the last evaluation, or None after a signal."""
    args = run.args
    run.model.train()
    while True:
        if run.global_step and is_due(run):  # after its checkpoint, so where a run resumes, too
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
        run.skipped_in_a_row = run.skipped_in_a_row + 1 if result["skipped"] else 0
        problem = f"{run.skipped_in_a_row} updates in a row, up to step {run.global_step}, were not finite"
        require(run.skipped_in_a_row < args.max_skipped_updates, f"{problem}: lower --learning_rate or --scale_loss")
        if result["stop"] or is_due(run):
            save_checkpoint(run)
        if result["stop"] and run.global_step < run.total_steps:
            return None


def is_due(run: Run) -> bool:
    """Whether this step has a checkpoint and an evaluation."""
    return run.global_step % run.args.save_steps == 0 or run.global_step == run.total_steps


def train_update(run: Run, batches: list) -> dict:
    """One optimizer update; its loss is the mean over the masked tokens of all micro-batches and ranks.

    Returns {"loss_sum", "num_masked", "grad_norm", "loss_scale", "stop", "skipped"}, equal on all
    ranks, for which the host waits once (in float16, GradScaler.update() waits once more).
    """
    args, model, scaler = run.args, run.model, run.scaler
    rank, world_size = dist.get_rank(), dist.get_world_size()

    # How many tokens does this update predict, on all ranks together? And does any rank want to stop?
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
        with contextlib.nullcontext() if is_last or world_size == 1 else model.no_sync():
            with auto_cast(args):
                loss, _, _ = masked_loss(model, batch)
            scaler.scale(loss * weight).backward()
        loss_sum += loss.detach()

    # Are loss and gradient finite, and how long is the gradient?
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    loss_scale = scaler.scale(paddle.ones([1])).squeeze()
    with paddle.no_grad():
        squares = [paddle._C_ops.squared_l2_norm(gradient).reshape([1]) for gradient in gradients]
        grad_norm = paddle.concat(squares).sum().sqrt() / loss_scale
    numbers = paddle.stack([sum_over_ranks(loss_sum), num_masked, grad_norm, loss_scale, stops]).tolist()
    result = dict(zip(("loss_sum", "num_masked", "grad_norm", "loss_scale", "stop"), numbers))
    result["skipped"] = not (math.isfinite(result["loss_sum"]) and math.isfinite(result["grad_norm"]))

    clip_and_step(run, gradients, result)
    return result


def clip_and_step(run: Run, gradients: list, result: dict) -> None:
    """The optimizer's step with the gradient clipped, or none where the update is skipped."""
    with paddle.no_grad():
        if result["skipped"]:
            gradients[0].fill_(math.inf)  # so that an enabled scaler lowers its scale
        elif result["grad_norm"] > run.args.max_grad_norm > 0:
            for gradient in gradients:
                gradient.scale_(run.args.max_grad_norm / result["grad_norm"])
    if run.scaler.is_enable() or not result["skipped"]:
        run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.clear_grad(set_to_zero=False)


def masked_loss(model, batch: dict) -> tuple:
    """The sum of the masked tokens' cross entropy (nats), their logits [n, vocab] and labels [n]."""
    labels = paddle.gather(batch["labels"].flatten(), batch["masked_positions"])
    logits = model(batch["input_ids"], masked_positions=batch["masked_positions"]).astype("float32")
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return loss + 0 * logits.detach().sum(), logits, labels  # a CPU's hides NaN


@paddle.no_grad()
def evaluate(run: Run, batches) -> dict | None:
    """Of the masked validation tokens of all ranks: mean loss (nats) etc.; None after a signal."""
    model = unwrap(run.model)
    model.eval()
    totals = paddle.zeros([4], dtype="float64")
    for batch in tqdm(batches(), desc="evaluating", leave=False, disable=None):
        if run.stop.requested:
            break
        with auto_cast(run.args):
            loss, logits, labels = masked_loss(model, batch)
        counts = loss, (logits.argmax(-1) == labels).sum(), (labels != IGNORE_INDEX).sum()
        totals[:3] += paddle.stack([count.astype("float64") for count in counts])
    model.train()
    totals[3] = float(run.stop.requested)
    loss_sum, correct, num_masked, stops = sum_over_ranks(totals).tolist()
    if stops:
        return None
    require(num_masked, "no token of the validation rows was chosen for prediction: hold out more text")
    loss = loss_sum / num_masked
    require(math.isfinite(loss), f"the evaluation's loss is {loss}: lower --learning_rate, or take other weights")
    perplexity = math.exp(min(loss, 700))  # a larger one is not a float64
    return {"eval_loss": loss, "perplexity": perplexity, "accuracy": correct / num_masked}


def learning_rate_at(step: int, run: Run) -> float:
    """The rate of update `step` (from 1): transformers' schedules one update ahead, so none is 0."""
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
    """Mixed precision on a GPU (Paddle's level O1); a CPU's layers do it themselves."""
    is_enabled = args.precision != "float32" and args.device != "cpu"
    return paddle.amp.auto_cast(enable=is_enabled, dtype=args.precision if is_enabled else "float16")


def sum_over_ranks(tensor):
    """The sum of all ranks' tensors, in place; who reads it waits for all of them."""
    if dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


# ---------------------------------------------------------------- model and optimizer


class RobertaForMaskedLM(transformers.RobertaForMaskedLM):
    """PaddleNLP's model and checkpoints; given `masked_positions`, it predicts those alone."""

    def forward(self, input_ids, masked_positions=None, **kwargs):
        """Logits [batch, seq, vocab]; or of masked_positions (flat, [n]), a quarter cheaper, [n, vocab]."""
        if masked_positions is None:
            return super().forward(input_ids, **kwargs)
        hidden = self.roberta(input_ids)[0]
        return self.lm_head(paddle.gather(hidden.flatten(0, 1), masked_positions))


def use_fast_layers(model, args, padded: bool) -> None:
    """Replaces how PaddleNLP's layers compute, not what: without it all is the same, only slower."""
    on_cpu = args.device == "cpu" and onednn() is not None
    fast = {nn.Linear: linear, TransposedLinear: linear, nn.MultiHeadAttention: attention}
    fast |= CPU_LAYERS if on_cpu else {}
    for layer in model.sublayers(include_self=True):
        layer.on_cpu, layer.half, layer.padded = on_cpu, args.precision == "bfloat16", padded
        if type(layer) in fast:
            layer.forward = functools.partial(fast[type(layer)], layer)
        if type(layer) is nn.TransformerEncoderLayer and on_cpu:
            layer.activation = functools.partial(Function.apply, gelu_operation, layer)


def linear(layer, x):
    """TransposedLinear's weight is the embedding's, [vocab, width]; PaddleNLP would copy it."""
    if layer.on_cpu:
        return Function.apply(linear_operation, layer, x, layer.weight, layer.bias)
    product = paddle.matmul(x, layer.weight, transpose_y=isinstance(layer, TransposedLinear))
    return product + layer.bias.astype(product.dtype)  # else 2.6.2 makes float32 of a half product


def attention(layer, hidden, key=None, value=None, attn_mask=None, cache=None):
    """Self-attention: hidden and the result are [batch, seq, width], attn_mask is [batch, 1, 1, seq]."""
    mask, dropout = attn_mask if layer.padded else None, layer.dropout if layer.training else 0.0
    query, key, value = layer.q_proj(hidden), layer.k_proj(hidden), layer.v_proj(hidden)
    if layer.on_cpu:
        mask = None if mask is None else mask.numpy()
        return layer.out_proj(Function.apply(attention_operation, layer, query, key, value, mask, dropout))
    heads = [x.reshape([*x.shape[:2], layer.num_heads, -1]) for x in (query, key, value)]
    if mask is None and query.dtype != paddle.float32 and has_ampere():  # FlashAttention
        context = F.scaled_dot_product_attention(*heads, dropout_p=dropout)
    else:
        query_heads, key_heads, value_heads = (x.transpose([0, 2, 1, 3]) for x in heads)
        product = paddle.matmul(query_heads * query_heads.shape[-1] ** -0.5, key_heads, transpose_y=True)
        weights = F.softmax(product if mask is None else product + mask.astype(product.dtype))
        context = paddle.matmul(F.dropout(weights, dropout), value_heads).transpose([0, 2, 1, 3])
    return layer.out_proj(context.reshape(query.shape))


def build_config(args, tokenizer):
    """The configuration of an architecture of ours, or that of a directory or hub id."""
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
        with explaining(f"cannot load the model {name}: neither one of {', '.join(ARCHITECTURES)} nor a directory"):
            config = transformers.RobertaConfig.from_pretrained(name)
            kind = config.get_config_dict(name)[0].get("model_type", "roberta")
            path, vocabulary = Path(name, "tokenizer.json"), tokenizer.get_vocab()
            is_same = not path.exists() or Tokenizer.from_file(str(path)).get_vocab() == vocabulary
        suits = {
            f"model_type {kind}": kind == "roberta",
            f"hidden_act {config.hidden_act}": config.hidden_act == "gelu",
            f"pad_token_id {config.pad_token_id}": config.pad_token_id == tokenizer.pad_token_id,
            f"vocab_size {config.vocab_size}": config.vocab_size >= tokenizer.vocab_size,  # larger where published
            f"max_position_embeddings {config.max_position_embeddings}": config.max_position_embeddings >= positions,
            "another tokenizer": is_same,
        }
        unsuited = ", ".join(what for what in suits if not suits[what])
        remedy = f"take a RoBERTa, with data prepared for it (create_data.py --tokenizer_name {name})"
        require(not unsuited, f"{name} has {unsuited}, which does not suit the data or this script: {remedy}")
    if args.dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = args.dropout
    return config


def build_model(args, config, rows: dict, checkpoint: str | None = None):
    """The model with a checkpoint's weights, those of --model_name_or_path, or new ones."""
    source = checkpoint or args.model_name_or_path
    paddle.seed(args.seed)
    with explaining(f"cannot load the weights of {source}: a RobertaForMaskedLM in one model.safetensors is needed"):
        model, action = load_model(source, config)
    use_fast_layers(model, args, padded=any(split.lengths[0] < split.lengths[1] for split in rows.values()))
    if args.recompute:  # PaddleNLP's own way fails in paddle.DataParallel
        require(args.device != "cpu" or onednn() is None, "--recompute True is for GPUs: a CPU's layers keep little")
        recompute = functools.partial(dist.fleet.utils.recompute, use_reentrant=False)
        for layer in model.roberta.encoder.layers:
            layer.forward = functools.partial(recompute, layer.forward, preserve_rng_state=args.dropout != 0)
    say(f"model: {args.model_name_or_path}, {sum(p.size for p in model.parameters()):,} parameters, {action}")
    return model


def load_model(source: str, config) -> tuple:
    """Returns (model, what is done with it); reads PaddleNLP's and transformers' layouts."""
    if source in ARCHITECTURES:
        return RobertaForMaskedLM(config), "training from scratch"
    if not os.path.isdir(source):
        return RobertaForMaskedLM.from_pretrained(source, config=config), f"continuing from {source}"
    model = RobertaForMaskedLM(config)
    if not os.path.exists(os.path.join(source, "model.safetensors")):
        others = [name for name in os.listdir(source) if name.endswith((".bin", ".pdparams", ".safetensors"))]
        require(not others, f"{source} has {' '.join(others)}: save it as one model.safetensors")
        return model, "training from scratch"
    weights = utils.read_weights(source)
    for name, parameter in model.state_dict().items():
        parameter.set_value(weights[name])
    return model, f"continuing from {source}"


def build_optimizer(model, args):
    """AdamW, decaying matrices and embeddings only; and the loss's scaler, which float16 needs."""
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
    scaler = paddle.amp.GradScaler(enable=args.precision == "float16", init_loss_scaling=args.scale_loss)
    return optimizer, scaler  # disabled, a scaler does nothing


def batches_of(rows: TokenRows, sampler, collator: DataCollatorMLM):
    """Yields a sampler's batches as dicts of tensors, masked when asked for."""
    for keys in sampler:
        batch = collator([rows[key] for key in keys])
        yield {name: paddle.to_tensor(array) for name, array in batch.items()}


def unwrap(model):
    return model._layers if isinstance(model, paddle.DataParallel) else model


# ---------------------------------------------------------------- checkpoints


def start_or_resume(args, config, rows: dict, sampler, report) -> Run:
    """The run at its beginning, or as the checkpoint that it resumes from holds it."""
    checkpoint = find_checkpoint(args)
    identity = run_identity(args, config, sampler)
    state = load_state(checkpoint, identity, sampler.updates) if checkpoint else {"global_step": 0}
    steps = sum_over_ranks(paddle.to_tensor(state["global_step"])).item()
    is_same = steps == state["global_step"] * dist.get_world_size()
    require(is_same, "the processes find different checkpoints: all machines must share one --output_dir")
    model = build_model(args, config, rows, checkpoint)
    optimizer, scaler = build_optimizer(model, args)
    if checkpoint:
        with explaining(f"cannot resume from {checkpoint}: its optimizer or scaler state is damaged"):
            names = moment_names(model)
            arrays = load_file(f"{checkpoint}/training_state/optimizer.safetensors")
            require(len(arrays) == state["num_moments"], f"{checkpoint}: its optimizer.safetensors lacks tensors")
            optimizer.set_state_dict({names[name]: paddle.to_tensor(arrays[name]) for name in arrays})
            if scaler.is_enable():
                scale = np.array(state["scaler"]["scale"], dtype=np.float32)
                scaler.load_state_dict({**state["scaler"], "scale": scale})
    if dist.get_world_size() > 1:
        model = paddle.DataParallel(model)  # every rank gets the first one's weights
    run = Run(args, model, optimizer, scaler, sampler.updates, identity, report)
    run.warmup_steps = math.ceil(args.warmup_steps * (1 if args.warmup_steps >= 1 else run.total_steps))
    for name in STATE:
        setattr(run, name, state.get(name, getattr(run, name)))
    report.start(run, sampler)
    return run


def run_identity(args, config, sampler) -> dict:
    """What the result depends on: all arguments but those in MAY_CHANGE, and what these come to."""
    identity = {name: value for name, value in vars(args).items() if name not in MAY_CHANGE}
    identity["global_batch"] = sampler.global_batch
    if args.lr_scheduler != "constant_with_warmup":  # which may go on for as long as one likes
        identity["total_steps"] = sampler.updates
    left_out = ("architectures", "paddlenlp_version")
    identity |= {f"architecture.{name}": value for name, value in config.to_dict().items() if name not in left_out}
    for i, folder in enumerate(args.input_file):
        for path in sorted(Path(folder).glob("*/*.arrow")):
            rows = f"{path.stat().st_size} bytes, {utils.sha256_of(path)}"
            identity[f"data.{i}.{path.relative_to(folder)}"] = rows
    return json.loads(json.dumps(identity))


def save_checkpoint(run: Run) -> None:
    """Rank 0 writes this step's checkpoint, whole or not at all, and removes older ones."""
    args, model = run.args, unwrap(run.model)
    if dist.get_rank() == 0:
        with utils.atomic_directory(f"{args.output_dir}/paddle_{run.global_step}") as folder:
            training_state = Path(folder, "training_state")
            training_state.mkdir()
            model.save_pretrained(folder, safe_serialization=True)
            shutil.copytree(f"{args.input_file[0]}/tokenizer", folder, dirs_exist_ok=True)
            moments, names = run.optimizer.state_dict(), moment_names(model)
            arrays = {name: moments[names[name]].numpy() for name in names if names[name] in moments}
            save_file(arrays, training_state / "optimizer.safetensors")
            state = {name: getattr(run, name) for name in (*STATE, "identity")}
            state.update(scaler=run.scaler.state_dict(), num_moments=len(arrays), arguments=vars(args))
            (training_state / "state.json").write_text(json.dumps(state, indent=2, default=np.ndarray.tolist))
            utils.write_checksums(folder)
        found = checkpoints_in(args.output_dir)
        older = [step for step in reversed(found) if step < run.global_step]  # those beyond: of an abandoned run
        for step in older[(args.save_total_limit or len(found)) - 1 :]:
            if step != run.best.get("step"):
                shutil.rmtree(found[step])
    sum_over_ranks(paddle.zeros([1])).item()


def load_state(checkpoint: str, identity: dict, total_steps: int) -> dict:
    """The state of a checkpoint, after checking that this run may continue from it."""
    refusal = f"cannot resume from {checkpoint}"
    remedy = f"--model_name_or_path {checkpoint} continues from its weights in a new run"
    with explaining(f"{refusal}: its state.json is damaged, or of another version of this script; {remedy}"):
        state = json.loads(Path(checkpoint, "training_state/state.json").read_bytes())
        defaults = vars(parse_arguments([]))  # of a flag that the checkpoint does not know yet
        was = {name: defaults.get(name) for name in identity} | state["identity"]
        step = state["global_step"]
        require(0 < step <= total_steps, f"{refusal}: step {step} is not within this run's {total_steps} updates")
    changes = [f"{n} (was {was[n]}, is {identity.get(n)})" for n in was if was[n] != identity.get(n)]
    remedy = "undo it (--max_steps and --num_train_epochs set total_steps), or take a new --output_dir"
    require(not changes, f"{refusal}: these would change the result: {'; '.join(changes)}; {remedy}")
    return state


def moment_names(model) -> dict:
    """Our names of AdamW's tensors ("PARAMETER/moment1"), and Paddle's, which earlier models shift."""
    kinds = ("moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc")
    return {f"{name}/{kind}": f"{p.name}_{kind}_0" for name, p in model.named_parameters() for kind in kinds}


def checkpoints_in(output_dir: str) -> dict:
    """The checkpoints' paths by step, the oldest first; none is half-written, but it may be damaged."""
    paths = {path.name.removeprefix("paddle_"): str(path) for path in Path(output_dir).glob("paddle_*")}
    return {int(step): paths[step] for step in sorted(filter(str.isdigit, paths), key=int)}


def find_checkpoint(args) -> str | None:
    """The checkpoint to resume from, or None for a fresh start; damaged ones are never used."""
    found, given = list(checkpoints_in(args.output_dir).values()), args.resume_from_checkpoint
    if given == "no":
        require(not found, f"{args.output_dir} holds checkpoints: choose another, or --resume_from_checkpoint auto")
        return None
    problem = None
    for path in reversed(found if given == "auto" else [given]):
        try:
            utils.check_checksums(path)
            return path
        except utils.UserError as error:
            problem = f"cannot resume from {error}"
            say(f"warning: {problem}")
    require(problem is None, f"{problem}; there is no other: give a path, or move it away to start anew")
    return None


@contextlib.contextmanager
def output_directory(args):
    """Rank 0 creates and locks --output_dir."""
    with contextlib.ExitStack() as stack:
        if dist.get_rank() == 0:
            with explaining(f"cannot write --output_dir {args.output_dir}"):
                stack.enter_context(utils.lock(args.output_dir))
        sum_over_ranks(paddle.zeros([1])).item()
        yield


# ---------------------------------------------------------------- the report


class Report:
    """What rank 0 tells: lines on the terminal, metrics.jsonl and VisualDL's files."""

    def __init__(self, args, validation: TokenRows, tokenizer):
        self.output_dir, self.visualdl = args.output_dir, None
        below, best = utils.yardsticks(validation, tokenizer)
        self.yardsticks = {"unigram_entropy": best, "loss_without_context": below}
        say(f"yardsticks: below {below:.3f} the model uses the context; {best:.3f} is the best from word frequencies")

    def start(self, run: Run, sampler) -> None:
        epochs = f"{run.total_steps / sampler.updates_per_epoch:.3g} epochs"
        updates = f"{run.total_steps:,} updates of {sampler.global_batch:,} ({epochs})"
        say(f"data: {sampler.num_rows:,} rows, {updates}, the first {run.warmup_steps:,} are the warmup")
        self.progress = tqdm(total=run.total_steps, initial=run.global_step, unit="update", disable=None)
        if dist.get_rank() == 0:  # VisualDL shows one file of a directory
            self.visualdl = LogWriter(f"{self.output_dir}/visualdl/from_{run.global_step}")

    def update(self, run: Run, result: dict, batches: list, data_seconds: float, seconds: float) -> None:
        """Counts an update; where --logging_steps are full, reports all since the last report."""
        batch_size, seq_length = batches[0]["input_ids"].shape
        tokens = dist.get_world_size() * len(batches) * batch_size * seq_length
        counts = {
            "updates": 1,
            "skipped_updates": int(result["skipped"]),
            "loss_sum": 0.0 if result["skipped"] else result["loss_sum"],
            "num_masked": 0.0 if result["skipped"] else result["num_masked"],
            "tokens": tokens,
            "flops": update_flops(unwrap(run.model).config, tokens, seq_length, result["num_masked"]),
            "data_seconds": data_seconds,
            "seconds": seconds,
        }
        run.window = {name: run.window.get(name, 0) + count for name, count in counts.items()}
        if result["skipped"]:
            say("step {:,}: skipped (loss {loss_sum:g}, gradient norm {grad_norm:g})".format(run.global_step, **result))
        self.progress.update()
        if run.global_step % run.args.logging_steps == 0:
            self.training(run, result)
            run.window = {}

    def training(self, run: Run, result: dict) -> None:
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
        line = "loss {loss:.3f}  rate {learning_rate:.2e}  {tokens_per_second:,.0f} tokens/s  ETA {eta_hours:.2f} h"
        line = f"step {run.global_step:,}/{run.total_steps:,}  {line.format(**record)}"
        self.write("train", run.global_step, record, line)

    def evaluation(self, run: Run, evaluation: dict) -> None:
        if run.global_step and evaluation["eval_loss"] < run.best.get("eval_loss", math.inf):
            run.best = {"step": run.global_step, "eval_loss": evaluation["eval_loss"]}
        line = "loss {eval_loss:.4f}, perplexity {perplexity:.2f}, accuracy {accuracy:.2%}".format(**evaluation)
        line = f"evaluation at step {run.global_step:,}: {line}" if run.total_steps else f"evaluation: {line}"
        self.write("evaluation", run.global_step, {**evaluation, **self.yardsticks}, line)

    def end(self, run: Run, evaluation: dict | None) -> None:
        if evaluation is None:
            say(f"stopped by a signal after step {run.global_step}: continue with --resume_from_checkpoint")
            return
        say("best: step {step}, evaluation loss {eval_loss:.4f}".format(**run.best))
        line = "evaluation loss {eval_loss:.4f}, perplexity {perplexity:.2f}".format(**evaluation)
        say(f"done: {os.path.join(self.output_dir, f'paddle_{run.global_step}')}, {line}")

    def write(self, event: str, step: int, record: dict, line: str) -> None:
        say(line)
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
    """Floating-point operations of an update's matrix products: forward, and twice that backward."""
    h, f = config.hidden_size, config.intermediate_size
    layer = 2 * (4 * h * h + 2 * h * f) + 4 * seq_length * h  # of a token: its matrices, and attention
    head = 2 * (h * h + h * config.vocab_size)  # of a masked token
    return 3 * (tokens * config.num_hidden_layers * layer + num_masked * head)


class StopSignal:
    """SIGTERM, SIGHUP and SIGINT set `requested`, which the loops read; a second SIGINT ends at once."""

    def __init__(self):
        self.requested = False
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            if signal.getsignal(signum) != signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(signum, self.handle)

    def handle(self, signum, frame):
        self.requested = True
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


# ---------------------------------------------------------------- device, data, arguments


def set_device(args) -> None:
    """Selects and prints the device and the precision; joins the other ranks of a launcher."""
    paddlenlp_logger.set_level("WARNING")
    version = f"Paddle {paddle.__version__}"
    has_gpu = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    args.device = args.device or ("gpu" if has_gpu else "cpu")
    is_there = {"cpu": True, "gpu": has_gpu, "xpu": paddle.is_compiled_with_xpu()}[args.device]
    require(is_there, f"--device {args.device}: {version} sees none; try --device cpu")
    paddle.set_device(args.device)
    if "PADDLE_TRAINER_ID" in os.environ:  # PR_SET_PDEATHSIG: a rank ends with its launcher
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if dist.get_world_size() > 1:
        if args.device == "cpu":  # else Paddle takes NCCL, and the GPU, where it sees one
            os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"
        dist.init_parallel_env()
    with explaining(f"{version} does not compute on this device: see the README's Install"):
        (paddle.ones([2]) + 1).numpy()  # PyPI's 2.6.2 has code for sm_61 to sm_86 only
    say(f"device: {args.device}, {dist.get_world_size()} process(es), {version}; products in {set_precision(args)}")


def set_precision(args) -> str:
    """Sets args.precision, that of matrix products; returns it with the reason."""
    args.precision, reason = "float32", "--amp False"
    if args.amp and args.device != "cpu":
        args.precision, reason = args.amp_dtype or ("bfloat16" if has_ampere() else "float16"), "--amp True"
        suits = args.precision == "float16" or args.device == "xpu" or has_ampere()
        require(suits, "--amp_dtype bfloat16: this GPU has none (Ampere and later do); take float16")
    elif args.amp and onednn() is not None and onednn().has_bfloat16:
        args.precision, reason = "bfloat16", "native on this processor"
    elif args.amp:
        reason = "no bfloat16 on this processor"
    return f"{args.precision} ({reason})"


def has_ampere() -> bool:
    """Whether the device is a GPU with bfloat16 and FlashAttention: capability 8 or later."""
    return paddle.get_device().startswith("gpu") and paddle.device.cuda.get_device_capability()[0] >= 8


def load_data(args) -> tuple:
    """The tokenizer and {"train": TokenRows, "validation": TokenRows} of all --input_file together."""
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
    require(longest <= limit, f"{data}: rows of {longest} tokens, --max_seq_length {limit}: prepare shorter ones")
    require(len(rows["validation"]), f"{data}: the validation split has no rows: hold out more text")
    return tokenizer, rows


def count_updates(args, sampler: UpdateSampler) -> int:
    """T = epochs x updates per epoch, or max_steps if that is positive and smaller."""
    size = f"a global batch of {sampler.global_batch} rows is larger than the data ({sampler.num_rows} rows)"
    require(sampler.updates_per_epoch, f"{size}: lower --batch_size or --gradient_accumulation_steps")
    total = math.floor(args.num_train_epochs * sampler.updates_per_epoch)
    total = min(total, args.max_steps) if args.max_steps > 0 else total
    require(total, "nothing to train: --num_train_epochs gives no update")
    require(args.warmup_steps <= total, f"--warmup_steps {args.warmup_steps:g} is longer than the training ({total})")
    return total


def parse_arguments(argv: list | None):
    parser = utils.ArgumentParser("Pretrain RoBERTa with masked language modelling.")
    positive, not_negative, boolean = number(int, 1), number(float, 0), utils.boolean
    add = parser.add_argument_group("data").add_argument
    add("--input_file", nargs="+", default=["wiki"], metavar="DIR", help="what create_data.py wrote")
    add("--max_seq_length", type=number(int, 4), help="most tokens in a row; left out: as in the data")
    add("--mlm_probability", type=number(float, 1e-9, 1), default=0.15, help="share of the tokens predicted")
    add("--whole_word_masking", type=boolean, default=False, help="predict words, not single tokens")
    add = parser.add_argument_group("model").add_argument
    names = f"{', '.join(ARCHITECTURES)}: from scratch; or a directory or hub id"
    add("--model_name_or_path", default="roberta-en-base", help=names)
    add("--dropout", type=number(float, 0, 0.99), help="of hidden states and attention; left out: the model's")
    add = parser.add_argument_group("optimization").add_argument
    add("--batch_size", type=positive, default=16, help="rows per device and micro-batch")
    add("--gradient_accumulation_steps", type=positive, default=1, help="micro-batches per update")
    add("--learning_rate", type=not_negative, default=1e-4, help="peak, reached after the warmup")
    add("--lr_scheduler", choices=["linear", "cosine", "constant_with_warmup"], default="linear", help="of the rate")
    add("--warmup_steps", type=not_negative, default=0.06, help="updates; below 1, a share of all")
    add("--weight_decay", type=not_negative, default=1e-2, help="AdamW's, of matrices and embeddings")
    add("--adam_epsilon", type=number(float, 1e-30), default=1e-6, help="AdamW's")
    add("--max_grad_norm", type=not_negative, default=1.0, help="clips the gradient; 0: never")
    add("--num_train_epochs", type=not_negative, default=3, help="passes over the data")
    add("--max_steps", type=number(int, -1), default=-1, help="most updates; -1: no limit; 0: only evaluate")
    add("--max_skipped_updates", type=positive, default=5, help="non-finite ones in a row that end the run")
    add("--recompute", type=boolean, default=False, help="less memory, a third more arithmetic")
    add("--seed", type=number(int, 0, 2**31), default=42, help="of weights, order, masks and dropout")
    add = parser.add_argument_group("logging and checkpoints").add_argument
    add("--output_dir", help="for checkpoints and metrics; left out: ckp, or none if only evaluating")
    add("--logging_steps", type=positive, default=100, help="updates between reports")
    add("--save_steps", type=positive, default=10000, help="updates between checkpoints and evaluations")
    add("--save_total_limit", type=positive, help="newest checkpoints kept, and the best; left out: all")
    add("--max_eval_rows", type=number(int, 0), default=10000, help="rows evaluated; 0: all")
    add("--resume_from_checkpoint", default="no", help="`auto`: the newest, if any; a path; or `no`")
    add = parser.add_argument_group("runtime").add_argument
    add("--device", choices=["cpu", "gpu", "xpu"], help="left out: the GPU, if Paddle sees one")
    add("--amp", type=boolean, default=True, help="mixed precision, on devices that have it")
    add("--amp_dtype", choices=["float16", "bfloat16"], help="on a GPU; left out: bfloat16 from Ampere on")
    add("--scale_loss", type=number(float, 1e-30), default=2.0**15, help="first loss scale in float16")
    for gone in ("--num_workers", "--amp_level"):
        require(gone not in (sys.argv if argv is None else argv), f"{gone} is gone: leave it out")
    args = parser.parse_args(argv)
    args.output_dir = args.output_dir or ("ckp" if args.max_steps else None)
    return args


# ---------------------------------------------------------------- the CPU's layers (skip on first reading)

# They call Paddle's own oneDNN (numbers from its dnnl_types.h) on arrays that share the tensors'
# memory. uint16 stands for bfloat16, to which operands of products are rounded where a layer's
# `half` is set; all else is float32.
DATA_TYPES = {"float32": 3, "uint16": 2, "uint8": 6}
DESCRIBED = {"src": 1, "src_1": 2, "dst": 17, "weights": 33, "bias": 41, "mean": 49, "diff_src": 129, "diff_dst": 145}
DESCRIBED |= {"diff_weights": 161, "diff_bias": 169}
FURTHER = {"variance": 50, "scale": 51, "shift": 52, "diff_scale": 255, "diff_shift": 256}  # of no description
FORWARD, BACKWARD, GELU, MULTIPLY, SOFTMAX, SCALE_AND_SHIFT = 64, 128, 49, 131057, 196608, 6
CHUNK = 2**21  # attention weights in memory at a time, unless one row of the batch has more


class OneDNN:
    def __init__(self):
        self.library = ctypes.CDLL(f"{os.path.dirname(paddle.__file__)}/libs/libdnnl.so.3")
        self.has_bfloat16 = bool(self.library.dnnl_get_effective_cpu_isa() & 0x80)  # AVX512_BF16 or AMX
        self.engine = self.new("engine_create", 1, ctypes.c_size_t(0))  # 1: a CPU's
        self.stream = self.new("stream_create", self.engine, 1)
        self.primitive = functools.cache(self.make)

    def call(self, name: str, *arguments) -> None:
        if status := getattr(self.library, f"dnnl_{name}")(*arguments):
            raise RuntimeError(f"oneDNN's {name} gave status {status}")

    def new(self, name: str, *arguments):
        self.call(name, ctypes.byref(handle := ctypes.c_void_p()), *arguments)
        return handle

    def run(self, kind: str, **values):
        """Runs a primitive on what its description takes in C, in that order, and FURTHER arrays; returns dst."""
        layouts = {n: (v.shape, v.strides, v.dtype) if isinstance(v, np.ndarray) else v for n, v in values.items()}
        primitive, memories, arguments = self.primitive(kind, **layouts)
        for name, memory in memories.items():
            self.call("memory_set_data_handle", memory, ctypes.c_void_p(values[name].ctypes.data))
        self.call("primitive_execute", primitive, self.stream, len(memories), arguments)
        return values.get("dst")

    def make(self, kind: str, **values) -> tuple:
        described, memories, arguments = [self.engine], {}, []
        for name, value in values.items():
            if isinstance(value, tuple):
                shape, strides, dtype = value
                numbers, strides = ctypes.c_int64 * len(shape), (stride // dtype.itemsize for stride in strides)
                layout = len(shape), numbers(*shape), DATA_TYPES[dtype.name], numbers(*strides)
                value = self.new("memory_desc_create_with_strides", *layout)
                memories[name] = self.new("memory_create", value, self.engine, None)
                arguments += (DESCRIBED | FURTHER)[name], memories[name].value
            if name not in FURTHER:
                described.append(ctypes.c_float(value) if isinstance(value, float) else value)
        if kind == "reorder":  # each array has an engine of its own
            described = described[1], self.engine, described[2], self.engine
        primitive = self.new("primitive_create", self.new(f"{kind}_primitive_desc_create", *described, None))
        return primitive, memories, (ctypes.c_uint64 * len(arguments))(*arguments)


@functools.cache
def onednn() -> OneDNN | None:
    """Paddle's own oneDNN; or None, which is said, where it is missing, lacks something or fails."""
    try:
        library, zero = OneDNN(), np.zeros((1, 1), np.float32)
        library.run("matmul", src=zero, weights=zero, bias=None, dst=zero)
        return library
    except (OSError, AttributeError, RuntimeError) as error:
        say(f"the CPU's faster layers are left out: {error}")
        return None


class Function(paddle.autograd.PyLayer):
    """Calls operation(out, *arguments) on arrays; it fills out and returns what fills the gradients."""

    @staticmethod
    def forward(ctx, operation, *arguments):
        ctx.shapes = [x.shape for x in arguments if isinstance(x, paddle.Tensor)]
        out = paddle.empty([*ctx.shapes[0][:-1], ctx.shapes[-1][-1]])  # as wide as the last
        ctx.write = operation(*(array_of(x) if isinstance(x, paddle.Tensor) else x for x in (out, *arguments)))
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
    memory = (ctypes.c_char * (4 * tensor.size)).from_address(tensor.data_ptr())
    memory.owner = tensor
    return np.frombuffer(memory, np.float32).reshape(tensor.shape)


def rounded(array, half: bool):
    """The array itself or, with half, its values in bfloat16, rounded to nearest."""
    return onednn().run("reorder", src=array, dst=np.empty(array.shape, np.uint16)) if half else array


def product(left, right, out, bias=None):
    return onednn().run("matmul", src=left, weights=right, bias=bias, dst=out)


def multiply(left, right, out):
    """The product of their elements; the left one itself where there is no right one."""
    return left if right is None else onednn().run("binary", algorithm=MULTIPLY, src=left, src_1=right, dst=out)


def linear_operation(out, layer, x, weight, bias):
    def by_output(array):  # [out, in], as the embedding's weight is, to which the output layer is tied
        return array if isinstance(layer, TransposedLinear) else array.T

    rows, weights = rounded(x.reshape(-1, x.shape[-1]), layer.half), by_output(rounded(weight, layer.half))
    product(rows, weights.T, out.reshape(-1, len(bias)), bias.reshape(1, -1))

    def write(by_out, by_x, by_weight, by_bias):
        diff_dst = rounded(by_out.reshape(-1, len(bias)), layer.half)
        product(diff_dst, weights, by_x.reshape(rows.shape))
        values = dict(src=rows, diff_weights=by_output(by_weight), diff_bias=by_bias, diff_dst=diff_dst)
        onednn().run("inner_product_backward_weights", **values, hint=None)

    return write


def gelu_operation(out, layer, x):
    onednn().run("eltwise_forward", prop=FORWARD, algorithm=GELU, src=x, dst=out, alpha=0.0, beta=0.0)
    kept = rounded(x, layer.half)  # half the memory

    def write(by_out, by_x):
        src = onednn().run("reorder", src=kept, dst=np.empty(kept.shape, np.float32)) if layer.half else kept
        values = dict(diff_src=by_x, diff_dst=by_out, src=src, alpha=0.0, beta=0.0)
        onednn().run("eltwise_backward", algorithm=GELU, **values, hint=None)

    return write


def layer_norm_operation(out, x, weight, bias, epsilon: float):
    mean, variance = np.empty((2, *x.shape[:-1]), np.float32)
    more = dict(mean=mean, epsilon=epsilon, flags=SCALE_AND_SHIFT, variance=variance, scale=weight, shift=bias)
    onednn().run("layer_normalization_forward", prop=FORWARD, src=x, dst=out, **more)

    def write(by_out, by_x, by_weight, by_bias):
        values = dict(diff_src=by_x, diff_dst=by_out, src=x, **more, diff_scale=by_weight, diff_shift=by_bias)
        onednn().run("layer_normalization_backward", prop=BACKWARD, **values, hint=None)

    return write


def dropout_operation(out, x, dropout: float):
    kept, factor = draw_kept(x.shape, dropout), np.float32(1 / (1 - dropout))
    np.multiply(multiply(x, kept, out), factor, out=out)
    return lambda by_out, by_x: np.multiply(multiply(by_out, kept, by_x), factor, out=by_x)


def draw_kept(shape, dropout: float) -> np.ndarray:
    """Which values dropout keeps, as uint8: not those whose 16 random bits are below the probability."""
    size, bits = math.prod(shape), np.random.SFC64(paddle.randint(2**31 - 1).item())  # so they follow paddle.seed
    draw = bits.random_raw(-(-size // 4)).view(np.uint16)[:size].reshape(shape)
    return (draw >= round(dropout * 2**16)).view(np.uint8)


def attention_operation(out, layer, query, key, value, mask, dropout: float):
    """A chunk of rows at a time; the backward pass computes the weights anew (Dao et al., 2022, section 3.1)."""
    (batch, seq, width), heads, half = query.shape, layer.num_heads, layer.half
    number = min(batch, -(-batch * heads * seq**2 // CHUNK))
    kept = draw_kept([batch, heads, seq, seq], dropout) if dropout else None
    factors = (width // heads) ** -0.5, 1, 1 / (1 - dropout)  # so that products need none
    operands = [rounded(x * np.float32(factor), half) for x, factor in zip((query, key, value), factors)]

    def chunks(*arrays):
        by_head = (array.reshape(batch, seq, heads, -1).swapaxes(1, 2) for array in arrays)
        return zip(*([None] * number if x is None else np.array_split(x, number) for x in (mask, kept, *by_head)))

    def attention_weights(mask, kept, q, k):
        """softmax(query key^T + mask), float32 [rows, heads, seq, seq], and the same after dropout."""
        weights = product(q, k.swapaxes(2, 3), np.empty((*q.shape[:3], seq), np.float32))
        if mask is not None:
            weights += mask
        onednn().run("softmax_forward", prop=FORWARD, algorithm=SOFTMAX, src=weights, dst=weights, axis=3)
        return weights, rounded(multiply(weights, kept, np.empty_like(weights)), half)

    for *drawn, q, k, v, context in chunks(*operands, out):
        product(attention_weights(*drawn, q, k)[1], v, context)

    def write(by_out, *gradients):
        for mask, kept, q, k, v, by_context, by_q, by_k, by_v in chunks(*operands, rounded(by_out, half), *gradients):
            weights, dropped = attention_weights(mask, kept, q, k)
            product(dropped.swapaxes(2, 3), by_context, by_v)
            by_weights = product(by_context, v.swapaxes(2, 3), np.empty_like(weights))
            multiply(by_weights, kept, by_weights)
            values = dict(diff_src=by_weights, diff_dst=by_weights, dst=weights, axis=3, hint=None)
            onednn().run("softmax_backward", algorithm=SOFTMAX, **values)
            by_weights = rounded(by_weights, half)
            product(by_weights, k, by_q)
            product(by_weights.swapaxes(2, 3), q, by_k)
        for array, factor in zip(gradients, factors):
            array *= np.float32(factor)

    return write


CPU_LAYERS = {
    nn.LayerNorm: lambda layer, x: Function.apply(layer_norm_operation, x, layer.weight, layer.bias, layer._epsilon),
    nn.Dropout: lambda layer, x: Function.apply(dropout_operation, x, layer.p) if layer.training and layer.p else x,
}


if __name__ == "__main__":
    utils.command_line(main)
