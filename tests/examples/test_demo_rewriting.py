"""What the demo encoder-decoder will be asked is held out of what it is trained on."""

from random import Random

from trefoil_demo import rewriting


def test_held_out_examples_never_occur_in_training() -> None:
    trained = {one.source.casefold() for one in rewriting.training_rewrites(Random(1), 30_000)}
    assert not [one.source for one in rewriting.held_out_rewrites() if one.source.casefold() in trained]
    documents = "\n".join(rewriting.documents(Random(2), 20_000))
    translations = [one for one in rewriting.held_out_rewrites() if one.task == "translate"]
    told = [one.source.partition(": ")[2] for one in translations]
    pairs = [(text, one.target) for text, one in zip(told, translations, strict=True)]
    assert not [pair for pair in pairs if " ".join(pair) in documents or " ".join(pair[::-1]) in documents]
