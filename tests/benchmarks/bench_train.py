"""Times our training step against its peers', or trains beside PyTorch's. Run it with Paddle's Python:

    python tests/benchmarks/bench_train.py --model roberta-en-base --max_seq_length 512 --batch_size 4 \
        --torch_python TORCH_ENV/bin/python --output tests/benchmarks/results/train_base.json
    python tests/benchmarks/bench_train.py --quality --model demo_ckp/paddle_1200 --max_seq_length 128 --batch_size 32 \
        --learning_rate 1e-3 --warmup_steps 50 --input_file demo_data --torch_python TORCH_ENV/bin/python \
        --output tests/benchmarks/results/quality_tiny.json

Each contestant is a process of its own that does one update when told to; only one works at a time, and what is
compared was measured one right after the other. TFLOP/s count, for all alike, the arithmetic that the task needs:
run_pretrain.py's update_flops, with the head on the masked positions alone. A GPU (--device gpu, --precision float16
or bfloat16) is called untested: written to the frameworks' documentation, never run on one.
"""

import contextlib
import datetime
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))

import utils
from utils import ArgumentParser, UserError, command_line, number, to_transformers

TITLES = {
    "ours": "this project",
    "compiled": "PyTorch, compiled",
    "huggingface": "Hugging Face",
    "original": "original example",
}
COLORS = {"ours": "#1f6fb4", "compiled": "#c0504d", "huggingface": "#e0a030", "original": "#8a8a8a"}
WITH_TORCH = ("compiled", "huggingface")  # they need --torch_python
WARMUP = 2  # updates of each contestant before any counts
PAUSE = 0.3  # seconds between updates: an idle thread of Paddle's OpenMP spins for 0.2 s, on a core of the next one
SETTINGS_OF_MACHINE = re.compile("(OMP|KMP|GOMP|MKL|OPENBLAS|MALLOC)_")  # variables that no contestant inherits
ARCHITECTURE = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act hidden_dropout_prob "
    "attention_probs_dropout_prob max_position_embeddings type_vocab_size initializer_range layer_norm_eps "
    "pad_token_id bos_token_id eos_token_id"
).split()


# ---------------------------------------------------------------- contestants


class Contestant(NamedTuple):
    """What a worker process drives."""

    batches: Any  # an iterator
    update: Any  # of a batch; returns the loss, a number or a tensor
    cuda: ModuleType  # the framework's, with synchronize() and max_memory_allocated()
    facts: dict  # for the results, and from `ours` for its peers
    evaluate: Any = None  # returns the validation loss, with --quality
    product_rate: Any = None  # returns the operations a second of the products, on a CPU


