"""What fewer bits cost on the bundled demo decoder: perplexity and logits of 200 texts of its world that it was not
trained on, and how many of its held-out questions it answers right.

    PYTHONPATH=examples python benchmarks/quantization.py

Everything but the weights is float32; the first line is what the others are held against.
"""

import math
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from trefoil_demo import world
from trefoil_demo.decoder import ask
from trefoil_demo.tally import Tally
from trefoil_kernels.low_bit import has_int4
from trefoil_models import checkpoint
from trefoil_models.attend import packed_rows
from trefoil_models.packing import PACKERS, pack
from trefoil_models.tokenizer import Tokenizer

FOLDER = Path(str(files("trefoil_models"))) / "demo" / "decoder"
SEED, NUM_TEXTS = 20261126, 200


@torch.no_grad()
def main() -> None:
    """One line a kind of weights."""
    tokenizer = Tokenizer.load(FOLDER)
    texts = [tokenizer.encode(text).ids for text in world.documents(Random(SEED), NUM_TEXTS)]
    whole_TV: Tensor | None = None
    print(
        "| weights | perplexity | logits' relative error | same likeliest id | right answers |\n|---|---|---|---|---|"
    )
    for name in (name for name in PACKERS if name != "int4" or has_int4()):
        model = checkpoint.load(FOLDER)
        pack(model, name)
        logits_TV = torch.cat(list(logits(model, texts)))
        whole_TV = logits_TV if whole_TV is None else whole_TV
        labels_T = torch.tensor([id for ids in texts for id in ids[1:]])
        perplexity = math.exp(torch.nn.functional.cross_entropy(logits_TV, labels_T))
        off = ((logits_TV - whole_TV).norm() / whole_TV.norm()).item()
        same = (logits_TV.argmax(1) == whole_TV.argmax(1)).float().mean().item()
        right = Tally(ask(model, tokenizer, world.held_out_questions())).accuracy
        print(f"| {name or 'float32'} | {perplexity:.4f} | {off:.2%} | {same:.2%} | {right:.1%} |", flush=True)


def logits(model: checkpoint.Model, texts: list[list[int]]) -> Iterator[Tensor]:
    """What the model expects after each id of each text but the last."""
    for ids in texts:
        yield model.lm_head.logits(model(*packed_rows([ids[:-1]])))


if __name__ == "__main__":
    main()
