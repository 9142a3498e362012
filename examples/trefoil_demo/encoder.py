"""Trains the bundled demo encoders from nothing: `python -m trefoil_demo.encoder --out DIR`.

A WordPiece tokenizer, masked-LM pre-training on the world's text, then from that trunk three models with a head each:
sentiment, entities, answers; in a second sitting more of what was left unsure. A folder each: DIR/encoder and so on.
"""

import argparse
import json
import string
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import WordPiece
from torch import Tensor

from trefoil.training.examples import IGNORED, Reading
from trefoil.training.loop import Objective, Progress, Recipe, Watch, train
from trefoil.training.objectives.classification import classification
from trefoil.training.objectives.masked_lm import MaskedLM
from trefoil.training.objectives.question_answering import question_answering
from trefoil.training.objectives.token_classification import token_classification
from trefoil.training.reading import first_rows
from trefoil_demo import understanding
from trefoil_demo.encoder_card import encoder_card
from trefoil_demo.mentions import TAGS, Tagged, training_mentions
from trefoil_demo.opinions import LABELS, Opinion, training_opinions
from trefoil_demo.passages import Blank, Passage, documents, training_blanks, training_passages
from trefoil_demo.understanding import Entity, Verdict
from trefoil_models import checkpoint
from trefoil_models.attend import packed_rows
from trefoil_models.checkpoint import Model
from trefoil_models.tokenizer import Encoding, Tokenizer

SEED = 4
NUM_THREADS = 1
"""Sums in floating point depend on how many threads share them: the same number gives the same weights."""
NUM_DOCUMENTS = 24_000
NUM_OPINIONS = 8_000
NUM_MENTIONS = 10_000
NUM_PASSAGES = 16_000
NUM_BLANKS = 70_000
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST = 256
SHARE = 0.3
"""Twice what BERT masks: small models learn more from each text so (Wettig et al., arXiv 2202.08005)."""

CONFIG: dict[str, Any] = {
    "architectures": ["BertForMaskedLM"],
    "model_type": "bert",
    "vocab_size": 1400,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": LONGEST,
    "type_vocab_size": 2,
    "initializer_range": 0.05,
    "pad_token_id": 0,
}
PRETRAIN = Recipe(learning_rate=2e-3, epochs=2, budget=1024, final_rate=0.02, weight_decay=0.01, report_every=100)
TUNE = Recipe(learning_rate=1e-3, epochs=1, budget=1024, final_rate=0.02, weight_decay=0.01, report_every=100)
FOLDERS = ("encoder", "encoder-sentiment", "encoder-entities", "encoder-answers")


