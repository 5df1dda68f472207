"""Pretrain RoBERTa with masked language modelling on the rows that create_data.py wrote.

    python run_pretrain.py --model_name_or_path roberta-en-tiny --input_file demo_data --max_seq_length 128 \
        --batch_size 32 --learning_rate 2e-3 --warmup_steps 50 --max_steps 400 --output_dir ckp     # a laptop
    python -m paddle.distributed.launch --gpus "0,1" run_pretrain.py --model_name_or_path roberta-en-base \
        --input_file wiki --batch_size 16 --output_dir ckp                                        # two GPUs
"""

import contextlib
import copy
import ctypes
import glob
import io
import json
import math
import os
import re
import shutil
import signal
import sys
import time

from utils import (
    ASIDE,
    IGNORE_INDEX,
    PARTIAL,
    ArgumentParser,
    DataCollatorMLM,
    EvaluationSampler,
    TokenRows,
    UpdateSampler,
    UserError,
    all_tokens,
    atomic_directory,
    boolean,
    command_line,
    damage_of,
    first_line,
    from_transformers,
    is_of_transformers,
    loss_without_context,
    number,
    peak_memory,
    prepare_for_paddle,
    recover_directory,
    token_shares,
    unigram_entropy,
    write_checksums,
)

prepare_for_paddle()  # threads, MKL and memory: read when Paddle is imported

import numpy as np

with contextlib.redirect_stderr(io.StringIO()):  # Paddle warns of more than one thread, which are wanted here
    import paddle
import paddle.distributed as dist
import paddle.nn.functional as F
import safetensors.numpy
from paddle.distributed.fleet.utils import recompute
from paddlenlp import transformers
from paddlenlp.utils.log import logger as paddlenlp_logger
from tqdm import tqdm

import datasets  # after paddlenlp, which warns otherwise

ARCHITECTURES = {  # layers, width, attention heads; base and large: RoBERTa, section 5; the others: BERT's small models
    "roberta-en-tiny": (2, 128, 2),
    "roberta-en-mini": (4, 256, 4),
    "roberta-en-small": (4, 512, 8),
    "roberta-en-base": (12, 768, 12),
    "roberta-en-large": (24, 1024, 16),
}
PEAK_TFLOPS = {"V100": 125, "T4": 65, "A100": 312, "A10": 125, "H100": 989}  # half precision, dense; data sheets
FAST_PATHS = True  # False: PaddleNLP's own encoder, in training and evaluation
MOMENTS = ("moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc")  # the tensors that Paddle's AdamW keeps
CHECKPOINT = re.compile(r"paddle_(\d+)$")


# ---------------------------------------------------------------- builders


