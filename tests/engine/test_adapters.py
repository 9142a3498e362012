"""Eight adapters and the base in one batch: each request gets what it gets alone, whatever comes and goes beside it."""

from pathlib import Path

import pytest
import torch

import tiny
from engine_world import answers, finish, generator, request, run
from trefoil import wire
from trefoil.engine.generator import Generator
from trefoil_kernels.cpu.library import Native, native
from trefoil_models import checkpoint
from trefoil_models.adapter_files import read_adapter, save_adapter
from trefoil_models.lora import LoraShape, attach, attach_given, merge

NUM = 8
PROMPTS = tiny.draw_ids(*range(5, 5 + NUM + 1), vocab=300)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("lora") / "base", "llama")


@pytest.fixture(scope="module")
def adapters(base: Path) -> list[Path]:
    """Eight adapters of different ranks and layers."""
    shapes = [
        LoraShape(r=1 + n, alpha=4.0, targets=(("all-linear",), ("q_proj", "up_proj"))[n % 2]) for n in range(NUM)
    ]
    return [make(base, base.parent / f"adapter-{n}", shape, seed=n) for n, shape in enumerate(shapes)]


def make(base: Path, folder: Path, shape: LoraShape, *, seed: int) -> Path:
    model = checkpoint.load(base)
    generator = torch.Generator().manual_seed(seed)
    for layer in attach(model, shape, seed=seed).values():
        torch.nn.init.normal_(layer.lora_up, 0, 0.3, generator=generator)
    save_adapter(model, folder, shape, base="base")
    return folder


def merged(base: Path, adapter: Path, out: Path) -> Path:
    """The base with the adapter added to its weights."""
    model = checkpoint.load(base)
    attach_given(model, read_adapter(adapter, model).lows)
    merge(model)
    config = checkpoint.inspect(base).folder.config.values
    checkpoint.save(model, out, dict(config))
    tiny.write_tokenizer(out)
    return out


def load(engine: Generator, name: str, folder: Path) -> None:
    engine.load_adapter(wire.LoadAdapter(name, str(folder)))


def ask(name: str, adapter: str | None, prompt: list[int], length: int = 10) -> wire.Generate:
    params = wire.SamplingParams(max_tokens=length, temperature=0.0, logprobs=2)
    return wire.Generate(name, prompt, params, 0, adapter)


def told(engine: Generator, requests: list[wire.Generate]) -> dict[str, list[tuple[list[int], list[wire.TokenScore]]]]:
    """Ids and scores of every answer."""
    found: dict[str, list[tuple[list[int], list[wire.TokenScore]]]] = {one.id: [] for one in requests}
    for one in requests:
        assert engine.submit(one) == []
    for event in finish(engine):
        if isinstance(event, wire.Tokens):
            found[event.id].append((event.ids, event.scores))
    return found


