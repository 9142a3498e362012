"""Asks a running server the held-out questions: `python -m trefoil_demo.evaluate --url http://127.0.0.1:8000`.

Prints how many answers of the demo decoder are right by kind and language, and how many ended by themselves; then,
where the other demo models are served, what they get right. Leaves with 1 where the decoder or the encoder-decoder is
under 90 % of all it was asked, or an encoder at its task.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence

import httpx

from trefoil_demo import rewriting, understanding, world
from trefoil_demo.ask_encoders import http_answerers
from trefoil_demo.ask_rewriter import REWRITER, http_rewriter
from trefoil_demo.tally import Reply, Tally
from trefoil_demo.world import Question

WANTED = 0.9
MAX_TOKENS = 64
ENCODERS = ("demo-encoder", "demo-encoder-sentiment", "demo-encoder-entities", "demo-encoder-answers")


def main() -> int:
    """Ask, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the server listens")
    parser.add_argument("--model", help="the decoder to ask; by default the server's only one")
    parser.add_argument("--key", help="API key, where the server wants one")
    parser.add_argument("--at-once", type=int, default=8, help="requests in flight")
    parser.add_argument("--show-wrong", action="store_true", help="print the questions that were answered wrongly")
    options = parser.parse_args()
    headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
    with httpx.Client(base_url=options.url, headers=headers, timeout=60) as client:
        model = options.model or writing_model(client)
    replies = asyncio.run(ask_all(options.url, headers, model, options.at_once, world.held_out_questions()))
    tally = Tally(replies)
    if options.show_wrong:
        print(*(f"{reply.question.messages[-1]['content']} -> {reply.text}" for reply in tally.wrong), sep="\n")
    print(tally.table())
    with httpx.Client(base_url=options.url, headers=headers, timeout=60) as client:
        verdicts = understanding.judge(http_answerers(client)) if has_models(client, ENCODERS) else []
        rewritten = rewriting.judge(http_rewriter(client)) if has_models(client, [REWRITER]) else []
    if options.show_wrong:
        print(*(f"{one.asked} -> {one.said}" for one in [*verdicts, *rewritten] if not one.is_right), sep="\n")
    if verdicts:
        print(understanding.table(verdicts))
    if rewritten:
        print(understanding.table(rewritten), understanding.total(rewritten), sep="\n")
    return 0 if min(tally.accuracy, understanding.worst(verdicts), understanding.accuracy(rewritten)) >= WANTED else 1


def writing_model(client: httpx.Client) -> str:
    """The name of the one decoder served; leaves the program where there are several."""
    listed = client.get("/v1/models").raise_for_status().json()["data"]
    names: list[str] = [entry["id"] for entry in listed if entry["family"] == "decoder"]
    if len(names) != 1:
        sys.exit(f"the server has {len(names)} decoders, choose one with --model: {', '.join(names)}")
    return names[0]


def has_models(client: httpx.Client, names: Sequence[str]) -> bool:
    """Are all of them served?"""
    listed = client.get("/v1/models").raise_for_status().json()["data"]
    return set(names) <= {entry["id"] for entry in listed}


async def ask_all(
    url: str, headers: dict[str, str], model: str, at_once: int, questions: Sequence[Question]
) -> list[Reply]:
    """Every question, so many at a time, replies in the order of the questions."""
    gate = asyncio.Semaphore(at_once)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as client:

        async def gated(question: Question) -> Reply:
            async with gate:
                return await ask(client, model, question)

        return list(await asyncio.gather(*(gated(question) for question in questions)))


async def ask(client: httpx.AsyncClient, model: str, question: Question) -> Reply:
    """One greedy chat completion."""
    body = {"model": model, "messages": question.messages, "temperature": 0, "max_tokens": MAX_TOKENS}
    response = await client.post("/v1/chat/completions", json=body)
    (choice,) = response.raise_for_status().json()["choices"]
    return Reply(question, choice["message"]["content"] or "", has_stopped=choice["finish_reason"] == "stop")


if __name__ == "__main__":
    sys.exit(main())
