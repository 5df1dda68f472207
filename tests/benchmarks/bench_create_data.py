"""Measure create_data.py against other ways to turn a text file into rows of tokens, in one run, alternating.

    python tests/benchmarks/bench_create_data.py --data_file wiki.txt --tokenizer_dir roberta-base
    python tests/benchmarks/bench_create_data.py --data_file small.txt --tokenizer_dir roberta-base \
        --rounds 1 --repeat 1 --output /tmp/quick.json                                     # seconds: does it work?

Each measurement is a fresh process. Writes the numbers with the machine's description (JSON) and a chart (PNG) beside
them, and prints a Markdown table. For Linux. Text and outputs go to a temporary directory (TMPDIR says where), which
takes about 25 times the text file's size with `--repeat 10`.
"""

import argparse
import contextlib
import gzip
import hashlib
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import pathlib
import platform
import random
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

PROJECT = pathlib.Path(__file__).resolve().parents[2]
BATCH = 1000  # examples: the default of datasets.map, which run_mlm.py leaves as it is
PROBE_BYTES = 200_000  # text on which num_proc=2 is tried
PACKAGES = "datasets dill gigatoken multiprocess numpy pyarrow tokenizers".split()
NOTES = [
    "seconds: wall time of the work inside a fresh process, without interpreter start and imports, for all alike",
    "MB/s: 10^6 bytes of the text file a second; tokens: those of the text in the rows written (encode_batch: all)",
    "peak memory: ru_maxrss; where worker processes run, the largest single process",
    "written: the output directory and, where `datasets` keeps one, its cache",
    "the other ways call `tokenizers` directly, without transformers' or PaddleNLP's wrapper, which favours them",
    "the repeated text brings no new words, which favours create_data.py, whose encoder caches them",
]


# ---------------------------------------------------------------- the ways; each runs in a child


def run_create_data(job: dict) -> None:
    """This project's script; its defaults."""
    import create_data

    arguments = ["--data_files", job["data_file"], "--tokenizer_name", job["tokenizer_dir"]]
    create_data.main([*arguments, "--output_dir", job["output"], "--max_seq_length", str(job["max_seq_length"])])


def run_map(job: dict, joined: Callable) -> dict:
    """run_mlm.py's way with a text file, re-written from its description: load, tokenize, group, each cached; save.

    run_mlm.py calls the tokenizer of transformers; here `tokenizers`, which is beneath it, makes the same columns with
    less work, so the comparison favours this way. It threads over each batch by itself, as it does there. 5 percent
    are for validation, the default there. run_mlm.py trains from the cache; the saving (as in the older example) is
    what makes data to keep of it, and its seconds are recorded.
    """
    import datasets
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(job["tokenizer_dir"], "tokenizer.json"))
    length, processes = job["max_seq_length"], job["processes"] if job["processes"] > 1 else None

    def tokenize(batch: dict) -> dict:
        encodings = tokenizer.encode_batch(batch["text"])
        return {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
            "special_tokens_mask": [encoding.special_tokens_mask for encoding in encodings],
        }

    def group(batch: dict) -> dict:
        flat = {name: joined(lists) for name, lists in batch.items()}
        end = len(flat["input_ids"]) // length * length  # the batch's remainder is dropped
        return {name: [values[i : i + length] for i in range(0, end, length)] for name, values in flat.items()}

    datasets.disable_progress_bars()
    splits = {"train": "train[5%:]", "validation": "train[:5%]"}
    rows = datasets.load_dataset("text", data_files=job["data_file"], split=splits)
    rows = rows.map(tokenize, batched=True, batch_size=BATCH, num_proc=processes, remove_columns=["text"])
    rows = rows.map(group, batched=True, batch_size=BATCH, num_proc=processes)
    start = time.perf_counter()
    rows.save_to_disk(job["output"])
    return {"save_seconds": time.perf_counter() - start}