def test_mixed_batch_gives_each_what_it_gets_alone(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    engine = generator(base)
    for n, folder in enumerate(adapters):
        load(engine, f"a{n}", folder)
    names = [None, *(f"a{n}" for n in range(NUM))]
    mixed = run(engine, [ask(f"{n}", name, PROMPTS[n]) for n, name in enumerate(names)])
    for n, name in enumerate(names):
        (alone,) = run(engine, [ask("alone", name, PROMPTS[n])]).values()
        assert mixed[f"{n}", 0] == alone
    plain = run(generator(base), [request(f"{n}", PROMPTS[n], 10) for n in range(2)])
    assert mixed["0", 0] == plain["0", 0]
    assert mixed["1", 0] != plain["1", 0]
    whole = generator(merged(base, adapters[3], tmp_path / "merged"))
    assert list(run(whole, [request("m", PROMPTS[4], 10)]).values()) == [mixed["4", 0]]


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_experts_and_latent_rows_are_adapted_as_if_merged(family: str, tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base", family)
    shapes = LoraShape(r=2, alpha=4.0), LoraShape(r=3, alpha=4.0)
    adapters = [make(base, tmp_path / f"a{n}", shape, seed=n) for n, shape in enumerate(shapes)]
    names = {name for adapter in adapters for name in read_adapter(adapter, checkpoint.load(base)).lows}
    assert any(".experts.3." in name for name in names)
    engine = generator(base, recorder=native())
    for n, folder in enumerate(adapters):
        load(engine, f"a{n}", folder)
    mixed = run(engine, [ask("0", "a0", PROMPTS[4]), ask("1", None, PROMPTS[5]), ask("2", "a1", PROMPTS[6])])
    for n, adapter in ((0, adapters[0]), (2, adapters[1])):
        whole = generator(merged(base, adapter, tmp_path / f"merged-{n}"))
        assert list(run(whole, [request("m", PROMPTS[4 + n], 10)]).values()) == [mixed[f"{n}", 0]]
    assert list(run(generator(base), [request("b", PROMPTS[5], 10)]).values()) == [mixed["1", 0]]


@pytest.mark.parametrize("recorder", [None, native()], ids=["called", "taped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scores_are_the_same_to_the_bit_beside_others(
    base: Path, adapters: list[Path], dtype: torch.dtype, recorder: Native | None
) -> None:
    # a prompt in one chunk, as it is alone
    engine = generator(base, dtype=dtype, rows=256, prefix_caching=False, recorder=recorder)
    for n, folder in enumerate(adapters):
        load(engine, f"a{n}", folder)
    names = [*(f"a{n}" for n in range(NUM)), None, "a3"]
    mixed = told(engine, [ask(f"{n}", name, PROMPTS[n % 9]) for n, name in enumerate(names)])
    for n, name in enumerate(names):
        assert told(engine, [ask(f"{n}", name, PROMPTS[n % 9])]) == {f"{n}": mixed[f"{n}"]}
        assert all(scores for _, scores in mixed[f"{n}"])


def test_pages_are_not_shared_between_adapters(base: Path, adapters: list[Path]) -> None:
    engine, prompt = generator(base), PROMPTS[8] * 2
    load(engine, "a", adapters[0])
    wanted = {}
    for name in (None, "a", None, "a"):
        for key, ids in run(engine, [ask(f"{name}", name, prompt)]).items():
            assert wanted.setdefault(key, ids) == ids
    load(engine, "a", adapters[2])
    (other,) = run(engine, [ask("other", "a", prompt)]).values()
    fresh = generator(base)
    load(fresh, "b", adapters[2])
    assert run(fresh, [ask("b", "b", prompt)]) == {("b", 0): other}
    assert engine.scheduler.totals.prefix_hits > 0


@pytest.mark.parametrize("recorder", [None, native()], ids=["called", "taped"])
def test_adapters_come_and_go_while_others_run(base: Path, adapters: list[Path], recorder: Native | None) -> None:
    engine = generator(base, recorder=recorder)
    load(engine, "a", adapters[0])
    load(engine, "b", adapters[1])
    wanted = run(engine, [ask("a", "a", PROMPTS[0], 20), ask("b", "b", PROMPTS[1], 20)])
    for name in ("a", "b"):
        engine.submit(ask(name, name, PROMPTS[0 if name == "a" else 1], 20))
    events = [event for _ in range(5) for event in engine.step()]
    engine.unload_adapter(wire.UnloadAdapter("a"))
    (refused,) = engine.submit(ask("late", "a", PROMPTS[0]))
    assert "not loaded" in refused.message
    for n in range(2, NUM):
        load(engine, f"c{n}", adapters[n])
        events += engine.step()
    assert answers([*events, *finish(engine)]) == wanted


def test_adapter_that_cannot_be_used_is_told_to_whoever_asks(base: Path, tmp_path: Path) -> None:
    engine = generator(base)
    load(engine, "bad", tmp_path)
    (refused,) = engine.submit(ask("x", "bad", PROMPTS[0]))
    assert isinstance(refused, wire.Failed)
    assert "adapter_config.json is missing" in refused.message
    assert run(engine, [ask("y", None, PROMPTS[0])])