class RobertaForMaskedLM(transformers.RobertaForMaskedLM):
    """PaddleNLP's model, its parameters and its checkpoints; given `masked_positions`, it predicts those alone.

    Set `padded` to False where no row holds <pad>: attention then needs no mask. With `recompute`, the backward pass
    computes each layer's activations anew instead of keeping them: less memory, a third more arithmetic.
    """

    padded, recompute, dropout_seed = True, False, 0

    def forward(self, input_ids, masked_positions=None, **kwargs):
        """Returns logits: [batch, seq, vocab], or for masked_positions int64 [n] (flat indices) [n, vocab].

        For RoBERTa-base at 15 %, the head on the masked positions alone saves about a quarter of the arithmetic.
        """
        if masked_positions is None:
            return super().forward(input_ids, **kwargs)
        hidden = self.encode(input_ids) if FAST_PATHS else self.roberta(input_ids)[0]
        return self.lm_head(paddle.gather(hidden.flatten(0, 1), masked_positions))

    def encode(self, input_ids):
        """What PaddleNLP's `self.roberta` computes, [batch, seq, width], with the fast paths below."""
        mask = None
        if self.padded:
            mask = ((input_ids == self.config.pad_token_id).astype(paddle.get_default_dtype()) * -1e4).unsqueeze([1, 2])
        hidden = self.roberta.embeddings(input_ids)
        for depth, layer in enumerate(self.roberta.encoder.layers, start=1):
            arguments = (layer, hidden, mask, self.dropout_seed + depth)
            if self.recompute and self.training:
                hidden = recompute(encoder_layer, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = encoder_layer(*arguments)
        return hidden


def encoder_layer(layer, hidden, mask, seed: int):
    """One layer of PaddleNLP's encoder; hidden and the result are [batch, seq, width].

    Its dropout is seeded here, so that computing it anew drops the same (Paddle 2.6.2 keeps no CPU generator's state).
    """
    paddle.seed(seed)
    attention = layer.self_attn
    projected = (linear(projection, hidden) for projection in (attention.q_proj, attention.k_proj, attention.v_proj))
    context = attend(*projected, mask, attention.dropout if layer.training else 0.0, attention.num_heads)
    hidden = layer.norm1(hidden + layer.dropout1(linear(attention.out_proj, context)))
    return layer.norm2(hidden + layer.dropout2(feed_forward(layer, hidden)))


def attend(query, key, value, mask, dropout: float, num_heads: int):
    """Scaled dot-product attention, the one place that chooses how; all but mask and the last are [batch, seq, width].

    On GPUs that have it (Ampere and later), in half precision and without padding, FlashAttention; on CPUs, a row at
    a time; else the plain way. All give the same, and the same gradients, but for rounding and which weights drop.
    """
    flash = has_flash_attention(query, mask)
    if query.place.is_cpu_place() and not flash:
        return RowwiseAttention.apply(query, key, value, mask, dropout, num_heads)
    heads = [x.reshape([*x.shape[:2], num_heads, -1]) for x in (query, key, value)]
    if flash:
        return F.scaled_dot_product_attention(*heads, dropout_p=dropout).reshape(query.shape)
    query_heads, key_heads, value_heads = (x.transpose([0, 2, 1, 3]) for x in heads)
    weights = F.dropout(attention_weights(query_heads, key_heads, mask), dropout)
    return paddle.matmul(weights, value_heads).transpose([0, 2, 1, 3]).reshape(query.shape)


def has_flash_attention(query, mask) -> bool:
    return mask is None and query.dtype != paddle.float32 and has_ampere()


def attention_weights(query, key, mask):
    product = paddle.matmul(query * query.shape[-1] ** -0.5, key, transpose_y=True)
    return F.softmax(product if mask is None else product + mask.astype(product.dtype))


class RowwiseAttention(paddle.autograd.PyLayer):
    """Attention on a CPU, a row of the batch at a time: its weights stay in the cache, and none are kept.

    The backward pass computes them anew (as FlashAttention does: Dao et al., 2022, section 3.1). A weight is dropped
    where 16 random bits are below the probability: Paddle's own dropout takes longer than the matrix products here.
    """

    @staticmethod
    def forward(ctx, query, key, value, mask, dropout, num_heads):
        ctx.mask, ctx.threshold, ctx.num_heads = mask, round(dropout * 2**16), num_heads
        ctx.seed = paddle.randint(2**31 - 1).item() if dropout else 0  # so it follows paddle.seed
        ctx.save_for_backward(query, key, value)
        rows = RowwiseAttention.rows_of(ctx, query, key, value)
        return paddle.stack([join_heads(paddle.matmul(weights * kept, v)) for weights, kept, _, _, v in rows])

    @staticmethod
    def rows_of(ctx, *inputs):
        """Yields for each row the weights and what dropout multiplies them by, both [heads, seq, seq]; q, k and v."""
        bits = np.random.SFC64(ctx.seed)
        for row in range(inputs[0].shape[0]):
            query, key, value = (split_heads(x[row], ctx.num_heads) for x in inputs)
            weights, kept = attention_weights(query, key, None if ctx.mask is None else ctx.mask[row]), 1.0
            if ctx.threshold:
                size = math.prod(weights.shape)
                draw = bits.random_raw(-(-size // 4)).view(np.uint16)[:size].reshape(weights.shape)
                kept = paddle.to_tensor(draw >= ctx.threshold).astype(weights.dtype) * (2**16 / (2**16 - ctx.threshold))
            yield weights, kept, query, key, value

    @staticmethod
    def backward(ctx, gradient):
        gradients = []
        for row, (weights, kept, query, key, value) in enumerate(RowwiseAttention.rows_of(ctx, *ctx.saved_tensor())):
            by_context = split_heads(gradient[row], ctx.num_heads)
            by_weights = paddle.matmul(by_context, value, transpose_y=True) * kept
            by_product = weights * (by_weights - (weights * by_weights).sum(-1, keepdim=True)) * query.shape[-1] ** -0.5
            by_query, by_key = paddle.matmul(by_product, key), paddle.matmul(by_product, query, transpose_x=True)
            by_value = paddle.matmul(weights * kept, by_context, transpose_x=True)
            gradients.append([join_heads(x) for x in (by_query, by_key, by_value)])
        return tuple(map(paddle.stack, zip(*gradients)))


def split_heads(row, num_heads: int):
    """[seq, width] as [heads, seq, head_dim]."""
    return row.reshape([row.shape[0], num_heads, -1]).transpose([1, 0, 2])


def join_heads(row):
    """The inverse of split_heads()."""
    return row.transpose([1, 0, 2]).reshape([row.shape[1], -1])


def linear(layer, x):
    """layer(x) for x [batch, seq, in]. On a CPU the bias is added as a product with ones: so is its gradient, at 30
    times the speed of the sum that Paddle takes otherwise (33 ms for 2,048 x 3,072, a fifth of the layer's time)."""
    return paddle.matmul(x, layer.weight) + bias_rows(layer, x) if x.place.is_cpu_place() else layer(x)


def bias_rows(layer, x):
    return paddle.matmul(paddle.ones([*x.shape[:-1], 1]), layer.bias.unsqueeze(0))


def feed_forward(layer, hidden):
    inner = linear(layer.linear1, hidden)
    if inner.place.is_cpu_place():
        return ActivatedProduct.apply(inner, layer.linear2.weight, layer.activation) + bias_rows(layer.linear2, inner)
    return layer.linear2(layer.activation(inner))


class ActivatedProduct(paddle.autograd.PyLayer):
    """activation(x) @ weight, keeping x alone: for RoBERTa-base at 4 x 512 tokens, 0.3 GB less, and no slower."""

    @staticmethod
    def forward(ctx, x, weight, activation):
        ctx.activation = activation
        ctx.save_for_backward(x, weight)
        return paddle.matmul(activation(x), weight)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensor()
        x = x.detach()
        x.stop_gradient = False
        with paddle.enable_grad():
            activated = ctx.activation(x)
        [by_x] = paddle.grad(activated, x, paddle.matmul(gradient, weight, transpose_y=True))
        by_weight = paddle.matmul(activated.detach().flatten(0, 1), gradient.flatten(0, 1), transpose_x=True)
        return by_x, by_weight


def build_config(name: str, tokenizer, max_seq_length: int):
    """The configuration of an architecture of ours, or of the directory or hub id with weights to continue from."""
    positions = max_seq_length + tokenizer.pad_token_id + 1  # RoBERTa numbers positions from pad_token_id + 1
    if name in ARCHITECTURES:
        layers, width, heads = ARCHITECTURES[name]
        return transformers.RobertaConfig(  # every value: PaddleNLP's defaults are BERT's
            vocab_size=tokenizer.vocab_size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            hidden_act="gelu",
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
            max_position_embeddings=max(514, positions),
            type_vocab_size=1,
            initializer_range=0.02,
            layer_norm_eps=1e-5,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            cls_token_id=tokenizer.cls_token_id,
        )
    try:
        config = transformers.RobertaConfig.from_pretrained(name)
    except Exception as error:  # PaddleNLP's loader raises errors of many kinds
        raise UserError(
            f"cannot load the model {name}: it is neither one of {', '.join(ARCHITECTURES)} nor a directory or hub id "
            f"with a config.json ({first_line(error)})"
        ) from error
    for what, of_model, of_data in (
        ("vocab_size", config.vocab_size, tokenizer.vocab_size),
        ("pad_token_id", config.pad_token_id, tokenizer.pad_token_id),
    ):
        if of_model != of_data:
            raise UserError(
                f"{name} has {what} {of_model}, the data's tokenizer {of_data}: prepare the data with the "
                f"model's tokenizer (create_data.py --tokenizer_name {name})"
            )
    if (vocabulary := vocabulary_of(name)) and vocabulary != tokenizer.get_vocab():
        raise UserError(f"{name} has another tokenizer than the data: prepare it with --tokenizer_name {name}")
    if config.max_position_embeddings < positions:
        raise UserError(
            f"{name} has positions for {config.max_position_embeddings - tokenizer.pad_token_id - 1} tokens, "
            f"--max_seq_length {max_seq_length} needs more"
        )
    return config


def vocabulary_of(folder: str) -> dict | None:
    """The ids by token of the tokenizer in a model's directory, or None where there is none."""
    for name, tokens_of in (("vocab.json", dict), ("tokenizer.json", all_tokens)):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                return tokens_of(json.load(file))
    return None


def load_model(source: str, config):
    """The model with the weights of a directory or hub id, in PaddleNLP's layout or in transformers'."""
    try:
        if not is_of_transformers(source):
            return RobertaForMaskedLM.from_pretrained(source, config=config)
        model = RobertaForMaskedLM(config)
        weights = from_transformers(safetensors.numpy.load_file(os.path.join(source, "model.safetensors")))
        if missing := set(model.state_dict()) - set(weights):
            raise ValueError(f"its model.safetensors has no {min(missing)}")
        model.set_state_dict({name: weights[name] for name in model.state_dict()})
        return model
    except Exception as error:  # PaddleNLP's loader raises errors of many kinds
        raise UserError(f"cannot load the weights of {source}: {first_line(error)}") from error


def build_optimizer(model, args):
    """AdamW; weight decay on matrices and embeddings only, not on biases and layer normalisation."""
    decayed = {parameter.name for parameter in model.parameters() if parameter.ndim >= 2}
    return paddle.optimizer.AdamW(
        learning_rate=args.learning_rate,
        beta1=0.9,
        beta2=0.98,  # RoBERTa, section 3.1
        epsilon=args.adam_epsilon,
        parameters=model.parameters(),
        weight_decay=args.weight_decay,
        apply_decay_param_fun=decayed.__contains__,
    )


def build_scaler(args):
    """Loss scaling, which float16 needs and bfloat16 does not; disabled, it does nothing."""
    enable = args.amp and args.amp_dtype == "float16"
    return paddle.amp.GradScaler(enable=enable, init_loss_scaling=args.scale_loss)


def use_half_precision_weights(model, optimizer, args) -> None:
    """AMP level O2: the weights become half precision, and the optimizer keeps each in float32 (untested, as a CPU
    has no O2). Checkpoints hold the float32 ones, so they are alike at both levels."""
    exact = {parameter.name: parameter.detach().clone() for parameter in model.parameters()}
    for name, tensor in exact.items():
        tensor.name = name  # Paddle names the moments after these: as at level O1
    paddle.amp.decorate(model, optimizer, level="O2", dtype=args.amp_dtype, master_weight=True)
    halved = [parameter.name for parameter in model.parameters() if parameter.dtype != paddle.float32]
    optimizer.set_state_dict({"master_weights": {name: exact[name] for name in halved}})


def build_loader(rows, sampler, collator, args):
    def collate(examples):
        batch = collator(examples)
        if not len(batch["masked_positions"]):  # Paddle 2.6.2 multiplies no empty matrix: one ignored position
            batch["masked_positions"] = np.zeros(1, dtype=np.int64)
        return batch

    def follow_the_trainer(worker_id):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # some send it to all processes: it is the trainer's to handle
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(OSError, AttributeError):  # elsewhere than on Linux, a killed trainer's may live on
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    return paddle.io.DataLoader(
        rows,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=args.num_workers,
        worker_init_fn=follow_the_trainer,
        use_shared_memory=False,  # which outlives killed runs, and is scarce in containers; the batches are small
    )


@contextlib.contextmanager
def batches_of(loader):
    """Yields an iterator over the loader; when the block ends, so do the loader's workers, in good order."""
    batches = (batch for batch in loader)  # the loader's own iterator fails when it is asked again after its end
    try:
        yield batches
    finally:
        loader.batch_sampler.ended = True
        for _made_ahead in batches:
            pass
        loader.batch_sampler.ended = False


# ---------------------------------------------------------------- steps


def learning_rate_at(step: int, peak: float, warmup_steps: int, total_steps: int) -> float:
    """The rate of update `step`, counted from 1: linear warmup, then linear decay to 0 at the last."""
    if step <= warmup_steps:
        return peak * step / warmup_steps
    return peak * (total_steps - step) / (total_steps - warmup_steps)


def seed_dropout(model, *key: int) -> None:
    """Seeds it from (seed, step, micro step, rank), so that no generator state need be saved."""
    model.dropout_seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    paddle.seed(model.dropout_seed)


def masked_loss(model, batch: dict) -> tuple:
    """Returns the sum of the cross entropy over the masked tokens, their logits [n, vocab] and their labels [n]."""
    labels = paddle.gather(batch["labels"].flatten(), batch["masked_positions"])
    logits = model(batch["input_ids"], masked_positions=batch["masked_positions"]).astype("float32")
    return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum"), logits, labels


def number_masked(batch: dict):
    return (batch["labels"] != IGNORE_INDEX).astype("float32").sum()


def sum_over_ranks(tensor):
    if dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def train_update(model, optimizer, scaler, batches: list, step: int, stop: bool, args) -> dict:
    """One optimizer update over this rank's micro-batches; the loss is the mean over all masked tokens of all ranks.

    Returns {"loss_sum", "num_masked", "grad_norm", "stop", "skipped"}, equal on all ranks. A non-finite loss or
    gradient leaves the weights as they are.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    totals = paddle.stack([sum(map(number_masked, batches)), paddle.full([], float(stop))])
    num_masked, stops = sum_over_ranks(totals)
    weight = world_size / paddle.clip(num_masked, min=1)  # DataParallel divides by the number of ranks
    loss_sum = paddle.zeros([])
    for micro_step, batch in enumerate(batches):
        seed_dropout(unwrap(model), args.seed, step, micro_step, rank)
        is_last = micro_step == len(batches) - 1
        with contextlib.nullcontext() if is_last or world_size == 1 else model.no_sync():
            with auto_cast(args):
                loss, _, _ = masked_loss(model, batch)
            scaler.scale(loss * weight).backward()
        loss_sum += loss.detach()
    scaler.unscale_(optimizer)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    with paddle.no_grad():
        grad_norm = paddle.stack([gradient.astype("float32").square().sum() for gradient in gradients]).sum().sqrt()
    read = paddle.stack([sum_over_ranks(loss_sum), num_masked, grad_norm, stops]).tolist()  # the one host read
    result = dict(zip(("loss_sum", "num_masked", "grad_norm", "stop"), read))
    result["skipped"] = not (math.isfinite(result["loss_sum"]) and math.isfinite(result["grad_norm"]))
    if not result["skipped"] and result["grad_norm"] > args.max_grad_norm > 0:
        with paddle.no_grad():
            for gradient in gradients:
                gradient.scale_(args.max_grad_norm / result["grad_norm"])
    if not result["skipped"] or scaler.is_enable():  # an enabled scaler skips the step itself, and lowers its scale
        scaler.step(optimizer)
    scaler.update()
    optimizer.clear_grad(set_to_zero=False)
    return result


def auto_cast(args):
    return paddle.amp.auto_cast(enable=args.amp, dtype=args.amp_dtype, level=args.amp_level)


@paddle.no_grad()
def evaluate(model, loader, stop, args) -> dict | None:
    """Mean loss (nats), perplexity and accuracy over the masked tokens of all ranks' shares of the validation rows.

    None if `stop` is requested of any rank, which then ends its share at once.
    """
    model.eval()
    totals = paddle.zeros([3], dtype="float64")
    with batches_of(loader) as batches:
        for batch in batches:
            if stop.requested:
                break
            with auto_cast(args):
                loss, logits, labels = masked_loss(model, batch)
            correct = (logits.argmax(-1) == labels).astype("float32").sum()
            totals += paddle.stack([loss, correct, number_masked(batch)]).astype("float64")
    model.train()
    stopping = paddle.full([1], float(stop.requested), dtype="float64")
    loss, correct, num_masked, stops = sum_over_ranks(paddle.concat([totals, stopping])).tolist()
    if stops:
        return None
    loss /= max(num_masked, 1)
    return {
        "eval_loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "accuracy": correct / max(num_masked, 1),
        "eval_masked_tokens": int(num_masked),
    }


def update_flops(config, tokens: int, seq_length: int, num_masked: float) -> float:
    """Floating-point operations of one update: forward, and twice that backward (dropout, norms etc. left out).

    For a layer of width h and feed-forward width f, a token costs 2 (4 h^2 + 2 h f) in the matrices and 4 s h in
    attention over s positions; a masked token costs 2 (h^2 + h V) in the head with vocabulary V.
    """
    h, f = config.hidden_size, config.intermediate_size
    encoder = config.num_hidden_layers * (2 * (4 * h * h + 2 * h * f) + 4 * seq_length * h)
    return 3 * (tokens * encoder + num_masked * 2 * (h * h + h * config.vocab_size))


# ---------------------------------------------------------------- checkpoints


def save_checkpoint(path: str, model, tokenizer_dir: str, optimizer, scaler, state: dict) -> None:
    """Writes what from_pretrained() of PaddleNLP reads, and training_state/ to resume from; whole, or not at all."""
    with atomic_directory(path) as folder:
        config = copy.deepcopy(model.config)
        config.dtype = "float32"  # also where the weights in memory are in half precision
        weights = float32_weights(model, optimizer)
        model.save_pretrained(folder, state_dict=weights, config_to_save=config, safe_serialization=True)
        shutil.copytree(tokenizer_dir, folder, dirs_exist_ok=True)
        training_state = os.path.join(folder, "training_state")
        os.makedirs(training_state)
        moments = optimizer.state_dict()
        tensors = {ours: moments[name].numpy() for ours, name in moment_names(model).items() if name in moments}
        safetensors.numpy.save_file(tensors, os.path.join(training_state, "optimizer.safetensors"))
        scaler_state = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in scaler.state_dict().items()}
        with open(os.path.join(training_state, "state.json"), "w") as file:
            json.dump({**state, "scaler": scaler_state}, file, indent=2)
        write_checksums(folder)


def float32_weights(model, optimizer) -> dict:
    exact = optimizer.state_dict().get("master_weights", {})  # AMP level O2
    return {name: exact.get(tensor.name, tensor) for name, tensor in model.state_dict().items()}


def moment_names(model) -> dict:
    """Our names of the optimizer's tensors, "PARAMETER/moment1" and so on with the model's own names, and Paddle's.

    Paddle's ("embedding_0.w_0_moment1_0") shift when another model was built earlier in the process.
    """
    return {f"{name}/{kind}": f"{p.name}_{kind}_0" for name, p in model.named_parameters() for kind in MOMENTS}


def load_state(checkpoint: str) -> dict:
    with open(os.path.join(checkpoint, "training_state", "state.json")) as file:
        return json.load(file)


def load_optimizer(checkpoint: str, state: dict, model, optimizer, scaler) -> None:
    names = moment_names(model)
    tensors = safetensors.numpy.load_file(os.path.join(checkpoint, "training_state", "optimizer.safetensors"))
    optimizer.set_state_dict({names[name]: paddle.to_tensor(array) for name, array in tensors.items()})
    scaler.load_state_dict(state["scaler"] and {**state["scaler"], "scale": np.array(state["scaler"]["scale"])})


def checkpoints_in(output_dir: str) -> list:
    """The checkpoints' paths, the oldest first; none is half-written, but one may be damaged since."""
    found = glob.glob(os.path.join(glob.escape(output_dir), "paddle_*"))
    return sorted(filter(CHECKPOINT.search, found), key=step_of)


def step_of(checkpoint: str) -> int:
    return int(CHECKPOINT.search(checkpoint)[1])


def find_checkpoint(args) -> str | None:
    """The checkpoint to resume from, or None for a fresh start; damaged ones are never used."""
    found = checkpoints_in(args.output_dir)
    if args.resume_from_checkpoint == "no":
        if found:
            raise UserError(
                f"{args.output_dir} holds checkpoints ({os.path.basename(found[-1])}): continue with "
                "--resume_from_checkpoint auto, or choose another --output_dir"
            )
        return None
    if args.resume_from_checkpoint != "auto":
        if damage := damage_of(args.resume_from_checkpoint):
            raise UserError(f"cannot resume from {args.resume_from_checkpoint}: {damage}")
        return args.resume_from_checkpoint
    for path in reversed(found):
        if not (damage := damage_of(path)):
            return path
        print(f"warning: passing over the checkpoint {path}: {damage}", file=sys.stderr)
    if found:
        raise UserError(f"every checkpoint in {args.output_dir} is damaged: move them away to start anew")
    return None


# ---------------------------------------------------------------- loop


class MetricsLog:
    """What rank 0 reports: lines on the terminal, metrics.jsonl and VisualDL's files, both below output_dir.

    A resumed run drops what metrics.jsonl holds beyond the step it resumes from, so each step stands there once, and
    writes VisualDL's file anew from the rest: of several files in a directory VisualDL shows the newest alone.
    """

    def __init__(self, output_dir: str, step: int):
        from visualdl import LogWriter

        self.path = os.path.join(output_dir, "metrics.jsonl")
        kept, folder = self._drop_beyond(step), os.path.join(output_dir, "visualdl")
        shutil.rmtree(folder, ignore_errors=True)
        self.writer = LogWriter(logdir=folder)
        for record in kept:
            self._add_to_visualdl(**record)

    def _drop_beyond(self, step: int) -> list:
        kept = []
        with open(self.path) as old, open(self.path + PARTIAL, "w") as file:
            for line in old:
                with contextlib.suppress(ValueError):  # the last line of a killed run may be half a line
                    record = json.loads(line)
                    if (record["step"], record["event"] == "evaluation") < (step, True):
                        file.write(line)
                        kept.append(record)
        os.replace(self.path + PARTIAL, self.path)
        return kept

    def _add_to_visualdl(self, event: str, step: int, **values) -> None:
        for name, value in values.items():
            if value is not None:
                self.writer.add_scalar(f"{event}/{name}", value, step)

    def __call__(self, event: str, step: int, record: dict) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in record.items()}  # JSON has no NaN
        with open(self.path, "a") as file:
            file.write(json.dumps({"event": event, "step": step, **finite}) + "\n")
        self._add_to_visualdl(event, step, **finite)
        self.writer.flush()  # its thread does so only now and then
        shown = ", ".join(
            f"{name} {value:,.0f}" if value >= 1000 else f"{name} {value:.4g}" for name, value in record.items()
        )
        tqdm.write(f"{event} at step {step:,}: {shown}")


class StopSignal:
    """Turns SIGTERM and SIGINT into `requested`, read once per update and per batch of an evaluation; a second SIGINT
    exits at once."""

    def __init__(self):
        self.requested = False
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, signum, frame):
        self.requested = True
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))


