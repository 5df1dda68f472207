"""What a GPU needs, as far as a CPU can show it: with Paddle's real loss scaler, its real decisions on precision, and
its real choice of a communication backend, each of which asks for the device and is told of a GPU."""

import contextlib
import functools
import importlib
import json
import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from conftest import (
    RESUME,
    ROOT,
    around_losses,
    around_updates,
    infinite_losses,
    kill_in_update,
    metrics,
    result,
    run_of,
    run_script,
)

import run_pretrain
from utils import DataCollatorMLM, UserError

grad_scaler = importlib.import_module("paddle.amp.grad_scaler")
FLOAT16 = ["--amp", "True"]  # with the fixture of that name


def gpu_tracer():
    """What GradScaler asks at its construction: a tracer whose place is a GPU's."""
    return SimpleNamespace(_expected_place=SimpleNamespace(is_gpu_place=lambda: True))


@pytest.fixture
def float16(monkeypatch):
    """Runs with --amp True scale their loss as in float16, by Paddle's own scaler, and compute in float32."""
    monkeypatch.setattr(grad_scaler, "_dygraph_tracer", gpu_tracer)
    real = run_pretrain.choose_precision

    def choose_precision(args, device):
        return ("float16", "as on a GPU") if args.amp else real(args, device)

    monkeypatch.setattr(run_pretrain, "choose_precision", choose_precision)


def pretend_gpu(monkeypatch, capability: tuple) -> None:
    """Paddle's answers about the device are those of a GPU; nothing computes on it."""
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle, "set_device", lambda device: None)
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda: capability)


# ---------------------------------------------------------------- loss scaling


class TinyModel(paddle.nn.Layer):
    """The logits of 8 tokens, from an embedding."""

    def __init__(self):
        super().__init__()
        self.embeddings, self.output = paddle.nn.Embedding(8, 4), paddle.nn.Linear(4, 8)

    def forward(self, input_ids, masked_positions, labels):
        logits = self.output(self.embeddings(paddle.gather(input_ids.flatten(), masked_positions)))
        return run_pretrain.cross_entropy(logits, labels), (logits.argmax(-1) == labels).sum()


@pytest.fixture(params=["adamw", "muon"])
def tiny_run(float16, request):
    """A Run of a tiny model with a real scaler, and its batches."""
    paddle.seed(0)
    run = run_of(TinyModel(), "--optimizer", request.param, precision="float16")
    assert run.scaler.is_enable() and type(run.scaler) is paddle.amp.GradScaler
    ids = paddle.to_tensor([[1, 2, 3, 4]])
    labels = paddle.to_tensor([[-100, 2, 3, -100]])
    batch = {"input_ids": ids, "labels": labels, "masked_positions": paddle.to_tensor([1, 2, 0, 0])}
    return run, [batch, batch]


def weights_of(run) -> list:
    return [parameter.numpy().copy() for parameter in run.model.parameters()]


@contextlib.contextmanager
def changed_loss(monkeypatch, change):
    with monkeypatch.context() as patch:
        around_losses(patch, change=lambda loss, model, batch: change(loss))
        yield


@pytest.mark.parametrize("tiny_run", ["adamw"], indirect=True)  # the scaler is the same for both
def test_4100_updates_in_float16_pass_two_growths_and_three_overflows(tiny_run, monkeypatch):
    """GradScaler.update() reads its own scale when that changes, which numpy 2.4 does not let it."""
    run, batches = tiny_run
    scales = []
    for step in range(4100):
        overflows = step < 3
        with changed_loss(monkeypatch, lambda loss: loss * 1e38) if overflows else contextlib.nullcontext():
            update = run_pretrain.train_update(run, batches[:1])
        assert update["skipped"] == overflows
        scales.append(update["loss_scale"])
    changes = [(step, scale) for step, scale in enumerate(scales) if scale != scales[step - 1]]
    assert changes == [*((n, 2.0 ** (15 - n)) for n in range(4)), (2003, 2.0**13), (4003, 2.0**14)]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda loss: loss + math.inf, "loss_sum"),  # its gradient is finite
        (lambda loss: loss * 1e20, "grad_norm"),  # and so is this one, element by element
        (lambda loss: loss * math.nan, "loss_sum"),
    ],
)
def test_what_counts_as_skipped_changes_no_weight_and_lowers_the_scale(tiny_run, monkeypatch, change, what):
    run, batches = tiny_run
    before, moments = weights_of(run), None
    run_pretrain.train_update(run, batches)
    after = weights_of(run)
    assert not all(map(np.array_equal, before, after))
    moments = {name: value.numpy().copy() for name, value in run.optimizer.state_dict().items() if "moment" in name}
    assert any("momentum" in name for name in moments) == (run.args.optimizer == "muon")
    with changed_loss(monkeypatch, change):
        update = run_pretrain.train_update(run, batches)
    assert update["skipped"] and not math.isfinite(update[what])
    assert all(map(np.array_equal, after, weights_of(run)))
    assert moments and all(np.array_equal(run.optimizer.state_dict()[name].numpy(), moments[name]) for name in moments)
    update = run_pretrain.train_update(run, batches)
    assert update["loss_scale"] == 2.0**14 and not update["skipped"]