def ours(args) -> Contestant:
    """run_pretrain.py's model, collator, loader and update as it runs them; all that depends on its names is here."""
    utils.prepare_for_paddle()  # threads and memory, which are read when Paddle is imported
    utils.import_paddlenlp()  # as the script itself does: importing run_pretrain does not, and has 74 MB more
    import run_pretrain as project

    flags = {
        "model_name_or_path": args.model,
        "amp": args.precision != "float32",
        "max_seq_length": args.max_seq_length,
    }
    flags |= {name: getattr(args, name) for name in "batch_size learning_rate warmup_steps device".split()}
    flags |= {"recipe": "roberta"}
    flags |= {"input_file": args.input_file, "max_eval_rows": args.max_eval_rows} if args.quality else {}
    flags |= {"amp_dtype": args.precision} if args.precision != "float32" else {}
    run_args = project.parse_arguments([word for name in flags for word in (f"--{name}", str(flags[name]))])
    machine, recipe = project.start_machine(run_args), project.choose_recipe(run_args)
    if machine.precision != args.precision:
        raise UserError(f"--precision {args.precision}: the project chooses {machine.precision} on this machine")
    if args.quality:
        data = project.load_data(run_args, recipe)
        tokenizer, rows = data.tokenizer, data.train
    else:
        tokenizer, rows = drawn_rows(args, project.TokenRows)
    config = project.build_config(run_args, tokenizer, args.max_seq_length, recipe.dropout)
    model = project.build_model(run_args, config, machine, is_padded=False)
    optimizer, scaler = project.build_optimizer(model, run_args, recipe, machine)
    run = project.Run(run_args, machine, model, None, recipe, total_steps=args.updates)
    run.parallel, run.optimizer, run.scaler, run.progress.warmup_steps = model, optimizer, scaler, args.warmup_steps
    sampler = project.UpdateSampler(len(rows), args.batch_size, seed=run_args.seed)
    collator = project.DataCollatorMLM(tokenizer, recipe.mlm_probability, seed=run_args.seed)

    def loader():
        return project.batches_of(rows, sampler.batches(0, args.updates), collator)

    rates = [project.learning_rate_at(step + 1, run) for step in range(args.updates)]
    if args.quality:
        held_out = next(iter(data.validation.values()))
        validation = project.validation_batches(held_out, collator, run_args, machine)
        write_start(args.folder, model, loader, validation)

    def update(batch):
        optimizer.set_lr(rates[run.progress.global_step])
        result = project.train_update(run, [batch])
        run.progress.global_step += 1
        return result["loss_sum"] / max(result["num_masked"], 1)

    model.train()
    length, num_masked = args.max_seq_length, 0.15 * args.batch_size * (args.max_seq_length - 2)
    flops = project.update_flops(config, args.batch_size * length, length, num_masked)
    shared = {name: getattr(run_args, name) for name in ("adam_epsilon", "max_grad_norm", "seed")}
    shared["weight_decay"] = recipe.weight_decay
    shared.update(rates=rates, architecture={name: getattr(config, name) for name in ARCHITECTURE})
    facts = {**paddle_facts(), "shared": shared, "flops": flops}
    evaluate = (lambda: project.evaluate(run, validation)["eval_loss"]) if args.quality else None

    def rate_of_products():
        if args.device != "cpu" or project.onednn() is None:
            return None
        return product_rate(args.precision, args.batch_size * length, config.hidden_size)

    return Contestant(loader(), update, project.paddle.device.cuda, facts, evaluate, rate_of_products)


def product_rate(precision: str, rows: int, width: int) -> float:
    """Operations a second of oneDNN's product [rows, width] [width, 4 width], the best of 30: an update's limit.

    The second matrix is stored column by column: with 3,072 columns, row by row is half as fast in float32.
    """
    dnn, seconds = utils.onednn(), []
    arrays = [np.ones(shape, np.float32) for shape in ((rows, width), (4 * width, width), (rows, 4 * width))]
    left, right, out = (utils.as_operand(dnn, array, precision) for array in arrays)
    for _ in range(30):
        started = time.perf_counter()
        dnn.matmul(left, right.T, out)
        seconds.append(time.perf_counter() - started)
    return 8 * rows * width**2 / min(seconds)


def huggingface(args) -> Contestant:
    """transformers' model and collator, and what its Trainer does in a step: AdamW (fused), clipping, schedule."""
    device = "cuda" if args.device == "gpu" else "cpu"
    model, autocast, step = with_torch(args)

    def update(batch):
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        with autocast:
            loss = model(**batch).loss
        step(loss)
        return loss.detach()

    return contestant_with_torch(args, model, autocast, update)


def with_torch(args) -> tuple:
    """transformers' model, its autocast, and the backward pass and optimizer's step of both PyTorch contestants."""
    import torch
    import transformers

    shared, device = args.shared, "cuda" if args.device == "gpu" else "cpu"
    torch.set_num_threads(args.threads)
    torch.manual_seed(shared["seed"])
    model = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**shared["architecture"]))
    if args.quality:
        missing, unexpected = model.load_state_dict(stored_tensors(args, "weights.npz"), strict=False)
        assert not unexpected and set(missing) == {"lm_head.decoder.weight", "lm_head.decoder.bias"}  # tied
    model.to(device).train()
    matrices, vectors = ([p for p in model.parameters() if (p.ndim >= 2) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": shared["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(  # fused: the Trainer's default from PyTorch 2.8 on
        groups, args.learning_rate, betas=(0.9, 0.98), eps=shared["adam_epsilon"], fused=True
    )
    rates = [rate / args.learning_rate for rate in shared["rates"]]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [*rates, 0].__getitem__)
    autocast = torch.autocast(device, getattr(torch, args.precision), enabled=args.precision != "float32")
    scaler = torch.amp.GradScaler(device, enabled=args.precision == "float16")

    def step(loss):
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), shared["max_grad_norm"])
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        optimizer.zero_grad()

    return model, autocast, step