class LogWindow:
    """What happened since the last report. `sums` is kept in checkpoints, the speeds are not."""

    def __init__(self, sums: dict | None = None):
        self.sums = sums or {"loss_sum": 0.0, "num_masked": 0.0, "skipped_updates": 0}
        self.updates = self.tokens = self.flops = 0
        self.data_seconds = self.update_seconds = 0.0

    def add(self, result: dict, batches: list, config, data_seconds: float, update_seconds: float) -> None:
        if result["skipped"]:
            self.sums["skipped_updates"] += 1
        else:
            self.sums["loss_sum"] += result["loss_sum"]
            self.sums["num_masked"] += result["num_masked"]
        tokens = dist.get_world_size() * sum(batch["input_ids"].size for batch in batches)
        self.flops += update_flops(config, tokens, batches[0]["input_ids"].shape[1], result["num_masked"])
        self.tokens += tokens
        self.updates += 1
        self.data_seconds += data_seconds
        self.update_seconds += update_seconds

    def record(self, result: dict, optimizer, scaler, updates_left: int) -> dict:
        """What is reported; speeds are those of all ranks together, their tokens positions of the batches."""
        seconds = self.data_seconds + self.update_seconds
        record = {
            "loss": self.sums["loss_sum"] / (self.sums["num_masked"] or math.nan),
            "learning_rate": optimizer.get_lr(),
            "grad_norm": result["grad_norm"],
            "skipped_updates": self.sums["skipped_updates"],
            "loss_scale": loss_scale(scaler),
            "steps_per_second": self.updates / seconds,
            "tokens_per_second": self.tokens / seconds,
            "tflops": self.flops / seconds / 1e12,
            "data_wait_percent": 100 * self.data_seconds / seconds,
            "eta_hours": updates_left * seconds / self.updates / 3600,
            "peak_memory_gb": device_memory(),
        }
        if peak := peak_tflops():
            record["mfu_percent"] = 100 * record["tflops"] / (peak * dist.get_world_size())
        return record