def run_encode_batch(job: dict) -> dict:
    """`tokenizers` alone over the documents, nothing kept or written: the floor for whatever stands on it."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(job["tokenizer_dir"], "tokenizer.json"))
    documents = (b"".join(lines).decode() for lines in articles(job["data_file"]))
    tokens = 0
    while batch := list(itertools.islice(documents, BATCH)):
        tokens += sum(map(len, tokenizer.encode_batch(batch, add_special_tokens=False)))
    return {"tokens": tokens}


class Way(NamedTuple):
    label: str
    run: Callable  # does the work; may return what else there is to record
    imports: str  # modules imported beforehand, also those that libraries import at their first use


def chain(lists: list) -> list:
    return list(itertools.chain.from_iterable(lists))


def add_up(lists: list) -> list:
    return sum(lists, [])  # noqa: RUF017 - copies all that is joined so far for each list, as the older example did


OURS = "gigatoken awkward datasets tokenizers tqdm pyarrow create_data"
WAYS = {
    "create_data": Way("create_data.py", run_create_data, OURS),
    "run_mlm": Way("run_mlm.py's way", lambda job: run_map(job, chain), "datasets scipy.io tokenizers"),
    "older_example": Way("older example's way", lambda job: run_map(job, add_up), "datasets scipy.io tokenizers"),
    "encode_batch": Way("encode_batch alone", run_encode_batch, "tokenizers"),
}


def count_tokens(folder: str) -> int:
    """The positions of all rows below a folder that are not special tokens."""
    import pyarrow.compute

    tables = (pyarrow.ipc.open_stream(path).read_all() for path in pathlib.Path(folder).rglob("*.arrow"))
    masks = [chunk.flatten() for table in tables for chunk in table["special_tokens_mask"].chunks]
    return sum(len(mask) - pyarrow.compute.sum(mask, min_count=0).as_py() for mask in masks)


def child(job: dict) -> None:
    """Runs one way, and prints what it took as JSON."""
    sys.path.insert(0, str(PROJECT))
    way, start = WAYS[job["way"]], time.perf_counter()
    for name in way.imports.split():
        if importlib.util.find_spec(name.partition(".")[0]):  # scipy is optional
            importlib.import_module(name)
    imported, ready = set(sys.modules), time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        facts = way.run(job) or {}
    seconds = time.perf_counter() - ready
    used = [resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    result = {
        "seconds": seconds,
        "import_seconds": ready - start,
        "peak_bytes": max(used),
        "written_bytes": sum(p.stat().st_size for p in pathlib.Path(job["folder"]).rglob("*") if p.is_file()),
        "imported_while_timed": sorted({name.partition(".")[0] for name in set(sys.modules) - imported}),
        **facts,
    }
    result.setdefault("tokens", count_tokens(job["output"]))
    print(json.dumps(result))


# ---------------------------------------------------------------- text


def articles(path: str) -> Iterator[list]:
    """Yields the lines (bytes) of each article: up to an empty line or, in a file without any, each line by itself."""
    with open(path, "rb") as lines:
        separated = any(map(bytes.isspace, lines))
    with open(path, "rb") as lines:
        if separated:
            yield from (list(group) for blank, group in itertools.groupby(lines, key=bytes.isspace) if not blank)
        else:
            yield from ([line] for line in lines)


def write_repeated(source: str, times: int, path: str) -> None:
    """Writes the source's articles `times` times, each time with the paragraphs of each shuffled."""
    generator = random.Random(0)
    with open(path, "wb") as file:
        for article in itertools.chain.from_iterable(articles(source) for _ in range(times)):
            paragraphs = [line.rstrip(b"\r\n") + b"\n" for line in article]
            generator.shuffle(paragraphs)
            file.writelines([*paragraphs, b"\n"])


def unpacked(path: str, scratch: str) -> str:
    """The path of a text file, or of its content where it is packed (.gz), written to the scratch directory."""
    if not path.endswith(".gz"):
        return path
    target = os.path.join(scratch, "large.txt")
    with gzip.open(path) as source, open(target, "wb") as file:
        shutil.copyfileobj(source, file)
    return target


# ---------------------------------------------------------------- measuring


