"""What fewer bits cost on the bundled demo decoder: its logits and the perplexity of the answers in 200 fresh chats of
its world, and how many of its held-out questions it answers right.

    PYTHONPATH=examples python benchmarks/quantization.py

Everything but the weights is float32; the first line is what the others are held against.
"""

import math
from importlib.resources import files
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trefoil.rows import Chat
from trefoil.training.data import Reader, chat_example
from trefoil_demo import world
from trefoil_demo.decoder import ask
from trefoil_demo.tally import Tally
from trefoil_kernels.low_bit import has_int4
from trefoil_models import checkpoint
from trefoil_models.attend import packed_rows
from trefoil_models.model_folder import ModelFolder
from trefoil_models.packing import PACKERS, pack
from trefoil_models.tokenizer import Tokenizer

FOLDER = Path(str(files("trefoil_models"))) / "demo" / "decoder"
SEED, NUM_CHATS = 20261126, 200


@torch.no_grad()
def main() -> None:
    """One line a kind of weights."""
    tokenizer = Tokenizer.load(FOLDER)
    reading = Reader(tokenizer, ModelFolder.read(FOLDER).eos_ids, longest=1024)
    chats = [chat_example(Chat(tuple(chat)), reading) for chat in world.chats(Random(SEED), NUM_CHATS)]
    labels_T = torch.tensor([id for chat in chats for id in chat.ids[1:]])
    is_label_T = torch.tensor([is_label for chat in chats for is_label in chat.is_label[1:]])
    whole_TV: Tensor | None = None
    print(
        "| weights | perplexity | logits' relative error | same likeliest id | right answers |\n|---|---|---|---|---|"
    )
    for name in (name for name in PACKERS if name != "int4" or has_int4()):
        model = checkpoint.load(FOLDER)
        pack(model, name)
        logits_TV = torch.cat([model.lm_head.logits(model(*packed_rows([chat.ids[:-1]]))) for chat in chats])
        whole_TV = logits_TV if whole_TV is None else whole_TV
        perplexity = math.exp(cross_entropy(logits_TV[is_label_T], labels_T[is_label_T]))
        off = ((logits_TV - whole_TV).norm() / whole_TV.norm()).item()
        same = (logits_TV.argmax(1) == whole_TV.argmax(1)).float().mean().item()
        right = Tally(ask(model, tokenizer, world.held_out_questions())).accuracy
        print(f"| {name or 'float32'} | {perplexity:.4f} | {off:.2%} | {same:.2%} | {right:.1%} |", flush=True)


if __name__ == "__main__":
    main()
