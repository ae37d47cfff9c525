"""How fast is open_clip's training loop with its own loader, and with Tessera's? Is the loss alike?

    python docs/examples/against_open_clip.py SHARDS INDEX --out RECORD.json

SHARDS are tars of jpg and txt, INDEX is their index. Both runs are open_clip_train's program with
the same small model, options and seed, one after the other, in both orders. CPU seconds are of
all processes of a run, from its start to its end; on a busy machine they are the fair measure.
"""

import argparse
import json
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 224,
        "layers": 4,
        "width": 192,
        "head_width": 64,
        "patch_size": 32,
    },
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}
RUN = """
import sys, runpy, open_clip
open_clip.add_model_config(sys.argv[1])
sys.argv = sys.argv[2:]
if sys.argv[0].endswith(".py"):
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    from functools import partial
    from open_clip_train import data, main
    # webdataset marks the end of a tar since 0.2.90; open_clip 3.3 does not know the mark.
    data.tar_file_expander = partial(data.tar_file_expander, eof_value=None)
    main.main(sys.argv[1:])
"""


def run(words, model, program):
    """Losses by step, and seconds, of one run."""
    with tempfile.TemporaryDirectory() as logs:
        command = [sys.executable, "-c", RUN, str(model), str(program), *words, "--logs", logs]
        start, cpu_s = time.perf_counter(), cpu_seconds()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds, cpu_s = time.perf_counter() - start, cpu_seconds() - cpu_s
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    losses = [float(loss) for loss in re.findall(r" Loss: ([\d.]+) \(", done.stderr)]
    waits = [float(wait) for wait in re.findall(r"Data \(t\): ([\d.]+)", done.stderr)]
    rates = [float(rate) for rate in re.findall(r"Batch \(t\): [\d.]+, ([\d.]+)/s", done.stderr)]
    return {"seconds": seconds, "cpu_s": cpu_s, "losses": losses, "data_s": waits, "rates": rates}


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("shards", type=Path)
    parser.add_argument("index", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--samples", type=int, required=True, help="pairs in SHARDS")
    arguments = parser.parse_args()
    tars = sorted(map(str, arguments.shards.glob("*.tar")))
    words = [
        "--model",
        "small",
        "--epochs",
        str(arguments.epochs),
        "--warmup",
        "20",
        "--lr",
        "1e-3",
    ]
    words += ["--batch-size", str(arguments.batch_size), "--workers", "1", "--device", "cpu"]
    words += ["--precision", "fp32", "--log-every-n-steps", "2", "--save-frequency", "0"]
    ours = Path(__file__).with_name("open_clip_training.py")
    theirs = [*words, "--train-data", "::".join(tars), "--dataset-type", "webdataset"]
    theirs += ["--train-num-samples", str(arguments.samples)]
    sides = {
        "open_clip": ("open_clip_train", theirs),
        "tessera": (ours, [*words, "--train-data", str(arguments.index)]),
    }
    found = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "small.json"
        model.write_text(json.dumps(MODEL))
        for order in (list(sides), list(sides)[::-1]):
            for name in order:
                program, options = sides[name]
                found[name].append(run(options, model, program))
                print(name, f"{found[name][-1]['seconds']:.0f} s", flush=True)
    record = {"processor": processor(), "epochs": arguments.epochs, "batch": arguments.batch_size}
    for name, runs in found.items():
        record[name] = {
            "samples_per_s": [round(statistics.median(each["rates"]), 1) for each in runs],
            "seconds": [round(each["seconds"], 1) for each in runs],
            "cpu_s": [round(each["cpu_s"], 1) for each in runs],
            "data_wait_s": [round(statistics.median(each["data_s"]), 4) for each in runs],
            "losses": [each["losses"] for each in runs],
        }
    for name in ("seconds", "cpu_s"):
        theirs_s, ours_s = (sum(record[side][name]) for side in sides)
        record[f"open_clip_{name}_over_ours"] = round(theirs_s / ours_s, 2)
    arguments.out.write_text(json.dumps(record) + "\n")
    print({name: value for name, value in record.items() if name.endswith("_over_ours")})


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(names)} cores"


if __name__ == "__main__":
    main()