def measure(way: str, args, data_file: str, processes: int = 1) -> dict:
    """Runs one way in a fresh process and an empty directory. This process stays small: ru_maxrss is inherited."""
    defaults = ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS")  # unset: a thread for each core
    environment = {name: value for name, value in os.environ.items() if name not in defaults}
    job = {"way": way, "data_file": data_file, "processes": processes, "tokenizer_dir": args.tokenizer_dir}
    with tempfile.TemporaryDirectory(prefix="bench_create_data_") as folder:
        environment.update(HF_DATASETS_CACHE=os.path.join(folder, "cache"), HF_HUB_OFFLINE="1")
        job.update(max_seq_length=args.max_seq_length, folder=folder, output=os.path.join(folder, "output"))
        command = [sys.executable, __file__, "--child", json.dumps(job)]
        os.sync()  # so that nobody waits for what another has written
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{WAYS[way].label} failed:\n{done.stderr.strip()}")
    result = {**json.loads(done.stdout.splitlines()[-1]), "process_seconds": seconds}
    print(f"{WAYS[way].label:22} {result['seconds']:8.2f} s", file=sys.stderr)
    return result


def processes_that_work(args, scratch: str) -> tuple:
    """Returns 2 where `datasets` maps with two processes, otherwise 1 (dill < 0.3.5, Python 3.11), and the reason."""
    head = os.path.join(scratch, "head.txt")
    with open(args.data_file, "rb") as text:
        pathlib.Path(head).write_bytes(b"".join(text.readlines(PROBE_BYTES)))
    short = argparse.Namespace(tokenizer_dir=args.tokenizer_dir, max_seq_length=8)
    measure("run_mlm", short, head)  # what fails already here is not the second process's fault
    try:
        measure("run_mlm", short, head, processes=2)
        return 2, "num_proc=2 works"
    except RuntimeError as error:
        lines = dict.fromkeys(line for line in str(error).splitlines() if "Error: " in line)
        return 1, f"num_proc=2 fails in this environment ({'; '.join(lines)})"


def spread(values: list) -> dict:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def relative(rounds: list, ours: list) -> dict:
    """The ratios of the seconds, pair by pair, so that a slow minute of the machine counts on both sides."""
    return spread([theirs["seconds"] / mine["seconds"] for theirs, mine in zip(rounds, ours)])


def summary(label: str, size: int, rounds: list) -> dict:
    """The medians, with minimum and maximum, of a way's rounds on a text file of `size` bytes, and the raw numbers."""
    return {
        "label": label,
        "text_bytes": size,
        "seconds": spread([r["seconds"] for r in rounds]),
        "mb_per_second": spread([size / 1e6 / r["seconds"] for r in rounds]),
        "tokens_per_second": spread([r["tokens"] / r["seconds"] for r in rounds]),
        "peak_mb": spread([r["peak_bytes"] / 1e6 for r in rounds]),
        "written_mb": spread([r["written_bytes"] / 1e6 for r in rounds]),
        "rounds": rounds,
    }


def measure_all(args, scratch: str) -> dict:
    processes, reason = processes_that_work(args, scratch)
    rounds = {way: [] for way in WAYS}
    for _, way in itertools.product(range(args.rounds), WAYS):
        used = processes if way == "run_mlm" else 1
        rounds[way].append(measure(way, args, args.data_file, used))
    size = os.path.getsize(args.data_file)
    results = {way: summary(WAYS[way].label, size, rounds[way]) for way in WAYS}
    results["run_mlm"].update(processes=processes, processes_reason=reason)
    results["run_mlm"]["label"] += f", {processes} process{'es' * (processes > 1)}"
    for way in WAYS:
        results[way]["time_relative_to_create_data"] = relative(rounds[way], rounds["create_data"])
    if args.repeat > 1:
        repeated = os.path.join(scratch, "repeated.txt")
        write_repeated(args.data_file, args.repeat, repeated)
        again = [measure("create_data", args, repeated) for _ in range(args.rounds)]
        label = f"create_data.py, {args.repeat} × the text"
        entry = results["create_data_repeated"] = summary(label, os.path.getsize(repeated), again)
        entry["peak_relative_to_one_fold"] = entry["peak_mb"]["median"] / results["create_data"]["peak_mb"]["median"]
    if args.large_file:
        large = unpacked(args.large_file, scratch)
        again = {"create_data": [], "run_mlm": []}
        for _, way in itertools.product(range(args.rounds), again):
            again[way].append(measure(way, args, large, processes if way == "run_mlm" else 1))
        for way, measured in again.items():
            label = f"{WAYS[way].label}, {os.path.basename(args.large_file)}"
            entry = results[f"{way}_large"] = summary(label, os.path.getsize(large), measured)
            entry["time_relative_to_create_data"] = relative(measured, again["create_data"])
    return results