def contestant_with_torch(args, model, autocast, update) -> Contestant:
    import torch
    import transformers

    batches = stored_batches(args, "train.npz") if args.quality else iter(huggingface_loader(args))
    facts = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads()}
    facts["attention"] = model.config._attn_implementation
    return Contestant(batches, update, torch.cuda, facts, lambda: huggingface_evaluation(model, autocast, args))


def compiled(args) -> Contestant:
    """As who knows PyTorch runs transformers' model: no attention mask where no row is padded (SDPA then takes
    its fast way), the head on the masked positions alone, filled up to a fixed number as a compiled graph wants it
    (a multiple of 128, where ours are filled up to one of 32), torch.compile, fused AdamW, autocast."""
    import torch

    device = "cuda" if args.device == "gpu" else "cpu"
    model, autocast, step = with_torch(args)
    expected = 0.15 * args.batch_size * args.max_seq_length
    num_positions = int(expected) // 128 * 128 + 128

    def loss_of(input_ids, labels, positions):
        hidden = model.roberta(input_ids=input_ids)[0]
        logits = model.lm_head(hidden.reshape(-1, hidden.shape[-1])[positions])
        return torch.nn.functional.cross_entropy(logits.float(), labels.reshape(-1)[positions])

    loss_of = torch.compile(loss_of)

    def update(batch):
        input_ids, labels = batch["input_ids"].to(device), batch["labels"].to(device)
        chosen, others = (torch.nonzero((labels.flatten() != -100) == wanted).flatten() for wanted in (True, False))
        positions = torch.cat([chosen, others])[:num_positions]
        with autocast:
            loss = loss_of(input_ids, labels, positions)
        step(loss)
        return loss.detach()

    return contestant_with_torch(args, model, autocast, update)


def huggingface_loader(args):
    """The Trainer's loader: DataCollatorForLanguageModeling in the training process, rows as `datasets` gives them."""
    import tokenizers
    import torch
    import transformers

    words = tokenizers.models.WordLevel({f"t{i}": i for i in range(args.vocab_size)}, unk_token="t3")
    special = dict(bos_token="t0", pad_token="t1", eos_token="t2", unk_token="t3", mask_token=f"t{args.vocab_size - 1}")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words), **special)
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    return torch.utils.data.DataLoader(listed_rows(args), args.batch_size, shuffle=True, collate_fn=collator)


def huggingface_evaluation(model, autocast, args) -> float:
    import torch

    model.eval()
    loss, num_masked = 0.0, 0
    for batch in stored_batches(args, "validation.npz"):
        chosen = batch["labels"] != -100
        with torch.no_grad(), autocast:
            logits = model(batch["input_ids"].to(model.device)).logits.float().cpu()[chosen]
        loss += torch.nn.functional.cross_entropy(logits, batch["labels"][chosen], reduction="sum").item()
        num_masked += len(logits)
    model.train()
    return loss / num_masked


