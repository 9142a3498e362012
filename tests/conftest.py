"""What every test lives in: no network, one compute thread each, and on request fresh memory full of NaN."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch is imported, and for the processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices: threads would only wait for each other

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from databases import postgres_server
from e2e.serving import Server, serving_soundly

if TYPE_CHECKING:
    from trefoil_kernels.cpu.library import Native


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as `make serve` starts it, with the bundled demo models; it has no bad word in its log at the end."""
    log = tmp_path_factory.mktemp("demo") / "stderr"
    with serving_soundly(log) as running:
        yield running


@pytest.fixture(autouse=True, scope="session")
def data_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test writes into the user's own data folder."""
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("data-home"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server for the session; see `databases`."""
    with postgres_server() as url:
        yield url


@pytest.fixture
def nan_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty, empty_like and their kin hand out NaN, so that reading what was never written shows."""
    import torch  # here: the API's tests run without it

    def filled(make: Callable[..., Any]) -> Callable[..., Any]:
        def fresh(*args: Any, **kwargs: Any) -> Any:
            tensor = make(*args, **kwargs)
            if tensor.is_floating_point():
                tensor.detach().fill_(torch.nan)
            return tensor

        return fresh

    for owner, names in ((torch, ("empty", "empty_like", "empty_strided")), (torch.Tensor, ("new_empty",))):
        for name in names:
            monkeypatch.setattr(owner, name, filled(getattr(owner, name)))


@pytest.fixture
def gpu() -> str:
    """The CUDA device's name; the test skips itself where there is none."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return "cuda"


@pytest.fixture
def library() -> "Native":
    """The native kernels; the test skips itself where no compiler makes them."""
    from trefoil_kernels.cpu.library import native

    found = native()
    if found is None:
        pytest.skip("no native library on this machine")
    return found