def train(model, optimizer, scaler, micro_batches, validation, total_steps, state, log, save, args) -> dict | None:
    """Runs the updates from state["step"] to the last; returns the last evaluation, or None if a signal ended it.

    `log(event, step, record)` reports, `save(state)` writes a checkpoint. The evaluation of a step comes after its
    checkpoint, so a run that is resumed there begins with it.
    """
    stop, window, config = StopSignal(), LogWindow(state["window"]), unwrap(model).config
    disable = None if dist.get_rank() == 0 else True  # None: shown on a terminal
    progress = tqdm(total=total_steps, initial=state["step"], unit="update", disable=disable)
    while True:
        step = state["step"]
        if step and (step % args.save_steps == 0 or step == total_steps):
            evaluation = evaluate(unwrap(model), validation, stop, args)
            if evaluation is None:
                return None
            log("evaluation", step, evaluation)
        if step == total_steps:
            return evaluation
        started = time.perf_counter()
        batches = [next(micro_batches) for _ in range(args.gradient_accumulation_steps)]
        loaded = time.perf_counter()
        optimizer.set_lr(learning_rate_at(step + 1, args.learning_rate, args.warmup_steps, total_steps))
        result = train_update(model, optimizer, scaler, batches, step, stop.requested, args)
        window.add(result, batches, config, loaded - started, time.perf_counter() - loaded)
        state["step"] = step = step + 1
        progress.update()
        state["skipped_in_a_row"] = state["skipped_in_a_row"] + 1 if result["skipped"] else 0
        if step % args.logging_steps == 0:
            log("train", step, window.record(result, optimizer, scaler, total_steps - step))
            window = LogWindow()
        if state["skipped_in_a_row"] >= args.max_skipped_updates:
            raise UserError(
                f"{state['skipped_in_a_row']} updates in a row had a non-finite loss or gradient, the last at step "
                f"{step} (learning rate {optimizer.get_lr():.3g}, loss scale {loss_scale(scaler):g}); the newest "
                f"checkpoint is {(checkpoints_in(args.output_dir) or ['none'])[-1]}. Lower --learning_rate, or in "
                "float16 --scale_loss, in a new --output_dir; --model_name_or_path may name that checkpoint"
            )
        state["window"] = window.sums
        if result["stop"] or step % args.save_steps == 0 or step == total_steps:
            save(state)
        if result["stop"] and step < total_steps:
            return None