def original(args) -> Contestant:
    """The older PaddleNLP example's step as its users ran it, written from its outline: no environment settings, no
    clipping, logits at all positions, masking with Paddle's operators in the training process."""
    import paddle
    from paddlenlp import transformers

    paddle.set_device(args.device)
    model = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**args.shared["architecture"]))
    model.train()
    half = args.precision != "float32"
    loss_function = paddle.nn.CrossEntropyLoss(ignore_index=-100)  # Paddle 3 divides by all positions: as fast
    scheduler = paddle.optimizer.lr.LambdaDecay(args.learning_rate, lambda step: 1 - step / args.updates)
    optimizer = paddle.optimizer.AdamW(scheduler, parameters=model.parameters(), weight_decay=0.01)
    scaler = paddle.amp.GradScaler(enable=args.precision == "float16", init_loss_scaling=2.0**15)

    def collate(examples):
        columns = ([example[name] for example in examples] for name in ("input_ids", "special_tokens_mask"))
        return mask_with_paddle(*map(paddle.to_tensor, columns), args.vocab_size)

    def update(batch):
        input_ids, labels = batch
        with paddle.amp.auto_cast(dtype=args.precision) if half else contextlib.nullcontext():
            logits = model(input_ids)
            loss = loss_function(logits.reshape([-1, logits.shape[-1]]), labels.reshape([-1]))
        scaled = scaler.scale(loss)
        scaled.backward()
        scaler.minimize(optimizer, scaled)
        scheduler.step()
        optimizer.clear_grad()
        return loss.detach()

    sizes = dict(batch_size=args.batch_size, num_workers=0)
    loader = paddle.io.DataLoader(listed_rows(args), shuffle=True, collate_fn=collate, **sizes)
    return Contestant(iter(loader), update, paddle.device.cuda, paddle_facts())


def mask_with_paddle(input_ids, special, vocab_size: int) -> tuple:
    """80/10/10 masking of int64 [batch, seq] with Paddle's operators; returns the masked ids and the labels."""
    import paddle

    def drawn(probability):
        return paddle.bernoulli(paddle.full(input_ids.shape, probability)).astype("bool")

    chosen = paddle.logical_and(drawn(0.15), paddle.logical_not(special.astype("bool")))
    labels = paddle.where(chosen, input_ids, paddle.full_like(input_ids, -100))
    masked = paddle.logical_and(chosen, drawn(0.8))
    randomized = paddle.logical_and(paddle.logical_and(chosen, paddle.logical_not(masked)), drawn(0.5))
    input_ids = paddle.where(masked, paddle.full_like(input_ids, vocab_size - 1), input_ids)
    return paddle.where(randomized, paddle.randint(0, vocab_size, input_ids.shape, "int64"), input_ids), labels


def paddle_facts() -> dict:
    import paddle
    import paddlenlp

    versions = {"paddle": paddle.__version__, "paddlenlp": paddlenlp.__version__}
    return {**versions, "threads": os.environ.get("OMP_NUM_THREADS", "Paddle's default, 1")}


# ---------------------------------------------------------------- rows, batches and weights


def drawn_rows(args, token_rows) -> tuple:
    """The rows of the speed test as create_data.py would have stored them, and a stand-in for their tokenizer."""
    import pyarrow

    def as_lists(array):  # from its memory: pyarrow.array() would import pandas, as no run does
        content = np.packbits(array, bitorder="little") if array.dtype == bool else array
        buffers = [None, pyarrow.py_buffer(np.ascontiguousarray(content))]
        values = pyarrow.Array.from_buffers(pyarrow.from_numpy_dtype(array.dtype), array.size, buffers)
        return pyarrow.FixedSizeListArray.from_arrays(values, array.shape[1])

    rows, last = np.load(args.rows), args.vocab_size - 1
    split = pyarrow.Table.from_arrays([as_lists(rows), as_lists(rows <= 3)], ["input_ids", "special_tokens_mask"])
    ids = dict(cls_token_id=0, bos_token_id=0, pad_token_id=1, eos_token_id=2, mask_token_id=last)
    tokenizer = SimpleNamespace(**ids, all_special_ids=[0, 1, 2, 3, last], vocab_size=args.vocab_size)
    return tokenizer, token_rows(split)


def listed_rows(args) -> list:
    rows = np.load(args.rows).astype(np.int64)
    return [{"input_ids": row.tolist(), "special_tokens_mask": (row <= 3).astype(int).tolist()} for row in rows]


