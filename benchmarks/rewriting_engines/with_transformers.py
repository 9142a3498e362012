"""transformers: `generate` on one padded batch."""

from pathlib import Path

import torch
import worker
from transformers import AutoModelForSeq2SeqLM


def load(folder: Path, precision: str) -> worker.Generate:
    torch.set_num_threads(worker.THREADS)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=getattr(torch, precision)).eval()

    def generate(inputs: worker.Batch, max_tokens: int) -> worker.Batch:
        ids_NK, mask_NK = map(torch.tensor, worker.padded(inputs))
        with torch.inference_mode():
            out = model.generate(
                ids_NK, attention_mask=mask_NK, max_new_tokens=max_tokens, min_new_tokens=max_tokens, do_sample=False
            )
        return [row[1:] for row in out.tolist()]

    return generate


if __name__ == "__main__":
    worker.serve(load)