def main() -> None:
    """Train, save, ask what was held out, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the four folders; files are replaced")
    parser.add_argument("--second-only", action="store_true", help="go on from a first sitting in DIR")
    options = parser.parse_args()
    torch.set_num_threads(NUM_THREADS)
    torch.manual_seed(SEED)
    started = time.monotonic()
    if not options.second_only:
        first_sitting(options.out)
    second_sitting(options.out)
    verdicts = judge(options.out)
    write_cards(options.out, verdicts)
    print(understanding.table(verdicts), f"{(time.monotonic() - started) / 60:.1f} minutes", sep="\n")


def write_cards(out: Path, verdicts: list[Verdict]) -> None:
    """A README.md for each folder."""
    for name in FOLDERS:
        num_parameters = sum(parameter.numel() for parameter in checkpoint.load(out / name).parameters())
        (out / name / "README.md").write_text(encoder_card(name, num_parameters, verdicts), encoding="utf-8")


def first_sitting(out: Path) -> None:
    """Tokenizer, masked-LM pre-training, and each head on the trunk."""
    texts = list(documents(Random(SEED), NUM_DOCUMENTS))
    opinions = list(training_opinions(Random(SEED + 1), NUM_OPINIONS))
    mentions = list(training_mentions(Random(SEED + 2), NUM_MENTIONS))
    passages = list(training_passages(Random(SEED + 3), NUM_PASSAGES))
    everything = [*texts, *(o.text for o in opinions), *(m.text for m in mentions), *(p.question for p in passages)]
    tokenizer = train_tokenizer(everything, out)
    config = {**CONFIG, "vocab_size": tokenizer.vocab_len}
    trunk = checkpoint.build(config, seed=SEED)
    plain = [reading(tokenizer.encode(text)) for text in texts + [o.text for o in opinions]]
    _train("text", trunk, _masked_lm(tokenizer), plain, PRETRAIN)
    tuned = {
        "encoder-sentiment": (
            *_headed(trunk, config, "ForSequenceClassification", LABELS),
            classification,
            [opinion_reading(one, tokenizer) for one in opinions],
            TUNE,
        ),
        "encoder-entities": (
            *_headed(trunk, config, "ForTokenClassification", TAGS),
            token_classification,
            [mention_reading(one, tokenizer) for one in mentions],
            TUNE,
        ),
        "encoder-answers": (
            *_headed(trunk, config, "ForQuestionAnswering", ()),
            question_answering,
            [passage_reading(one, tokenizer) for one in passages],
            replace(TUNE, epochs=2),
        ),
    }
    _save(trunk, out / "encoder", config)
    for name, (model, content, objective, readings, recipe) in tuned.items():
        _train(name, model, objective, readings, recipe)
        _save(model, out / name, content)


def second_sitting(out: Path) -> None:
    """Fresh examples for what the first left unsure; the masked LM now has whole names hidden."""
    tokenizer = Tokenizer.load(out / "encoder")
    opinions = training_opinions(Random(SEED + 4), 2 * NUM_OPINIONS)
    passages = training_passages(Random(SEED + 5), 2 * NUM_PASSAGES)
    blanks = training_blanks(Random(SEED + 6), NUM_BLANKS)
    _go_on(out / "encoder-sentiment", classification, [opinion_reading(one, tokenizer) for one in opinions])
    _go_on(out / "encoder", _masked_lm(tokenizer), [blank_reading(one, tokenizer) for one in blanks])
    _go_on(out / "encoder-answers", question_answering, [passage_reading(one, tokenizer) for one in passages])


def _go_on(folder: Path, objective: Objective[Reading], readings: list[Reading]) -> None:
    model = checkpoint.load(folder)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    _train(folder.name, model, objective, readings, TUNE)
    _save(model, folder, json.loads((folder / "config.json").read_text(encoding="utf-8")))


def _masked_lm(tokenizer: Tokenizer) -> MaskedLM:
    specials = [_id(tokenizer, name) for name in SPECIALS]
    return MaskedLM(_id(tokenizer, "[MASK]"), tokenizer.vocab_len, specials, share=SHARE)


def _save(model: Model, folder: Path, config: dict[str, Any]) -> None:
    """In bfloat16, which halves the bytes; what the test measures is what was saved."""
    model.to(torch.bfloat16)
    checkpoint.save(model, folder, config)


def train_tokenizer(texts: Sequence[str], out: Path) -> Tokenizer:
    """Lower-cased WordPiece on the world's text, written as tokenizer files of every folder."""
    backend = tokenizers.Tokenizer(WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    letters = string.ascii_lowercase + string.digits
    trainer = trainers.WordPieceTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=list(SPECIALS),
        initial_alphabet=list(letters + string.punctuation),
        show_progress=False,
    )
    # every letter also occurs inside a word, so that no Latin word is unknown
    backend.train_from_iterator([*texts, *(f"{one}{other}" for one in "aq" for other in letters)], trainer)
    ids = [(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    roles = {f"{name.strip('[]').lower()}_token": name for name in SPECIALS}
    about = {"tokenizer_class": "BertTokenizer", **roles, "model_max_length": LONGEST, "do_lower_case": True}
    for name in FOLDERS:
        (out / name).mkdir(parents=True, exist_ok=True)
        backend.save(str(out / name / "tokenizer.json"))
        text = json.dumps(about, indent=2) + "\n"
        (out / name / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return Tokenizer.load(out / FOLDERS[0])


def reading(encoding: Encoding, labels: Sequence[int] = ()) -> Reading:
    """Tokens as an example."""
    return Reading(tuple(encoding.ids), tuple(encoding.type_ids), tuple(labels))


def opinion_reading(opinion: Opinion, tokenizer: Tokenizer) -> Reading:
    """A sentence and whether it praises."""
    return reading(tokenizer.encode(opinion.text), [opinion.label])


def mention_reading(tagged: Tagged, tokenizer: Tokenizer) -> Reading:
    """A text and the tag of each of its tokens; what the tokenizer put around them teaches nothing."""
    encoding = tokenizer.encode(tagged.text)
    return reading(encoding, [_tag(start, end, tagged) for start, end in encoding.offsets])


def _tag(start: int, end: int, tagged: Tagged) -> int:
    if start == end:
        return IGNORED
    for mention in tagged.mentions:
        if mention.start <= start < mention.end:
            return TAGS.index(("B-" if start == mention.start else "I-") + mention.kind)
    return TAGS.index("O")


def passage_reading(passage: Passage, tokenizer: Tokenizer) -> Reading:
    """A question with its text, and the rows at which the answer begins and ends."""
    encoding = tokenizer.encode(passage.question, pair=passage.context)
    if passage.span is None:
        return reading(encoding, [0, 0])
    inside = [
        row
        for row, ((start, end), kind) in enumerate(zip(encoding.offsets, encoding.type_ids, strict=True))
        if kind == 1 and passage.span[0] <= start < end <= passage.span[1]
    ]
    return reading(encoding, [inside[0], inside[-1]])


def blank_reading(blank: Blank, tokenizer: Tokenizer) -> Reading:
    """A statement, and the rows of the word to hide."""
    encoding = tokenizer.encode(blank.text)
    inside = [blank.span[0] <= start < end <= blank.span[1] for start, end in encoding.offsets]
    return reading(encoding, [i if own else IGNORED for i, own in zip(encoding.ids, inside, strict=True)])


def _headed(
    trunk: Model, config: dict[str, Any], architecture: str, labels: Sequence[str]
) -> tuple[Model, dict[str, Any]]:
    """A model with the trunk's layers and a fresh head, and its config."""
    named = {"id2label": {str(n): label for n, label in enumerate(labels)}} if labels else {}
    named |= {"label2id": {label: n for n, label in enumerate(labels)}} if labels else {}
    content = {**config, "architectures": [f"Bert{architecture}"], **named}
    model = checkpoint.build(content, seed=SEED)
    learnt = dict(trunk.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in learnt:
                parameter.copy_(learnt[name])
    return model, content


def _train(name: str, model: Model, objective: Objective[Reading], readings: list[Reading], recipe: Recipe) -> None:
    started = time.monotonic()

    def report(progress: Progress) -> None:
        seconds = time.monotonic() - started
        print(f"{name} {progress.step}/{progress.num_steps} loss={progress.loss:.4f} seconds={seconds:.0f}", flush=True)

    train(model, objective, readings, recipe, watch=Watch(report=report))


def judge(out: Path) -> list[Verdict]:
    """The held-out test of the saved folders, computed in float32 without a server."""
    tokenizer = Tokenizer.load(out / "encoder")
    fill, sentiment, entities, answers = (checkpoint.load(out / name) for name in FOLDERS)
    answerers = understanding.Answerers(
        fill=lambda cases: [_filled(fill, tokenizer, text, span) for text, span in cases],
        sentiment=lambda texts: [LABELS[int(_asked(sentiment, "class", tokenizer.encode(t)).argmax())] for t in texts],
        entities=lambda texts: [_entities(entities, tokenizer.encode(text)) for text in texts],
        answers=lambda cases: [_answer(answers, tokenizer, *case) for case in cases],
    )
    return understanding.judge(answerers)


@torch.no_grad()
def _asked(model: Model, head: str, encoding: Encoding) -> Tensor:
    """What a head says of each row; of the first alone where it speaks of the whole text."""
    rows, attend = packed_rows([encoding.ids], types=[encoding.type_ids])
    hidden_TM = model(rows, attend)
    return model.heads[head](hidden_TM[first_rows(attend.packing)] if head == "class" else hidden_TM)


def _filled(model: Model, tokenizer: Tokenizer, text: str, span: tuple[int, int]) -> str:
    hidden = tokenizer.encode(text[slice(*span)], add_special_tokens=False)
    masked = text[: span[0]] + "[MASK]" * len(hidden.ids) + text[span[1] :]
    encoding = tokenizer.encode(masked)
    at = [row for row, token_id in enumerate(encoding.ids) if token_id == _id(tokenizer, "[MASK]")]
    return tokenizer.decode(_asked(model, "mask", encoding)[at].argmax(-1).tolist())


def _entities(model: Model, encoding: Encoding) -> list[Entity]:
    """Tags joined: a B begins, an I of the same kind goes on."""
    found: list[Entity] = []
    tags = _asked(model, "tag", encoding).argmax(-1).tolist()
    for (start, end), number in zip(encoding.offsets, tags, strict=True):
        if start == end or TAGS[number] == "O":
            continue
        place, kind = TAGS[number].split("-")
        if place == "I" and found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1], end)
        else:
            found.append((kind, start, end))
    return found


def _answer(model: Model, tokenizer: Tokenizer, question: str, context: str) -> str:
    encoding = tokenizer.encode(question, pair=context)
    is_context = torch.tensor(encoding.type_ids, dtype=torch.bool)
    is_context[-1] = False
    starts_Q, ends_Q = _asked(model, "span", encoding).masked_fill(~is_context[:, None], -torch.inf).unbind(-1)
    sums_QQ = (starts_Q[:, None] + ends_Q[None]).where(torch.ones(len(starts_Q), len(starts_Q)).triu() > 0, -torch.inf)
    start, end = divmod(int(sums_QQ.argmax()), len(starts_Q))
    return context[encoding.offsets[start][0] : encoding.offsets[end][1]]


def _id(tokenizer: Tokenizer, token: str) -> int:
    (token_id,) = tokenizer.encode_ids(token, add_special_tokens=False)
    return token_id


if __name__ == "__main__":
    main()
