"""Search in pictures with a model you trained.

    python tools/search.py runs/demo data/demo/index/heldout                a page on this machine
    python tools/search.py runs/demo photos --query "a red boat"            in the terminal
    python tools/search.py runs/demo photos --image boat.jpg --count 5

Text to images and image to images. The model is a run's last checkpoint, a checkpoint's folder, or
one that open_clip or transformers wrote. Pictures are an index, INDEX@SELECTION, or a folder of
image files. Features are kept in --cache and made again when model or pictures
change. The page is served to this machine alone, until Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import torch
import tyro
from tqdm import tqdm

from tessera.evaluation.search import Search, open_pictures, open_search
from tessera.evaluation.text_features import open_text_features
from tessera.model import Clip, build_clip
from tessera.model.pretrained import load_pretrained, read_config, require_usual_resize
from tessera.report.search import ADDRESS, check_port, make_server
from tessera.training.environment import num_cores
from tessera.training.run_folder import newest_checkpoint


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Search in pictures with a trained model."""

    model: tyro.conf.Positional[Path]
    """Run folder or checkpoint folder."""
    pictures: tyro.conf.Positional[str]
    """INDEX, INDEX@SELECTION, or a folder of pictures."""
    query: str = ""
    """Text to look for; prints what is found, and ends."""
    image: Path | None = None
    """Picture to look for; prints what is found, and ends."""
    count: int = 24
    """Pictures to find."""
    port: int = 8765
    """Of the page; 0 takes a free one."""
    text_encoder: str = ""
    """Of a model that reads a language model's embeddings: the folder of what embeds the queries,
    or MODEL+LORA. Without it, only pictures can be looked for."""
    device: str = "cpu"
    """Where the model runs, such as cuda."""
    cache: Path = Path.home() / ".cache" / "tessera" / "search"
    """Folder of the features."""

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.port < 65_536:
            raise ValueError("--count must be at least 1 and --port lie between 0 and 65535")
        if self.query and self.image:
            raise ValueError("give --query or --image, not both")
        if self.image and not self.image.is_file():
            raise FileNotFoundError(f"there is no file {self.image}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(_run, argv)


def _run(words: list[str]) -> dict[str, Any] | None:
    arguments = tyro.cli(Arguments, args=words, description=program.describe(__doc__))
    folder = newest_checkpoint(arguments.model)
    if not arguments.image and not arguments.query:
        check_port(arguments.port)
        _serve(arguments, _open(arguments, folder))
        return None
    search = _open(arguments, folder)
    if arguments.image:
        hits = search.by_file(arguments.image.read_bytes(), arguments.count)
    else:
        hits = search.by_text(arguments.query, arguments.count)
    for rank, hit in enumerate(hits, 1):
        print(f"{rank:3}  {hit.score:.3f}  {hit.key}  {hit.caption}")
    return {"model": str(folder), "hits": [asdict(hit) for hit in hits]}


def _open(arguments: Arguments, folder: Path) -> Search:
    require_usual_resize(folder)
    clip: Clip = build_clip(read_config(folder))
    for note in load_pretrained(clip, folder):
        print(note, file=sys.stderr)
    clip.to(torch.device(arguments.device))
    pictures = open_pictures(arguments.pictures)
    with tqdm(unit=" pictures", desc="encoding", disable=None) as bar:
        search, was_there = open_search(clip, pictures, arguments.cache, num_cores(), bar.update)
    search.texts = open_text_features(clip, arguments.text_encoder)
    kept = "features from the cache" if was_there else "features made"
    print(f"{search.size} pictures of {pictures.name}, {kept}, {search.num_bad} not decodable")
    return search


def _serve(arguments: Arguments, search: Search) -> None:
    """Answer until the process is stopped."""
    name = str(arguments.model)
    with make_server(search, name, arguments.port, arguments.count) as server:
        print(f"open http://{ADDRESS}:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
