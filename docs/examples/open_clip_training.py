"""open_clip's own training program, fed by Tessera's loader: only its `data` is replaced.

    python docs/examples/open_clip_training.py --train-data INDEX --model ViT-B-32 --batch-size 256

All words are open_clip_train's options, torchrun and --resume work as there: an epoch of a resumed
run has the batches that it would have had. Needs `pip install 'open_clip_torch[training]'`.
"""

import copy
import sys

from open_clip_train import main as open_clip_main

from tessera import LoaderConfig, open_loader


class Data:
    """Both halves of what open_clip calls DataInfo: the loader and its epochs."""

    def __init__(self, index, args, tokenizer, image_size):
        total = args.batch_size * args.world_size
        config = LoaderConfig(
            batch_size=total,
            rank=args.rank,
            world_size=args.world_size,
            image_size=image_size,
            context_length=tokenizer.context_length,
            seed=args.seed,
            num_threads=max(1, args.workers),
        )
        self.loader = open_loader(index, config, output="dense", texts="padded", pixels="float")
        self.num_batches = self.loader.dataset.num_samples // total
        self.num_samples = self.num_batches * total
        self.dataloader = self
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.num_batches

    def __iter__(self):
        self.loader.seek(self.epoch * self.num_batches)
        for _ in range(self.num_batches):
            batch = next(self.loader)
            yield batch.images, batch.tokens


def get_data(args, preprocess, epoch=0, tokenizer=None):
    """In place of open_clip's: of its transform of training images only the size is used."""
    others = copy.copy(args)
    others.train_data, others.dataset_type = None, "auto"
    data = of_open_clip(others, preprocess, epoch, tokenizer)  # what is evaluated
    size = preprocess[0].transforms[0].size
    return {**data, "train": Data(args.train_data, args, tokenizer, max(size))}


if __name__ == "__main__":
    of_open_clip = open_clip_main.get_data
    open_clip_main.get_data = get_data
    open_clip_main.main(sys.argv[1:])