def test_the_scale_changes_no_update_but_by_rounding(tiny_run, monkeypatch):
    """Clipping, the reported norm and the step are those of the gradient before scaling."""
    run, batches = tiny_run
    optimizer, start, results = run.args.optimizer, run.model.state_dict(), []
    start = {name: value.numpy().copy() for name, value in start.items()}
    for enabled in (True, False):
        run.model.set_state_dict(start)
        options = "--max_grad_norm", "0.01", "--optimizer", optimizer
        run = run_of(run.model, *options, precision="float16" if enabled else "float32")
        update = run_pretrain.train_update(run, batches)
        assert update["grad_norm"] > 0.01 and update["loss_scale"] == (2.0**15 if enabled else 1)
        results.append((update["grad_norm"], *weights_of(run)))
    for scaled, plain in zip(*results):
        np.testing.assert_allclose(scaled, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("precision", [[], FLOAT16], ids=["float32", "float16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_non_finite_update_never_reaches_the_weights_and_is_always_reported(
    pretrain, monkeypatch, float16, precision, optimizer, capsys
):
    weights, same = [], []
    around_updates(
        monkeypatch,
        before=lambda run: weights.append(weights_of(run)),
        after=lambda run, update: same.append(all(map(np.array_equal, weights[-1], weights_of(run)))),
    )
    infinite_losses(monkeypatch, {2})
    options = ["--max_steps", "6", "--gradient_accumulation_steps", "2", "--logging_steps", "3"]
    output = pretrain(*options, *precision, "--optimizer", optimizer)
    assert same == [False, False, True, False, False, False]
    assert all(np.isfinite(array).all() for arrays in weights for array in arrays)
    records = metrics(output, "train")
    assert [record["skipped_updates"] for record in records] == [1, 0]
    assert records[0]["loss"] == pytest.approx(math.log(400), rel=0.03)
    assert [record["loss_scale"] for record in records] == ([2.0**15, 2.0**14] if precision else [1, 1])
    shown = capsys.readouterr().out
    assert "step 3: skipped (loss inf" in shown


@pytest.mark.parametrize("precision", [[], FLOAT16], ids=["float32", "float16"])
def test_the_optimizer_takes_a_gradient_of_at_most_max_grad_norm(pretrain, monkeypatch, float16, precision, tmp_path):
    taken, norms, real = [], [], paddle.optimizer.AdamW.step

    def step(optimizer):
        gradients = [p.grad for p in optimizer._parameter_list if p.grad is not None]
        taken.append(math.sqrt(sum(gradient.square().sum().item() for gradient in gradients)))
        real(optimizer)

    monkeypatch.setattr(paddle.optimizer.AdamW, "step", step)
    around_updates(monkeypatch, after=lambda run, update: norms.append(update["grad_norm"]))
    for limit, output in (("0", "free"), ("0.1", "clipped")):
        options = ["--max_steps", "2", "--max_grad_norm", limit, "--dropout", "0"]
        pretrain(*options, *precision, output=tmp_path / output)
    assert taken[:2] == pytest.approx(norms[:2], rel=1e-4) and min(norms) > 0.2
    assert taken[2:] == pytest.approx([0.1, 0.1], rel=1e-4)


def test_five_non_finite_updates_in_a_row_stop_the_run(pretrain, monkeypatch):
    infinite_losses(monkeypatch, {4, 6, 7, 8, 9, 10})
    with pytest.raises(UserError) as error:
        pretrain("--max_steps", "20", "--save_steps", "3")
    for named in ("5 updates in a row", "step 11", "--learning_rate", "--scale_loss"):
        assert named in str(error.value)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_scaler_resumes_where_it_was(pretrain, monkeypatch, tmp_path, float16, optimizer):
    """Its scale and its count of good updates: it doubles after three, of which the resumed run makes the last."""
    monkeypatch.setattr(paddle.amp, "GradScaler", functools.partial(paddle.amp.GradScaler, incr_every_n_steps=3))
    arguments = ["--max_steps", "8", "--save_steps", "4", *FLOAT16, "--optimizer", optimizer]
    infinite_losses(monkeypatch, {1})
    expected = result(pretrain(*arguments, output=tmp_path / "whole"))
    kill_in_update(pretrain, monkeypatch, 5, *arguments)
    output = pretrain(*arguments, *RESUME)
    assert result(output) == expected
    scales = [record["loss_scale"] for record in metrics(output, "train")]
    assert scales == [2.0**15] * 2 + [2.0**14] * 3 + [2.0**15] * 3
    with pytest.raises(UserError, match=r"scale_loss \(was 32768\.0, is 16\.0\)"):
        pretrain(*arguments, *RESUME, "--scale_loss", "16")


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("arguments", "capability", "precision", "scaled"),
    [
        ("", (8, 0), "bfloat16", False),
        ("", (7, 5), "float16", True),
        ("--amp_dtype float16", (9, 0), "float16", True),
        ("--amp False", (8, 0), "float32", False),
    ],
)
def test_the_precision_on_a_gpu(monkeypatch, arguments, capability, precision, scaled):
    pretend_gpu(monkeypatch, capability)
    monkeypatch.setattr(grad_scaler, "_dygraph_tracer", gpu_tracer)
    args, cast = run_pretrain.parse_arguments(["--device", "gpu", *arguments.split()]), []
    machine = run_pretrain.Machine("gpu", run_pretrain.choose_precision(args, "gpu")[0])
    recipe = run_pretrain.RECIPES["roberta"]
    _, scaler = run_pretrain.build_optimizer(TinyModel(), args, recipe, machine)
    assert (machine.precision, scaler.is_enable()) == (precision, scaled)
    monkeypatch.setattr(paddle.amp, "auto_cast", lambda **options: cast.append(options))
    run_pretrain.auto_cast(machine)
    assert cast[0]["enable"] == (precision != "float32") and (not cast[0]["enable"] or cast[0]["dtype"] == precision)


def test_bfloat16_on_a_gpu_without_it_is_refused(monkeypatch):
    pretend_gpu(monkeypatch, (7, 0))
    with pytest.raises(UserError, match="take float16"):
        run_pretrain.choose_precision(run_pretrain.parse_arguments(["--amp_dtype", "bfloat16"]), "gpu")


DECISIONS = """
import importlib, sys
from types import SimpleNamespace
sys.path.insert(0, {root!r})
import run_pretrain, paddle, numpy as np
auto_cast = importlib.import_module("paddle.amp.auto_cast")
real_tracer = auto_cast._dygraph_tracer()

class Tracer:  # Paddle's own, but for its place
    _expected_place = SimpleNamespace(is_gpu_place=lambda: True, is_xpu_place=lambda: 0, is_custom_place=lambda: 0)
    def __getattr__(self, name):
        return getattr(real_tracer, name)
    def __setattr__(self, name, value):
        setattr(real_tracer, name, value)

auto_cast._dygraph_tracer = Tracer
auto_cast._is_gpu_float16_supported = auto_cast._is_gpu_bfloat16_supported = lambda: True
run_pretrain.ARCHITECTURES["tiny"] = (1, 32, 2)
args = run_pretrain.parse_arguments(["--model_name_or_path", "tiny", "--max_seq_length", "32"])
machine = run_pretrain.Machine("gpu", {precision!r})
run_pretrain.onednn = lambda: None  # the cross entropy of a GPU
tokenizer = dict(pad_token_id=1, bos_token_id=0, eos_token_id=2, cls_token_id=0, vocab_size=400)
model = run_pretrain.RobertaForMaskedLM(run_pretrain.build_config(args, SimpleNamespace(**tokenizer), 32))
run_pretrain.use_fast_layers(model, machine.device, machine.precision, is_padded={padded})
ids = paddle.to_tensor(np.arange(64).reshape(2, 32) + 3)
batch = dict(input_ids=ids, labels=ids, masked_positions=paddle.arange(128) % 64)
optimizer, _ = run_pretrain.build_optimizer(model, args, run_pretrain.choose_recipe(args), machine)
scaler = paddle.amp.GradScaler(enable=False)
run = run_pretrain.Run(args, machine, model, None, parallel=model, optimizer=optimizer, scaler=scaler)
print("BEGIN", file=sys.stderr, flush=True)
run_pretrain.train_update(run, [batch])
print("END", file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_paddle_runs_every_matrix_product_in_half_precision_and_the_delicate_operations_in_float32(precision):
    """Paddle logs what it decides for an operation before it finds that a CPU has no such kernel, and says that too."""
    code = DECISIONS.format(root=str(ROOT), precision=precision, padded=precision == "float16")
    environment = {**os.environ, "GLOG_vmodule": "amp_utils=6", "GLOG_logtostderr": "1"}
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    step = process.stderr.partition("BEGIN\n")[2].partition("END")[0]
    assert step, process.stderr[-2000:]
    decided = re.findall(r"AMP GetAmpDestDtype: op\((\w+)\)", step)
    half = re.findall(rf"Change (\w+)'s AMP type from {precision} to FP32", step)
    products = [name for name in decided if "matmul" in name or "linear" in name]
    assert (
        len(products) == 10 and [name for name in half if name in products] == products
    )  # four of attention's layers, two in it, two, and two of the head
    for delicate in ("softmax", "layer_norm", "softmax_with_cross_entropy", "reduce_sum"):
        assert delicate in decided and delicate not in half


def as_on_a_gpu(layer, padded: bool = False):
    model = paddle.nn.Sequential(layer)
    run_pretrain.use_fast_layers(model, "gpu", "float16", padded)
    return model[0]


def test_a_bias_takes_the_type_of_the_product(monkeypatch):
    """Paddle has no addition in half precision on a CPU: float32 stands for it, and float64 for the weights' type."""
    layer, product = paddle.nn.Linear(4, 6), paddle.matmul
    layer.to(dtype="float64")
    monkeypatch.setattr(
        paddle, "matmul", lambda x, y, **more: product(x.astype("float32"), y.astype("float32"), **more)
    )
    linear = as_on_a_gpu(layer)
    assert linear.bias.dtype == paddle.float64 and linear(paddle.ones([2, 4])).dtype == paddle.float32


@pytest.mark.parametrize(
    ("dtype", "capability", "padded", "expected"),
    [
        ("float16", (8, 0), False, True),
        ("bfloat16", (9, 0), False, True),
        ("float16", (7, 5), False, False),
        ("float32", (8, 0), False, False),
        ("float16", (8, 0), True, False),
    ],
)
def test_flash_attention_gets_half_precision_without_padding_from_ampere_on(
    monkeypatch, dtype, capability, padded, expected
):
    pretend_gpu(monkeypatch, capability)
    # What white-listed projections give on a GPU; a CPU has no product in half precision.
    monkeypatch.setattr(run_pretrain, "linear", lambda layer, x, transposed: x.astype(dtype))
    attention = as_on_a_gpu(paddle.nn.MultiHeadAttention(8, 2, dropout=0.1), padded)
    given = []

    def flash(query, key, value, dropout_p):
        given.append(({query.dtype, key.dtype, value.dtype}, query.shape, dropout_p))
        return value

    class Plain(Exception):
        pass

    def plain(*arguments, **more):
        raise Plain

    monkeypatch.setattr(run_pretrain.F, "scaled_dot_product_attention", flash)
    monkeypatch.setattr(paddle, "matmul", plain)
    monkeypatch.setattr(paddle.Tensor, "__mul__", plain)
    with contextlib.nullcontext() if expected else pytest.raises(Plain):
        attention(paddle.ones([3, 5, 8]), attn_mask=paddle.zeros([3, 1, 1, 5]))
    assert given == ([({getattr(paddle, dtype)}, [3, 5, 2, 4], 0.1)] if expected else [])


def test_flash_attention_gives_the_plain_ones_outputs_and_gradients(monkeypatch):
    """In float64, which asks for it as half precision does; on a CPU Paddle computes it by other means."""
    layer = paddle.nn.MultiHeadAttention(8, 2)
    layer.to(dtype="float64")
    attention, real, calls = as_on_a_gpu(layer), run_pretrain.F.scaled_dot_product_attention, []
    monkeypatch.setattr(
        run_pretrain.F, "scaled_dot_product_attention", lambda *x, **more: calls.append(1) or real(*x, **more)
    )
    x = paddle.to_tensor(np.random.default_rng(0).normal(size=(3, 5, 8)))
    results = []
    for has_ampere in (True, False):
        monkeypatch.setattr(run_pretrain, "has_ampere", lambda has=has_ampere: has)  # get_device() must say cpu here
        output = attention(x)
        (output * x).sum().backward()
        results.append([output.numpy(), *(p.grad.numpy().copy() for p in attention.parameters())])
        attention.clear_gradients()
    assert len(calls) == 1 and len(results[0]) == 9
    for flash, plain in zip(*results):
        np.testing.assert_allclose(flash, plain, rtol=1e-6, atol=1e-9)


# ---------------------------------------------------------------- device and processes


def test_a_wheel_without_code_for_the_gpu_ends_in_one_line(pretrain, monkeypatch, tmp_path):
    pretend_gpu(monkeypatch, (9, 0))

    def no_kernel(*shape):
        raise OSError("(External) CUDA error(209), no kernel image is available for execution on the device.\n more")

    monkeypatch.setattr(paddle, "ones", no_kernel)
    monkeypatch.setattr(run_pretrain, "load_data", None)  # before anything long
    with pytest.raises(UserError, match=r"does not compute on this device: .*no kernel image") as error:
        pretrain("--device", "gpu")
    assert "more" not in str(error.value)  # only the first line of Paddle's


def test_the_device_is_the_gpu_where_there_is_one_and_else_the_cpu(monkeypatch):
    """A Paddle that is built for GPUs runs without one, too."""
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 0)
    assert run_pretrain.choose_device(None) == run_pretrain.choose_device("cpu") == "cpu"
    with pytest.raises(UserError, match=r"--device gpu: Paddle .* sees none; try cpu"):
        run_pretrain.choose_device("gpu")
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 1)
    assert run_pretrain.choose_device(None) == run_pretrain.choose_device("gpu") == "gpu"


