"""Does a download cost no more than the first edition's (5ca2be5)? Both trees, in turns, in a run.

    python tests/compare_download.py --first ../first --pictures PHOTOS --rounds 3

A server in a process of its own answers with 640 px JPEGs, at once and after 0.2 s; each tree's
program makes its table and its shards from it, two processes with 256 fetches each. Prints a JSON
line for each run: rows stored, seconds of wall time, and processor seconds (user and system) of the
program with all its workers, which a busy machine changes little.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def serve(folder: Path | None, delay_s: float) -> None:
    """Answer every path with one of the pictures, until the process ends."""
    from aiohttp import web

    pictures = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))] if folder else drawn()

    async def answer(request: web.Request) -> web.Response:
        if delay_s:
            await asyncio.sleep(delay_s)
        number = int(Path(request.path).stem)
        return web.Response(body=pictures[number % len(pictures)], content_type="image/jpeg")

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/{name}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(run())


def drawn() -> list[bytes]:
    """JPEGs of 640 x 480 with the detail of photos."""
    import numpy as np
    from PIL import Image

    found, random = [], np.random.default_rng(0)
    for _ in range(40):
        small = random.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC)
        noisy = np.asarray(image, np.int16) + random.integers(-12, 13, (480, 640, 3))
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
        found.append(file.getvalue())
    return found


def download(tree: Path, table: Path, out: Path, connections: int) -> dict[str, float]:
    """Run one tree's program; returns pictures, wall and processor seconds."""
    package = "tessera.tools" if (tree / "tessera/tools").exists() else "tools"
    words = [sys.executable, "-m", f"{package}.download", str(out), "--table", str(table)]
    words += ["--processes", "2", "--threads", str(connections // 2)]
    words += ["--samples-per-shard", "500", "--allow-address", "127.0.0.1/32", "--no-dns-probe"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(words, cwd=tree, capture_output=True, text=True, check=False)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    stored = json.loads(done.stdout.splitlines()[-1])["num_successes"]
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {
        "stored": stored,
        "seconds": round(seconds, 2),
        "cpu_s": round(cpu_s, 2),
        "rows_per_s": round(stored / seconds, 1),
        "cpu_ms_per_picture": round(1e3 * cpu_s / stored, 2),
    }


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--first", type=Path, default=ROOT.parent / "first", help="a tree of 5ca2be5"
    )
    parser.add_argument("--pictures", type=Path, help="folder of JPEGs; default: drawn ones")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=512)
    parser.add_argument("--delay", type=float, nargs="+", default=[0.0, 0.2], help="seconds")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.pictures, options.serve)
        return
    trees = {"first": options.first.resolve(), "second": ROOT}
    for delay_s in options.delay:
        runs = []
        with served(options.pictures, delay_s) as port, tempfile.TemporaryDirectory() as work:
            table, out = Path(work) / "links.tsv", Path(work) / "out"
            urls = [f"http://127.0.0.1:{port}/{n}.jpg" for n in range(options.rows)]
            table.write_text("".join(f"{url}\ta caption of it\n" for url in urls))
            for number in range(options.rounds):
                for name in sorted(trees, reverse=number % 2 == 1):
                    found = download(trees[name], table, out, options.connections)
                    shutil.rmtree(out)
                    runs.append({"delay_s": delay_s, "tree": name, "round": number} | found)
                    print(json.dumps(runs[-1]), flush=True)
        for what in ("rows_per_s", "cpu_ms_per_picture"):
            first, second = (
                statistics.median(run[what] for run in runs if run["tree"] == name)
                for name in trees
            )
            ratio = {"delay_s": delay_s, "what": what, "second_by_first": round(second / first, 3)}
            print(json.dumps(ratio), flush=True)


@contextmanager
def served(pictures: Path | None, delay_s: float) -> Iterator[int]:
    """The port of a server that runs in a process of its own."""
    command = [sys.executable, __file__, "--serve", str(delay_s)]
    command += ["--pictures", str(pictures)] if pictures else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.kill()


if __name__ == "__main__":
    main()
