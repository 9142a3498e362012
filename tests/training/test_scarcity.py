"""Jobs that run out of disk or memory fail by name, keep what they had, and go on once there is enough."""

import resource
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors import safe_open

import tiny
from e2e.serving import children, eventually, title
from training.shop import Shop, open_shop
from trefoil.store.jobs import Job, State, Want

pytestmark = pytest.mark.slow

SMALL_DISK = 'mount -t tmpfs -o size=2m none "$0" && head -c "$1" /dev/zero > "$0/ballast" && shift && exec "$@"'


def can_mount() -> bool:
    """May we have a small disk of our own?"""
    unshare = shutil.which("unshare")
    return unshare is not None and not subprocess.run([unshare, "-rm", "true"], capture_output=True).returncode


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return tiny.checkpoint(folder, "llama", std=0.1, max_position_embeddings=20_000)


def resumed(shop: Shop, job: Job) -> Job:
    shop.store.jobs.ask(job.id, Want.RUN)
    return shop.wait(job)


@pytest.mark.skipif(not can_mount(), reason="needs leave to mount a small disk in a namespace of its own")
@pytest.mark.parametrize(("folder", "room_kib"), [("jobs", 300), ("models", 150)])
def test_full_disk_fails_the_job_and_leaves_what_it_saved(
    base: Path, tmp_path: Path, folder: str, room_kib: int
) -> None:
    """Room for one state but not for the next beside it; or for some of the models on the way."""
    with open_shop(f"sqlite:///{tmp_path}/trefoil.db", tmp_path, base, num_workers=0) as shop:
        disk = tmp_path / folder
        disk.mkdir()
        ballast = str((2048 - room_kib) << 10)
        worker = shop.start_worker("unshare", "-rm", "sh", "-c", SMALL_DISK, str(disk), ballast)
        seen = Path(f"/proc/{worker.pid}/root{tmp_path}")  # the folder as the worker has it
        job = shop.wait(shop.submit(n_epochs=40, save_steps=40))
        assert (job.state, job.error["code"]) == (State.FAILED, "disk_full")
        last = shop.store.jobs.events(job.id)[-1]
        assert (last.level, "no space is left" in last.message) == ("error", True)
        with safe_open(seen / "jobs" / job.id / "training_state.safetensors", framework="pt") as state:
            assert '"step": ' in state.metadata()["position"]
        for model in shop.store.catalog.checkpoints(job.id):
            with safe_open(seen / "models" / Path(model.folder).name / "adapter_model.safetensors", "pt") as adapter:
                assert len(adapter.keys()) == 28
        assert not list(seen.glob(f"{folder}/**/.*.part"))
        (seen / folder / "ballast").unlink()
        assert resumed(shop, job).state == State.SUCCEEDED


def test_job_out_of_memory_fails_and_goes_on_when_there_is_more(base: Path, tmp_path: Path) -> None:
    """It may take little more than it has when it comes to a long text, which is looked at late."""
    long = {"prompt": "one two three " * 800, "completion": "four"}
    with open_shop(f"sqlite:///{tmp_path}/trefoil.db", tmp_path, base) as shop:
        job = shop.submit(n_epochs=40, validation=[long], max_length=16_000, save_steps=120)
        state = tmp_path / "jobs" / job.id / "training_state.safetensors"
        eventually(lambda: state.exists() or shop.state(job).is_over, within_s=90)
        (trainer,) = [pid for pid in children(shop.workers[0].pid) if title(pid) == f"trefoil trainer {job.id}"]
        resource.prlimit(trainer, resource.RLIMIT_AS, (address_space(trainer) + (2 << 20), resource.RLIM_INFINITY))
        job = shop.wait(job)
        assert (job.state, job.error["code"]) == (State.FAILED, "out_of_memory")
        assert "smaller batches" in shop.store.jobs.events(job.id)[-1].message
        assert state.exists()
        assert resumed(shop, job).state == State.SUCCEEDED


def address_space(pid: int) -> int:
    """Bytes of addresses that a process has mapped."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmSize:")]
    return int(line.split()[1]) << 10