def loss_scale(scaler) -> float:
    return scaler.state_dict()["scale"].item() if scaler.is_enable() else 1.0


def unwrap(model):
    return model._layers if isinstance(model, paddle.DataParallel) else model


def device_memory() -> float:
    """The most that this process has held so far, in GB: tensors on a GPU, all resident memory on a CPU."""
    if paddle.get_device().startswith("gpu"):
        return paddle.device.cuda.max_memory_allocated() / 1e9
    return peak_memory() / 1e3


def peak_tflops() -> float | None:
    """The GPU's peak in half precision where it is known; None elsewhere."""
    if not paddle.get_device().startswith("gpu"):
        return None
    name = paddle.device.cuda.get_device_name()
    return next((peak for model, peak in PEAK_TFLOPS.items() if re.search(rf"\b{model}\b", name)), None)


# ---------------------------------------------------------------- arguments


def parse_arguments(argv: list | None):
    parser = ArgumentParser("Pretrain RoBERTa with masked language modelling.")
    positive, not_negative = number(int, 1), number(float, 0)
    add = parser.add_argument_group("data").add_argument
    add("--input_file", default="wiki", help="directory that create_data.py wrote")
    add("--max_seq_length", type=number(int, 4), default=512, help="longest row of the data, in tokens")
    add("--mlm_probability", type=number(float, 0, 1, above=0), default=0.15, help="share predicted")
    add("--num_workers", type=number(int, 0), help="processes that mask batches (0 on CPU, else 2)")
    add = parser.add_argument_group("model").add_argument
    add(
        "--model_name_or_path",
        default="roberta-en-base",
        help=f"trained from scratch: {', '.join(ARCHITECTURES)}; or a directory or hub id to continue from",
    )
    add(
        "--dropout",
        type=number(float, 0, 0.99),
        help="probability for hidden states and attention weights (the model's own: 0.1 from scratch)",
    )
    add = parser.add_argument_group("optimization").add_argument
    add("--batch_size", type=positive, default=16, help="rows per device and micro-batch")
    add("--gradient_accumulation_steps", type=positive, default=1, help="micro-batches per update")
    add("--learning_rate", type=not_negative, default=1e-4, help="peak, reached after the warmup")
    add("--weight_decay", type=not_negative, default=1e-2, help="AdamW's, on tensors of two dimensions or more")
    add("--adam_epsilon", type=number(float, above=0), default=1e-6, help="AdamW's")
    add("--max_grad_norm", type=not_negative, default=1.0, help="gradients are clipped to this norm; 0: never")
    add("--warmup_steps", type=number(int, 0), default=0, help="updates until the peak learning rate")
    add("--num_train_epochs", type=not_negative, default=3, help="passes over the data")
    add("--max_steps", type=number(int, -1), default=-1, help="end after so many updates, if sooner; -1: no limit")
    add("--max_skipped_updates", type=positive, default=5, help="non-finite updates in a row that end the run")
    add(
        "--recompute", type=boolean, default=False, help="less memory, a third more arithmetic: long rows, large models"
    )
    add("--seed", type=number(int, 0, 2**31), default=42, help="draws weights, order, masks and dropout")
    add = parser.add_argument_group("logging and checkpoints").add_argument
    add("--output_dir", default="ckp", help="for checkpoints, metrics.jsonl and VisualDL's files")
    add("--logging_steps", type=positive, default=100, help="updates between reports")
    add("--save_steps", type=positive, default=10000, help="updates between checkpoint + evaluation")
    add("--save_total_limit", type=positive, help="checkpoints kept, the newest; all if left out")
    add("--resume_from_checkpoint", default="no", help="`auto` (the newest in output_dir, if any), a path, or `no`")
    add = parser.add_argument_group("runtime").add_argument
    add("--device", choices=["cpu", "gpu", "xpu"], help="the GPU where Paddle sees one, else the CPU")
    add("--amp", type=boolean, default=True, help="mixed precision, on devices that have it")
    add(
        "--amp_dtype",
        choices=["float16", "bfloat16"],
        help="bfloat16, which needs no loss scaling, on GPUs from Ampere on if left out; else float16",
    )
    add("--amp_level", choices=["O1", "O2"], default="O1", help="O2: weights in half precision too")
    add("--scale_loss", type=number(float, above=0), default=2.0**15, help="first loss scale in fp16")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- main


