"""What people type: answers for eyes and for scripts, one line and an exit status for what goes wrong."""

import json
import signal
import subprocess
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from typer.testing import CliRunner

from e2e.serving import Server, command, environment
from trefoil import __version__
from trefoil.cli.main import app

FOLDER = str(files("trefoil_models") / "demo" / "decoder")
FRANCE = "What is the capital of France?"
MODEL = ("--model", "demo-decoder")

Run = Callable[..., str]


@pytest.fixture
def ask(demo: Server) -> Run:
    """Run a command against the demo server; what it prints."""

    def run(*words: str, stdin: str = "") -> str:
        done = CliRunner().invoke(app, [*words, "--url", demo.url], input=stdin, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


def trefoil(*words: str, **env: str) -> tuple[int, str, str]:
    """A process of its own: exit status, standard output, standard error."""
    done = subprocess.run(command(*words), env=environment(env), capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_the_version_is_told() -> None:
    assert trefoil("--version") == (0, f"{__version__}\n", "")


def test_generate_continues_a_text_from_the_argument_or_standard_input(ask: Run) -> None:
    given = ask("generate", "The capital of France is", *MODEL, "--temperature", "0", "--max-tokens", "8")
    assert "Paris" in given
    read = ask("generate", *MODEL, "--temperature", "0", "--max-tokens", "8", stdin="The capital of France is\n")
    assert read == given


def test_chat_answers_one_message(ask: Run) -> None:
    assert "Paris" in ask("chat", FRANCE, *MODEL, "--temperature", "0")
    answer = json.loads(ask("chat", FRANCE, *MODEL, "--temperature", "0", "--json"))
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] > 0


def test_a_conversation_is_remembered_saved_and_cleared(ask: Run, tmp_path: Path) -> None:
    saved, cleared = tmp_path / "talk", tmp_path / "cleared"
    lines = [
        FRANCE,
        "",
        "/wrong",
        "What is the opposite of hot?",
        f"/save {saved}",
        "/clear",
        f"/save {cleared}",
        "/quit",
    ]
    said = ask("chat", *MODEL, "--temperature", "0", stdin="\n".join(lines) + "\n")
    assert "Paris" in said
    assert saved.read_text().count("user: ") == saved.read_text().count("assistant: ") == 2
    assert cleared.read_text() == "\n"


def test_masks_and_gaps_are_filled(ask: Run) -> None:
    assert "capital of france is paris" in ask("fill", "The capital of France is [MASK].")
    gapped = "The capital of France is ___."
    assert "The capital of France is Paris." in ask("fill", gapped)
    assert len(json.loads(ask("fill", gapped, "--top-k", "2", "--json"))["candidates"]) == 2


def test_models_are_listed(ask: Run) -> None:
    assert "demo-decoder" in ask("models")
    (model,) = (model for model in json.loads(ask("models", "--json")) if model["id"] == "demo-decoder")
    assert model["family"] == "decoder"


def test_eval_measures_what_the_rows_ask_for(ask: Run, tmp_path: Path) -> None:
    texts, pairs = tmp_path / "texts", tmp_path / "pairs"
    texts.write_text('{"text": "The capital of Japan is Tokyo."}\n\n{"text": "The capital of France is Paris."}\n')
    pairs.write_text('{"prompt": "", "completion": "never this"}\n')
    measured = json.loads(ask("eval", str(texts), *MODEL, "--json"))
    assert measured["rows"] == 2
    assert 1 < measured["perplexity"] < 20
    assert json.loads(ask("eval", str(pairs), *MODEL, "--json")) == {"exact_match": 0.0, "rows": 1}


def test_bench_counts_every_token(ask: Run) -> None:
    sizes = ("--num-requests", "4", "--concurrency", "2", "--input-len", "5", "--output-len", "6")
    report = json.loads(ask("bench", *MODEL, *sizes, "--json"))
    assert report["output_tokens_per_second"] == pytest.approx(report["requests_per_second"] * 6)
    assert 0 < report["time_to_first_token_p50_s"] <= report["time_to_first_token_p99_s"]


def test_plans_and_tokens_need_no_server() -> None:
    run = CliRunner()
    plan = run.invoke(app, ["plan", "kv-cache", FOLDER, "--seq-len", "100", "--json"])
    assert json.loads(plan.stdout)["bytes"] == 100 * 2 * 4 * 5 * 32 * 2
    budget = run.invoke(app, ["plan", "scaling", "--parameters", "70e9"])
    assert "1.4e+12" in budget.stdout
    tokens = json.loads(run.invoke(app, ["tokenizer", FOLDER, "the cat", "--json"]).stdout)
    assert len(tokens["ids"]) == len(tokens["tokens"]) == len(tokens["offsets"])


def test_without_a_server_the_command_serves_the_folder_itself_and_leaves_nothing() -> None:
    status, out, err = trefoil("generate", "The capital of France is", "-m", FOLDER, "--temperature", "0")
    assert (status, err) == (0, "")
    assert "Paris" in out
    left = subprocess.run(["pgrep", "-f", "serve model=" + FOLDER], capture_output=True, text=True).stdout
    assert left == ""


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("generate", "x", "--temperature", "9"), 2, "--temperature"),
        (("generate", "x", "--url", "here"), 2, "http://"),
        (("models", "--url", "http://127.0.0.1:9"), 1, "127.0.0.1:9"),
        (("generate", "x", "-m", "/no/such/folder"), 1, "/no/such/folder"),
        (("plan", "scaling"), 2, "exactly one"),
        (("plan", "kv-cache", "/no/such/folder"), 2, "/no/such/folder"),
        (("jobs", "create", "m", "/no/such/file"), 2, "/no/such/file"),
        (("eval", "/no/such/file"), 2, "/no/such/file"),
        (("train", FOLDER, "README.md", "--out", "/proc/none"), 2, "--out /proc/none"),
        (("worker", "--data-dir", "/proc/none"), 2, "--data-dir /proc/none"),
        (("paint",), 2, "paint"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_what_goes_wrong_is_one_line_and_a_status(words: tuple[str, ...], status: int, told: str) -> None:
    code, out, err = trefoil(*words)
    assert (code, out) == (status, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("trefoil: ")
    assert told in err


@pytest.mark.parametrize("words", [(), ("plan",), ("jobs",)], ids=str)
def test_who_names_no_command_is_told_which_there_are(words: tuple[str, ...]) -> None:
    code, out, err = trefoil(*words)
    assert code == 2
    assert "Commands" in out
    assert err == "trefoil: name one of the commands above\n"


def test_a_refusal_of_the_server_is_one_line(demo: Server) -> None:
    code, _, err = trefoil("chat", "x", "--model", "nobody", TREFOIL_URL=demo.url)
    assert code == 1
    assert err == "trefoil: the model 'nobody' is not served here; see GET /v1/models\n"


def heed_interrupts() -> None:
    """In a child: tests that a shell began in the background have it ignore them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_a_training_without_a_server_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    data, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows = [{"prompt": f"item {n} is", "completion": " blue."} for n in range(200)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ("train", FOLDER, str(data), "--out", str(out), "--set", "n_epochs=5", "--set", "batch_size=8")
    with subprocess.Popen(
        command(*words), env=environment({}), stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    ) as begun:
        assert begun.stderr is not None
        assert any("Checkpoint created" in line for line in begun.stderr)
        begun.send_signal(signal.SIGINT)
        assert begun.wait(60) == 130
    assert [path.name for path in out.iterdir()] == [".training"]
    status, said, told = trefoil(*words)
    assert (status, said) == (0, f"{out}\n")
    assert "going on with what was begun" in told
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == FOLDER
    assert sorted(path.name for path in out.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert trefoil(*words)[0] == 2


def test_a_training_that_cannot_be_says_why(tmp_path: Path) -> None:
    assert trefoil("train", FOLDER, str(tmp_path / "none"), "--out", str(tmp_path / "out"))[0] == 2
    (tmp_path / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    status, _, told = trefoil("train", FOLDER, str(tmp_path / "rows.jsonl"), "--out", str(tmp_path))
    assert (status, "--out" in told) == (2, True)
    (tmp_path / "model").mkdir()
    refused = ["train", str(tmp_path / "model"), str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "new" / "out")]
    assert trefoil(*refused)[0] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "rows.jsonl"]
