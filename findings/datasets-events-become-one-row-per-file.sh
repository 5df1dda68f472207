#!/usr/bin/env bash
# datasets 4.8.5: a JSON Lines file of events, with "type" and "payload", is loaded as one row per file
#
# Versions: datasets 4.8.5, pyarrow 26.0.1, numpy 2.3.5.
#
# Guess: one line is one row, with the file's own columns.
#
# Behaviour: where each line has a "type" that is a string, and a "payload" whose keys differ between lines, as GitHub's
# events have it, the file is taken for the log of a coding agent: it becomes one row with the columns harness,
# session_id, traces and file_path. A count, a shuffle or a split is then one of files. Where the payloads of the first
# 10 MB have the same keys, as in a small sample, each line is a row. "type" with "message" is taken alike.
# parse_agent_traces=False reads lines as rows.
#
# Source: has_agent_traces_markers() in datasets/packaged_modules/json/json.py; parse_agent_traces is True by default.
#
# Output seen:
#   3 lines: payloads alike: 3 rows ['type', 'payload']; payloads of two kinds: 1 rows ['harness', 'session_id', 'traces', 'file_path']; the same, parse_agent_traces=False: 3 rows ['type', 'payload']
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check \
    datasets==4.8.5 pyarrow==26.0.1 numpy==2.3.5

cat > "$folder/check.py" <<'PYTHON'
import json
import os
import sys

import datasets

datasets.disable_progress_bars()
ALIKE = [{"type": "PushEvent", "payload": {"size": size}} for size in (1, 2, 3)]
MIXED = [*ALIKE[:2], {"type": "IssuesEvent", "payload": {"action": "opened"}}]


def rows(name, events, **options):
    """How many rows load_dataset() makes of a folder with one file of so many lines, and the columns."""
    folder = f"{sys.argv[1]}/{name}"
    os.makedirs(folder, exist_ok=True)
    with open(folder + "/events.jsonl", "w") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    loaded = datasets.load_dataset(folder, split="train", cache_dir=sys.argv[1] + "/cache", **options)
    return len(loaded), loaded.column_names


found = [rows("alike", ALIKE), rows("mixed", MIXED), rows("mixed", MIXED, parse_agent_traces=False)]
names = ("payloads alike", "payloads of two kinds", "the same, parse_agent_traces=False")
print("3 lines:", "; ".join(f"{name}: {number} rows {columns}" for name, (number, columns) in zip(names, found)))
own, traces = ["type", "payload"], ["harness", "session_id", "traces", "file_path"]
sys.exit(found != [(3, own), (1, traces), (3, own)])
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/check.py" "$folder"