def set_device(args) -> None:
    """Selects the device and prints it; joins the other ranks when started by paddle.distributed.launch."""
    present = {
        "cpu": True,
        "gpu": paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0,
        "xpu": paddle.is_compiled_with_xpu(),
    }
    args.device = args.device or ("gpu" if present["gpu"] else "cpu")
    if not present[args.device]:
        raise UserError(f"--device {args.device}: Paddle {paddle.__version__} sees none here; try --device cpu")
    paddle.set_device(args.device)
    if dist.get_world_size() > 1:
        dist.init_parallel_env()
    say(f"device: {args.device}, {dist.get_world_size()} process(es), Paddle {paddle.__version__}")
    set_precision(args)
    if args.num_workers is None:
        args.num_workers = 0 if args.device == "cpu" else 2


def set_precision(args) -> None:
    """Chooses what was left open of --amp, --amp_dtype and --amp_level, and prints it."""
    if args.amp and args.device == "cpu":
        say("amp: on a CPU the computation stays in float32, without loss scaling")
        args.amp = False
    args.amp_dtype = args.amp_dtype or ("bfloat16" if has_ampere() else "float16")
    if not args.amp:
        return
    if args.amp_dtype == "bfloat16" and args.device == "gpu" and not has_ampere():
        raise UserError("--amp_dtype bfloat16: this GPU has none (Ampere and later do); take float16")
    scaling = f"loss scaling from {args.scale_loss:g}" if args.amp_dtype == "float16" else "no loss scaling"
    say(f"amp: {args.amp_dtype}, level {args.amp_level}, {scaling}")