def write_start(folder: str, model, train, validation) -> None:
    """Writes the weights under transformers' names, linear ones as [out, in], and both loaders' masked rows."""
    weights = to_transformers({name: parameter.numpy() for name, parameter in model.named_parameters()})
    np.savez(os.path.join(folder, "weights.npz"), **weights)
    for name, loader in (("train", train), ("validation", validation)):
        batches = [(batch["input_ids"].numpy(), batch["labels"].numpy()) for batch in loader()]
        if len({labels.shape[1] for _, labels in batches}) > 1:
            raise UserError("--quality needs rows of one length (create_data.py --line_by_line False)")
        input_ids, labels = map(np.concatenate, zip(*batches))
        np.savez(os.path.join(folder, f"{name}.npz"), input_ids=input_ids, labels=labels)


def stored_tensors(args, name: str) -> dict:
    import torch

    with np.load(os.path.join(args.folder, name)) as arrays:
        return {key: torch.from_numpy(array) for key, array in arrays.items()}


def stored_batches(args, name: str):
    tensors = stored_tensors(args, name)
    split = zip(*(tensor.split(args.batch_size) for tensor in tensors.values()))
    return (dict(zip(tensors, batch)) for batch in split)


# ---------------------------------------------------------------- processes


def work(name: str, settings: str) -> None:
    """A worker process: prepares, then answers each line of stdin ("step", "evaluate", "product_rate") in JSON."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the frameworks print goes to the log
    with open(settings) as file:
        args = SimpleNamespace(**json.load(file))
    by_name = {"ours": ours, "compiled": compiled, "huggingface": huggingface, "original": original}
    contestant = by_name[name](args)
    print(json.dumps(contestant.facts), file=answers)
    for line in sys.stdin:
        if line == "evaluate\n":
            print(json.dumps({"loss": contestant.evaluate()}), file=answers)
            continue
        if line == "product_rate\n":
            print(json.dumps(contestant.product_rate()), file=answers)
            continue
        started, cpu_started = time.perf_counter(), time.process_time()
        batch = next(contestant.batches)
        loaded = time.perf_counter()
        loss = contestant.update(batch)
        if args.device == "gpu":
            contestant.cuda.synchronize()
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        answer = {"seconds": seconds, "cpu_seconds": cpu_seconds, "wait": (loaded - started) / seconds}
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answer["peak_memory"] = contestant.cuda.max_memory_allocated() if args.device == "gpu" else memory
        tokens = args.batch_size * args.max_seq_length
        print(json.dumps({**answer, "tokens": tokens, "loss": float(loss)}), file=answers)


class Worker:
    """A contestant's process, as the parent sees it."""

    def __init__(self, name: str, args):
        self.name, self.log, self.steps = name, os.path.join(args.folder, f"{name}.log"), []
        settings = os.path.join(args.folder, f"{name}.json")
        with open(settings, "w") as file:
            json.dump(vars(args), file)
        environment = {k: v for k, v in os.environ.items() if not SETTINGS_OF_MACHINE.match(k)}
        if name == "ours":  # the original's users did not set it, torch is told in another way
            environment["OMP_NUM_THREADS"] = str(args.threads)
        python = (args.torch_python or sys.executable) if name in WITH_TORCH else sys.executable
        command = [python, os.path.abspath(__file__), "--worker", name, settings]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stderr=log, env=environment, **pipes)
        self.facts = self._answer()

    def ask(self, command: str) -> dict:
        print(command, file=self.process.stdin)
        return self._answer()

    def step(self) -> float:
        self.steps.append(self.ask("step"))
        return self.steps[-1]["seconds"]

    def _answer(self) -> dict:
        if line := self.process.stdout.readline():
            return json.loads(line)
        with open(self.log) as log:
            raise UserError(f"the worker {self.name} ended:\n{log.read()[-3000:]}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def workers(names: list, args):
    """Starts the contestants one after the other, `ours` first: the others learn from it what they share."""
    with contextlib.ExitStack() as stack:
        started = {}
        for name in names:
            print(f"preparing {TITLES[name]} ...", flush=True)
            started[name] = Worker(name, args)
            stack.callback(started[name].close)
            args.shared = started["ours"].facts["shared"]
        yield started


def has_torch(args) -> bool:
    command = [args.torch_python or sys.executable, "-c", "import torch, transformers"]
    found = subprocess.run(command, capture_output=True).returncode == 0
    if not found and (args.torch_python or args.quality):
        raise UserError(f"{command[0]} has no torch and transformers: --torch_python names a Python that has")
    if not found:
        print("leaving out Hugging Face: this Python has no torch and transformers; --torch_python names one that has")
    return found


# ---------------------------------------------------------------- speed


def measure_speed(args) -> dict:
    """Returns every step, and the medians and quartiles over the pairs of adjacent steps."""
    peers = [peer for peer in args.peers if peer not in WITH_TORCH or has_torch(args)]
    args.updates, args.rows = WARMUP + args.pairs * len(peers), os.path.join(args.folder, "rows.npy")
    shape = args.updates * args.batch_size, args.max_seq_length
    rows = np.random.default_rng(0).integers(4, args.vocab_size - 1, size=shape, dtype=np.uint16)
    rows[:, 0], rows[:, -1] = 0, 2  # <s> and </s>
    np.save(args.rows, rows)
    ratios = {peer: [] for peer in peers}
    with workers(["ours", *peers], args) as by_name:
        for worker in by_name.values():
            for _ in range(WARMUP):
                worker.step()
            worker.steps.clear()
        for pair in range(1, args.pairs + 1):
            for peer in peers:
                seconds = {}
                for name in ["ours", peer] if pair % 2 else [peer, "ours"]:  # so that a drift favours neither
                    time.sleep(PAUSE)
                    seconds[name] = by_name[name].step()
                ratios[peer].append(seconds[peer] / seconds["ours"])
                print(f"pair {pair}: " + ", ".join(f"{name} {s:.3f} s" for name, s in seconds.items()), flush=True)
        flops, rate = by_name["ours"].facts["flops"], by_name["ours"].ask("product_rate")
        contestants = {name: summary(worker, flops) for name, worker in by_name.items()}
    ratios = {peer: {**quartiles(values), "pairs": values} for peer, values in ratios.items()}
    results = {"flops_per_update": flops, "contestants": contestants, "times_as_fast": ratios}
    if rate:
        results["product_flops_per_second"] = rate
        # What an update would take if it were its products alone, of what it takes.
        results["share_of_limit"] = contestants["ours"]["tflops"] * 1e12 / rate
    return results


def quartiles(values: list) -> dict:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {"median": median, "quartiles": [low, high]}


def summary(worker: Worker, flops: float) -> dict:
    return {
        "tokens_per_second": quartiles([step["tokens"] / step["seconds"] for step in worker.steps]),
        "tflops": float(np.median([flops / step["seconds"] / 1e12 for step in worker.steps])),
        "data_wait_percent": float(np.median([100 * step["wait"] for step in worker.steps])),
        "peak_memory_bytes": worker.steps[-1]["peak_memory"],
        "facts": {key: value for key, value in worker.facts.items() if key != "shared"},
        "steps": worker.steps,
    }


def speed_table(results: dict) -> str:
    """In Markdown, ready for the README."""
    lines = ["| | tokens/s | TFLOP/s | this project is (quartiles) | peak memory | waiting for data |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for name, result in results["contestants"].items():
        ratio, speed = results["times_as_fast"].get(name), result["tokens_per_second"]["median"]
        faster = "{:.2f}× as fast ({:.2f}–{:.2f})".format(ratio["median"], *ratio["quartiles"]) if ratio else ""
        lines.append(
            f"| {TITLES[name]} | {speed:,.0f} | {result['tflops']:.3f} | {faster} | "
            f"{result['peak_memory_bytes'] / 1e9:.2f} GB | {result['data_wait_percent']:.1f} % |"
        )
    if "share_of_limit" in results:
        rate, share = results["product_flops_per_second"] / 1e9, results["share_of_limit"]
        lines += ["", f"Products at {rate:,.0f} GFLOP/s: they alone would take {share:.2f} of this project's update."]
    return "\n".join(lines)


def draw_speed(results: dict, axes) -> None:
    """Bars of the median tokens/s with their quartiles."""
    contestants = results["contestants"]
    for row, (name, result) in enumerate(contestants.items()):
        median, (low, high) = result["tokens_per_second"].values()
        axes.barh(row, median, 0.6, xerr=[[median - low], [high - median]], color=COLORS[name], capsize=4)
        label = f"  {median:,.0f}"
        if ratio := results["times_as_fast"].get(name):
            label += f": this project is {ratio['median']:.2f}× as fast\n"
            label += "  (quartiles of the pairs {:.2f} to {:.2f})".format(*ratio["quartiles"])
        axes.text(high, row, label, va="center")
    top = max(result["tokens_per_second"]["quartiles"][1] for result in contestants.values())
    axes.set(xlim=(0, 1.6 * top), yticks=range(len(contestants)), yticklabels=[TITLES[name] for name in contestants])
    axes.set(xlabel="tokens per second: median and quartiles of the updates")
    axes.invert_yaxis()


# ---------------------------------------------------------------- quality


def measure_quality(args) -> dict:
    """Trains ours and its peers on the same batches from the same weights, evaluating all now and then.

    With --peers_alone, ours only gives the weights and the batches.
    """
    if not (args.input_file and has_torch(args)):
        raise UserError("--quality needs --input_file, a directory that create_data.py wrote")
    names = args.peers if args.peers_alone else ["ours", *args.peers]
    curves = {"updates": [], **{name: [] for name in names}}
    with workers(["ours", *args.peers], args) as by_name:
        for update in range(args.updates + 1):
            for name in names if update else ():
                by_name[name].step()
            if update % args.evaluate_every and update < args.updates:
                continue
            losses = {name: by_name[name].ask("evaluate")["loss"] for name in names}
            for name, value in {"updates": update, **losses}.items():
                curves[name].append(value)
            print(f"update {update}: " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()), flush=True)
            if update == 0 and max(losses.values()) - min(losses.values()) > 1e-3:
                raise UserError("they start from different weights, or are evaluated on different rows")
        steps = {name: by_name[name].steps for name in names}
        facts = {name: worker.facts for name, worker in by_name.items()}
    del facts["ours"]["shared"]["rates"]  # the peers have read them, a reader need not
    results = {"evaluation_losses": curves, "facts": facts}
    results["training_losses"] = {name: [step["loss"] for step in steps[name]] for name in names}
    results["seconds_per_update"] = {name: quartiles([step["seconds"] for step in steps[name]]) for name in names}
    return results


def quality_table(results: dict) -> str:
    """In Markdown: evaluation losses after so many updates."""
    _, *names = results["evaluation_losses"]
    lines = ["| updates | " + " | ".join(TITLES[name] for name in names) + " |", "|---:" * (1 + len(names)) + "|"]
    for updates, *losses in zip(*results["evaluation_losses"].values()):
        lines.append(f"| {updates:,} | " + " | ".join(f"{loss:.4f}" for loss in losses) + " |")
    for name in names:
        lines.append(f"\n{TITLES[name]}: {results['seconds_per_update'][name]['median']:.3f} s an update in the median")
    return "\n".join(lines)


def draw_quality(results: dict, axes) -> None:
    updates, *curves = results["evaluation_losses"].items()
    for (name, curve), style in zip(reversed(curves), ("-", "--", ":")):
        label = f"{TITLES[name]}, {curve[-1]:.3f} at the end"
        axes.plot(updates[1], curve, style, color=COLORS[name], linewidth=2, label=label)
    axes.set(xlabel="updates", ylabel="evaluation loss (nats per masked token)")
    axes.legend(frameon=False)


# ---------------------------------------------------------------- arguments and main


def parse_arguments(argv: list | None):
    parser = ArgumentParser("Times our training step against its peers', or trains beside PyTorch's.")
    add, positive = parser.add_argument, number(int, 1)
    add("--model", default="roberta-en-base", help="an architecture of run_pretrain.py")
    add("--max_seq_length", type=number(int, 4), default=512, help="tokens in a row")
    add("--batch_size", type=positive, default=4, help="rows in an update")
    add("--vocab_size", type=number(int, 6, 2**16), default=50265, help="of the drawn rows; --quality takes the data's")
    add("--pairs", type=positive, default=15, help="measured pairs of updates with each peer")
    add("--peers", nargs="+", choices=list(TITLES)[1:], help="compared with (all; with --quality, huggingface)")
    add("--device", choices=["cpu", "gpu"], default="cpu", help="of all contestants")
    add("--threads", type=positive, default=2, help="ours and Hugging Face's; the original keeps Paddle's default")
    add("--precision", choices=["float32", "float16", "bfloat16"], default="float32", help="autocast")
    add("--learning_rate", type=number(float, 1e-9), default=1e-4, help="peak")
    add("--warmup_steps", type=number(int, 0), default=0, help="updates until the peak learning rate")
    add("--torch_python", help="a Python with torch, transformers and pyarrow; this one if left out")
    add("--quality", action="store_true", help="compare evaluation losses instead of speed; --peers of PyTorch")
    add("--updates", type=positive, default=1000, help="with --quality: how many")
    add("--evaluate_every", type=positive, default=50, help="with --quality: updates between evaluations")
    add("--max_eval_rows", type=number(int, 0), default=10000, help="with --quality: rows evaluated; 0 takes all")
    add("--peers_alone", action="store_true", help="with --quality: train the peers, and not this project's model")
    add("--input_file", help="with --quality: a directory that create_data.py wrote")
    add("--output", required=True, help="the results, a .json; the chart goes beside it")
    return parser.parse_args(argv)


def machine() -> dict:
    """What the numbers hold for."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        cpu = re.search(r"model name\s*: (.*)", file.read())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    about = {"cpu": cpu and cpu[1], "cores": len(os.sched_getaffinity(0)), "memory_bytes": memory}
    return {**about, "system": platform.platform(), "python": platform.python_version(), "load": os.getloadavg()}


def main(argv: list | None = None) -> None:
    args = parse_arguments(argv)
    if args.precision == "float16" and args.device == "cpu":
        raise UserError("--precision float16 needs --device gpu: on a CPU it is float32 or bfloat16")
    args.peers = args.peers or (["huggingface"] if args.quality else list(TITLES)[1:])
    if args.quality and not set(args.peers) <= set(WITH_TORCH):
        raise UserError(f"--quality compares with PyTorch alone: --peers {' '.join(WITH_TORCH)}")
    about = {"command": " ".join(["python", *sys.argv]), "settings": {**vars(args), "pause_seconds": PAUSE}}
    about.update(date=f"{datetime.datetime.now():%Y-%m-%d %H:%M}", machine=machine())
    with tempfile.TemporaryDirectory() as args.folder:
        results = measure_quality(args) if args.quality else measure_speed(args)
    with open(args.output, "w") as file:
        json.dump({**about, **results}, file, indent=1)

    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(9, 5 if args.quality else 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    title = f"{args.model}, {args.max_seq_length} tokens, batch {args.batch_size}, {args.precision}, "
    title += f"{args.threads} threads" if args.device == "cpu" else "GPU"
    axes.set_title(title)
    draw, table = (draw_quality, quality_table) if args.quality else (draw_speed, speed_table)
    draw(results, axes)
    figure.savefig(os.path.splitext(args.output)[0] + ".png", dpi=150)
    print(f"\n{title}\n\n{table(results)}")


if __name__ == "__main__":
    is_worker = sys.argv[1:2] == ["--worker"]
    command_line(lambda: work(*sys.argv[2:]) if is_worker else main())