# ---------------------------------------------------------------- reporting


def machine() -> dict:
    models = re.findall(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def draw(report: dict, path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = list(report["results"].values())[::-1]
    speeds = [r["mb_per_second"]["median"] for r in results]
    figure, axes = pyplot.subplots(figsize=(9, 0.6 * len(results) + 1.6), layout="constrained")
    colors = ["#1f6fb4" if r["label"].startswith("create_data") else "#9aa5b1" for r in results]
    bars = axes.barh([r["label"] for r in results], speeds, color=colors, height=0.62)
    for r, speed, bar in zip(results, speeds, bars):
        ratio = r["time_relative_to_create_data"]["median"] if "time_relative_to_create_data" in r else 1
        slower = f", {ratio:.3g} × the time" if ratio != 1 else ""
        text = f"{speed:.3g} MB/s{slower}, {r['peak_mb']['median']:,.0f} MB memory"
        end = (speed, bar.get_y() + bar.get_height() / 2)
        axes.annotate(text, end, (5, 0), textcoords="offset points", va="center")
    axes.set_xscale("log")
    axes.set_xlim(min(speeds) / 3, max(speeds) * (max(speeds) / min(speeds)) ** 0.7 * 3)  # room for the text
    axes.set_xlabel("text prepared, MB/s (logarithmic; medians; “× the time”: relative to create_data.py)")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.spines[["top", "right"]].set_visible(False)
    about, size = report["machine"], results[-1]["text_bytes"] / 1e6
    axes.set_title(f"{size:.3g} MB of text, {about['cpu']}, {about['cores']} cores", loc="left", fontsize=11)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def table(results: dict) -> str:
    """Markdown: medians, in parentheses minimum to maximum."""

    def cell(numbers: dict, form: str) -> str:
        return f"{numbers['median']:{form}} ({numbers['min']:{form}} to {numbers['max']:{form}})"

    lines = ["| way | seconds | MB/s | tokens/s | peak memory, MB | written, MB | time relative to create_data.py |"]
    lines.append("|---|---|---|---|---|---|---|")
    for r in results.values():
        relative = r.get("time_relative_to_create_data")
        cells = [r["label"], cell(r["seconds"], ".2f"), f"{r['mb_per_second']['median']:.3g}"]
        cells += [f"{r['tokens_per_second']['median']:,.0f}", f"{r['peak_mb']['median']:,.0f}"]
        cells += [f"{r['written_mb']['median']:,.0f}", cell(relative, ".3g") if relative else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_arguments(argv: list | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_file", required=True, help="UTF-8 text, articles separated by empty lines")
    parser.add_argument("--tokenizer_dir", required=True, help="directory with tokenizer.json")
    parser.add_argument("--max_seq_length", type=int, default=512, help="tokens in a row")
    parser.add_argument("--rounds", type=int, default=5, help="times that each way is measured")
    parser.add_argument("--repeat", type=int, default=10, help="size of the repeated text, as a multiple; 1: none")
    parser.add_argument(
        "--large_file", help="a longer text (.txt or .txt.gz) of different words, for create_data.py and run_mlm.py"
    )
    parser.add_argument("--output", default=PROJECT / "tests/benchmarks/results/create_data.json", type=pathlib.Path)
    return parser.parse_args(argv)


def main() -> None:
    args = parse_arguments()
    args.data_file, args.tokenizer_dir = os.path.abspath(args.data_file), os.path.abspath(args.tokenizer_dir)
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "create_data_sha256": hashlib.sha256((PROJECT / "create_data.py").read_bytes()).hexdigest(),
        "notes": NOTES,
    }
    with tempfile.TemporaryDirectory(prefix="bench_create_data_") as scratch:
        report["results"] = measure_all(args, scratch)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    draw(report, args.output.with_suffix(".png"))
    print(table(report["results"]))
    print("\nMedians (minimum to maximum) of the rounds; " + "; ".join(NOTES) + ".")
    print(f"{report['results']['run_mlm']['processes_reason']}.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(json.loads(sys.argv[2]))
    else:
        main()