def has_ampere() -> bool:
    """Whether the device is a GPU with bfloat16 and FlashAttention: of compute capability 8 or later."""
    return paddle.get_device().startswith("gpu") and paddle.device.cuda.get_device_capability()[0] >= 8


def say(message: str) -> None:
    if dist.get_rank() == 0:
        print(message, flush=True)


def load_data(args) -> tuple:
    """Returns the data's tokenizer and {"train": TokenRows, "validation": TokenRows}."""
    if not os.path.isdir(args.input_file):
        raise UserError(f"--input_file {args.input_file}: no such directory; create_data.py --output_dir writes one")
    try:
        splits = datasets.load_from_disk(args.input_file)
        splits = {name: splits[name] for name in ("train", "validation")}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"--input_file {args.input_file}: not a data set of create_data.py, or damaged ({error})"
        ) from error
    for name, split in splits.items():
        if missing := {"input_ids", "special_tokens_mask"} - set(split.column_names):
            raise UserError(f"--input_file {args.input_file}: the {name} split has no column {', '.join(missing)}")
    rows = {name: TokenRows(split) for name, split in splits.items()}
    longest = max(max(split.lengths) for split in rows.values())
    if longest > args.max_seq_length:
        raise UserError(
            f"--input_file {args.input_file} has rows of {longest} tokens: set --max_seq_length {longest}, or prepare "
            f"shorter ones (create_data.py --max_seq_length {args.max_seq_length})"
        )
    try:
        if not os.path.isdir(tokenizer_dir(args)):
            raise FileNotFoundError("no such directory")
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_dir(args))
    except Exception as error:  # PaddleNLP's loader raises errors of many kinds
        raise UserError(f"{tokenizer_dir(args)} holds no tokenizer, which create_data.py writes ({error})") from error
    if len(rows["validation"].token_counts) > tokenizer.vocab_size:
        raise UserError(f"--input_file {args.input_file}: the rows have ids beyond its tokenizer's vocabulary")
    return tokenizer, rows


def tokenizer_dir(args) -> str:
    return os.path.join(args.input_file, "tokenizer")


def count_updates(sampler: UpdateSampler, args) -> int:
    """T = epochs x updates per epoch, or max_steps if that is positive and smaller."""
    if sampler.updates_per_epoch == 0:
        raise UserError(
            f"a global batch of {math.prod(sampler.shape)} rows is larger than the data ({sampler.num_rows} rows): "
            "lower --batch_size or --gradient_accumulation_steps"
        )
    total = math.floor(args.num_train_epochs * sampler.updates_per_epoch)
    total = min(total, args.max_steps) if args.max_steps > -1 else total
    if total == 0:
        raise UserError("nothing to train: --max_steps is 0 (-1 sets no limit), or --num_train_epochs gives no update")
    if args.warmup_steps > total:
        raise UserError(f"--warmup_steps {args.warmup_steps} is longer than the training, {total} updates")
    return total


def run_identity(args, config, sampler: UpdateSampler) -> dict:
    """What the result depends on: everything but how a global batch is cut into devices and micro-batches."""
    data, path = {"rows": sampler.num_rows}, os.path.join(args.input_file, "data_card.json")
    if os.path.exists(path):
        try:
            with open(path, encoding="utf-8") as file:
                card = json.load(file)
            data.update({key: card[key] for key in ("fingerprint", "tokenizer", "splits")})
        except (ValueError, KeyError) as error:
            raise UserError(f"{path} is damaged ({error}): prepare the data anew, or remove the file") from error
    names = "learning_rate weight_decay adam_epsilon max_grad_norm warmup_steps seed mlm_probability"
    names += " amp amp_dtype amp_level scale_loss" if args.amp else " amp"
    identity = {
        **{name: getattr(args, name) for name in names.split()},
        "data": data,
        "global_batch": math.prod(sampler.shape),
        "total_steps": sampler.updates,
        "architecture": {k: v for k, v in config.to_dict().items() if k not in ("architectures", "paddlenlp_version")},
    }
    return json.loads(json.dumps(identity))


def check_same_run(identity: dict, saved: dict, path: str) -> None:
    was, now = flattened(saved), flattened(identity)
    changed = [f"{k} (was {was.get(k)}, is {now.get(k)})" for k in {**now, **was} if was.get(k) != now.get(k)]
    if changed:
        raise UserError(
            f"cannot resume from {path}: these would change the result: {'; '.join(changed)}. Undo the change, or "
            "start a new run in another --output_dir"
        )