class Chosen(Exception):
    pass


@pytest.fixture
def one_of_two(monkeypatch):
    """This process is the first of two under the launcher, on a machine whose Paddle sees GPUs."""
    parallel = importlib.import_module("paddle.distributed.parallel")
    environment = {"PADDLE_TRAINER_ID": "0", "PADDLE_TRAINERS_NUM": "2", "PADDLE_DISTRI_BACKEND": "auto"}
    environment |= {"PADDLE_CURRENT_ENDPOINT": "127.0.0.1:1", "FLAGS_selected_gpus": "0"}
    environment |= {"PADDLE_TRAINER_ENDPOINTS": "127.0.0.1:1,127.0.0.1:2"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(run_pretrain.ctypes, "CDLL", lambda name: SimpleNamespace(prctl=lambda *death: None))
    monkeypatch.setattr(parallel.core, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(parallel.core, "get_cuda_device_count", lambda: 2, raising=False)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 2)

    def set_default_backend(backend):
        raise Chosen(backend)

    monkeypatch.setattr(parallel, "_set_default_backend", set_default_backend)
    monkeypatch.setattr(parallel, "_global_parallel_env", None)  # which is read from the environment once


def test_processes_on_the_cpu_talk_over_gloo_though_there_are_gpus(one_of_two):
    args = run_pretrain.parse_arguments(["--device", "cpu"])
    with pytest.raises(Chosen, match="gloo"):
        run_pretrain.start_machine(args)
    assert paddle.get_device() == "cpu"


def test_processes_on_gpus_talk_over_nccl(one_of_two, monkeypatch):
    """Places of GPUs are stood in for: a Paddle for CPUs makes none."""
    parallel = importlib.import_module("paddle.distributed.parallel")
    monkeypatch.setattr(paddle, "set_device", lambda device: None)
    monkeypatch.setattr(parallel.core, "CUDAPlace", lambda number: None, raising=False)
    monkeypatch.setattr(parallel, "_set_expected_place", lambda place: None)
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    with pytest.raises(Chosen, match="nccl"):
        run_pretrain.start_machine(run_pretrain.parse_arguments(["--device", "gpu"]))


@pytest.mark.parametrize("precision", [[], FLOAT16], ids=["float32", "float16"])
def test_the_host_waits_for_the_device_once_in_an_update(pretrain, monkeypatch, float16, precision):
    """In float16 GradScaler.update() reads a flag of its own, as train_update() says."""
    reads, inside = [], []

    def counting(name, real):
        def read(*arguments, **more):
            if inside == ["update"]:
                reads[-1].append(name)
            inside.append(name)
            try:
                return real(*arguments, **more)
            finally:
                inside.pop()

        return read

    for name in "numpy item tolist __float__ __int__ __bool__ __index__ __array__".split():
        monkeypatch.setattr(paddle.Tensor, name, counting(name, getattr(paddle.Tensor, name)))
    around_updates(
        monkeypatch,
        before=lambda run: (reads.append([]), inside.append("update")),
        after=lambda run, update: inside.clear(),
    )
    monkeypatch.setattr(run_pretrain, "onednn", lambda: None)  # for a GPU's layers
    pretrain("--max_steps", "3", "--gradient_accumulation_steps", "2", *precision)
    assert reads == [["tolist"] + ["__bool__"] * bool(precision)] * 3


def test_the_number_of_masked_positions_is_a_multiple_of_32_and_never_0():
    tokenizer = SimpleNamespace(mask_token_id=4, pad_token_id=1, vocab_size=50, all_special_ids=[0, 1, 2, 3, 4])
    collator, numbers = DataCollatorMLM(tokenizer, 0.15), set()
    for number in (0, 1, 100, 1000, 5000):
        row = np.concatenate([[0], np.random.default_rng(number).integers(5, 50, number), [2]])
        batch = collator([{"input_ids": row}])
        positions, labels = batch["masked_positions"], batch["labels"].flatten()
        chosen = np.flatnonzero(labels != -100)
        assert len(positions) > 0 and len(positions) % 32 == 0 and len(positions) <= len(chosen) + 32
        assert np.array_equal(positions[: len(chosen)], chosen) and (labels[positions[len(chosen) :]] == -100).all()
        numbers.add(len(positions))
    assert len(numbers) > 2


def test_the_check_for_a_gpu_tells_what_is_wrong(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests/benchmarks"))
    import check_gpu

    with pytest.raises(AssertionError, match="they differ by"):
        check_gpu.compared({"largest_difference": 2e-5}, 1e-5)
    falling = np.linspace(math.log(8192), 8, 10).tolist()
    for losses, skipped, message in (
        (falling[::-1], 0, "the first loss is"),
        ([*falling[:-1], 9.2], 0, "the loss rose"),
        ([loss + 0.1 for loss in falling], 0, "from float32's"),
        (falling, 1, "1 updates were skipped"),
    ):
        records = [{"loss": loss, "tokens_per_second": 1, "tflops": 1, "skipped_updates": 0} for loss in losses]
        records[0]["skipped_updates"] = skipped
        machine = SimpleNamespace(
            device="gpu",
            environment={"compute_capability": (8, 0)},
            exact_losses={"adamw": falling},
            train=lambda *flags, records=records, **more: records,
        )
        with pytest.raises(AssertionError, match=message):
            check_gpu.check_updates(machine, "bfloat16", "adamw")


@pytest.mark.skipif(
    paddle.__version__.startswith("2."), reason="2.6.2 takes FlashAttention by the width of a head alone"
)
def test_the_check_for_a_gpu_takes_no_other_kernel_for_flash_attention(monkeypatch):
    """As where FlashAttention does not suit: here, on a CPU."""
    monkeypatch.syspath_prepend(str(ROOT / "tests/benchmarks"))
    import check_gpu

    heads = [paddle.ones([1, 4, 2, 8])] * 3
    assert paddle.nn.functional.scaled_dot_product_attention(*heads).shape == [1, 4, 2, 8]
    with check_gpu.flash_alone(paddle), pytest.raises(RuntimeError, match="No available backend"):
        paddle.nn.functional.scaled_dot_product_attention(*heads)


@pytest.mark.slow
def test_the_check_for_those_who_have_a_gpu_runs_on_a_cpu(tmp_path):
    process = run_script("tests/benchmarks/check_gpu.py", "--output", tmp_path / "check.json", "--device", "cpu")
    assert process.returncode == 0, process.stderr[-2000:]
    verdicts = json.loads((tmp_path / "check.json").read_text())["verdicts"]
    assert {verdict["verdict"] for verdict in verdicts.values()} == {"passed", "does not apply"}
    assert all(f"{name}: {verdict['verdict']}" in process.stdout for name, verdict in verdicts.items())
    for name in ("float32 updates, adamw", "float32 updates, muon", "resumed equality", "accumulation against batch"):
        assert verdicts[name]["verdict"] == "passed"
    if not paddle.is_compiled_with_cuda():
        process = run_script("tests/benchmarks/check_gpu.py", "--output", tmp_path / "none.json")
        assert process.returncode == 2 and "sees no GPU here; --device cpu" in process.stderr