def flattened(tree: dict, path: str = "") -> dict:
    """{"data": {"rows": 1}} as {"data.rows": 1}."""
    flat = {}
    for key, value in tree.items():
        flat |= flattened(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return flat


def check_same_step(step: int) -> None:
    if sum_over_ranks(paddle.full([1], step, dtype="int64")).item() != dist.get_world_size() * step:
        raise UserError("the processes find different checkpoints: all machines must share one --output_dir")


def prepare_output(args) -> None:
    """Creates output_dir and removes what killed runs left half-written; rank 0 does it, the others wait."""
    if dist.get_rank() == 0:
        try:
            os.makedirs(args.output_dir, exist_ok=True)
            for path in glob.glob(os.path.join(glob.escape(args.output_dir), "paddle_*")):
                recover_directory(path.removesuffix(PARTIAL).removesuffix(ASIDE))
            with open(os.path.join(args.output_dir, "metrics.jsonl"), "a"):
                pass  # it can be written
        except OSError as error:
            raise UserError(f"cannot write --output_dir {args.output_dir}: {error.strerror}") from error
    wait_for_all()


def wait_for_all() -> None:
    sum_over_ranks(paddle.zeros([1])).numpy()


def check_disk(model, args) -> None:
    """Weights and two moments in float32, the tied embedding twice: is there room for one checkpoint?"""
    needed = 4 * (3 * sum(p.size for p in model.parameters()) + model.get_input_embeddings().weight.size)
    free = shutil.disk_usage(args.output_dir).free
    if free < needed:
        raise UserError(f"{args.output_dir} has {free / 1e9:.2f} GB free, one checkpoint takes {needed / 1e9:.2f} GB")


def main(argv: list | None = None) -> None:
    args = parse_arguments(argv)
    paddlenlp_logger.set_level("WARNING")
    set_device(args)
    tokenizer, rows = load_data(args)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    config = build_config(args.model_name_or_path, tokenizer, args.max_seq_length)
    if args.dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = args.dropout
    cut = (args.batch_size, args.gradient_accumulation_steps, rank, world_size)
    sampler = UpdateSampler(len(rows["train"]), *cut, seed=args.seed)
    sampler.updates = count_updates(sampler, args)
    identity = run_identity(args, config, sampler)

    prepare_output(args)
    checkpoint, state = find_checkpoint(args), {"step": 0, "skipped_in_a_row": 0, "window": None}
    if checkpoint:
        state = load_state(checkpoint)
        check_same_run(identity, state["identity"], checkpoint)
    check_same_step(state["step"])
    paddle.seed(args.seed)
    source = checkpoint or (args.model_name_or_path if args.model_name_or_path not in ARCHITECTURES else None)
    model = load_model(source, config) if source else RobertaForMaskedLM(config)
    check_disk(model, args)
    model.recompute, model.padded = args.recompute, any(len(set(split.lengths)) > 1 for split in rows.values())
    optimizer = build_optimizer(model, args)
    if args.amp and args.amp_level == "O2":
        use_half_precision_weights(model, optimizer, args)
    scaler = build_scaler(args)
    if checkpoint:
        load_optimizer(checkpoint, state, model, optimizer, scaler)
    sampler.first_update = state["step"]
    if checkpoint:
        action = f"resuming {checkpoint} at step {state['step']}"
    else:
        action = f"continuing from {source}" if source else "training from scratch"
    say(f"model: {args.model_name_or_path}, {sum(p.size for p in model.parameters()):,} parameters, {action}")
    say(f"data: {len(rows['train']):,} rows, {sampler.updates:,} updates of {math.prod(sampler.shape):,} rows")
    shares = token_shares(rows["validation"], tokenizer)
    yardsticks = {"unigram_entropy": unigram_entropy(shares), "loss_without_context": loss_without_context(shares)}
    at_best = "evaluation loss {:.3f} at best by word frequency alone, {:.3f} without the context"
    say("yardsticks: " + at_best.format(*yardsticks.values()))

    collator = DataCollatorMLM(tokenizer, args.mlm_probability, seed=args.seed)
    evaluation_sampler = EvaluationSampler(len(rows["validation"]), args.batch_size, rank, world_size)
    train_loader = build_loader(rows["train"], sampler, collator, args)
    validation_loader = build_loader(rows["validation"], evaluation_sampler, collator, args)
    metrics = MetricsLog(args.output_dir, state["step"]) if rank == 0 else lambda *record: None

    def log(event: str, step: int, record: dict) -> None:
        metrics(event, step, {**record, **yardsticks} if event == "evaluation" else record)

    def save(state: dict) -> None:
        if rank == 0:
            path = os.path.join(args.output_dir, f"paddle_{state['step']}")
            record = {**state, "identity": identity, "arguments": vars(args)}
            save_checkpoint(path, unwrap(model), tokenizer_dir(args), optimizer, scaler, record)
            older = [c for c in checkpoints_in(args.output_dir) if step_of(c) < state["step"]]  # others are abandoned
            for surplus in older[::-1][args.save_total_limit - 1 :] if args.save_total_limit else ():
                shutil.rmtree(surplus)
        wait_for_all()

    model.train()
    model = paddle.DataParallel(model) if world_size > 1 else model
    with batches_of(train_loader) as batches:
        evaluation = train(
            model, optimizer, scaler, batches, validation_loader, sampler.updates, state, log, save, args
        )
    path = os.path.join(args.output_dir, f"paddle_{state['step']}")
    if evaluation is None:
        resumable = "auto" if os.path.isdir(path) else checkpoint  # a path, and the signal came at once
        say(f"stopped by a signal after step {state['step']}: --resume_from_checkpoint {resumable} continues")
    else:
        say(f"done: {path}, evaluation loss {evaluation['eval_loss']:.4f}, perplexity {evaluation['perplexity']:.2f}")


def leave(status: int) -> None:
    """Ends the process at once. Of several, rank 0 aborts now and then while Paddle 3.3.1 is taken down at the usual
    end (in 5 of 76 finished runs on a busy machine), and the launcher calls the run a failed one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(command_line(main))
