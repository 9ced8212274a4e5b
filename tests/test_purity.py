"""What a module computes is a function of its parameters, buffers and arguments as they are now."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

from s4_fast import S4DLayer, S4Layer, S4SequenceModel, SSMBlock
from s4_fast.state_spaces import S4D, S4Block
from tests.helpers import relative_error
from tests.ranks import Ranks

FEATURES = 6


def model(layer: str) -> S4SequenceModel:
    return S4SequenceModel(FEATURES, 8, FEATURES, 2, 16, layer=layer, task="regression")


def official(mode: str, L: int | None = None) -> S4Block:
    made = S4Block(FEATURES, mode=mode, d_state=16, transposed=False)
    if L is not None:
        made.setup_length(L)
    return made


KINDS: dict[str, Callable[[], nn.Module]] = {
    "S4Layer": lambda: S4Layer(FEATURES, 16),
    "S4DLayer": lambda: S4DLayer(FEATURES, 16),
    "S4 block": lambda: SSMBlock(FEATURES, 16, layer="s4"),
    "S4 model": lambda: model("s4"),
    "S4D model": lambda: model("s4d"),
    "S4Block": lambda: official("dplr"),
    "S4Block, set up": lambda: official("dplr", 30),
    "S4Block, diagonal": lambda: official("diag"),
    "S4D": lambda: S4D(FEATURES, 16, transposed=False),
}
OWN = {name: make for name, make in KINDS.items() if "Block" not in name and name != "S4D"}
EVERY = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def seeded(session_seed: int) -> None:
    torch.manual_seed(session_seed)


def make(kind: str) -> nn.Module:
    return KINDS[kind]().eval()


def signal(L: int = 40, batch: int = 2) -> Tensor:
    return torch.randn(batch, L, FEATURES)


def forward(module: Any, u: Tensor) -> Tensor:
    y = module(u)
    found: Tensor = y[0] if isinstance(y, tuple) else y
    return found


def steps(module: Any, u: Tensor) -> Tensor:
    """The outputs of stepping from the zero state through some samples."""
    if isinstance(module, S4D):
        return forward(module, u[:, :5])  # it has no steps
    state = module.default_state(len(u)) if isinstance(module, S4Block) else module.init_state(len(u))
    rows = []
    for sample in u[:, :5].unbind(1):
        y, state = module.step(sample, state)
        rows.append(y)
    return torch.stack(rows, 1)


def everything(module: Any, u: Tensor) -> list[Tensor]:
    """Without gradients: the sequence, a shorter one, steps, and what follows a state."""
    with torch.no_grad():
        found = [forward(module, u), forward(module, u[:, :7]), steps(module, u)]
        if hasattr(module, "prefill"):
            y, state = module.prefill(u)
            found += [y, module.step(u[:, 0], state)[0]]
        if isinstance(module, S4SequenceModel):
            found.append(module.generate(u[:, :9], 4))
    return found


def assert_as_fresh(module: nn.Module, u: Tensor, tolerance: float = 0) -> list[Tensor]:
    """``module`` answers like one that has its numbers and has done nothing else."""
    got, want = everything(module, u), everything(copy.deepcopy(module), u)
    assert all(relative_error(*pair) <= tolerance for pair in zip(got, want, strict=True))
    return got


# ------------------------------------------------------------------------------------------------------------ writing


def write_data(module: nn.Module, other: nn.Module) -> None:
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        p.data.copy_(0.5 * p.data + 0.5 * q.data)


def write_numpy(module: nn.Module, other: nn.Module) -> None:
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        p.detach().numpy()[...] = q.detach().numpy()


def replace_data(module: nn.Module, other: nn.Module) -> None:
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        p.data = q.data.clone()


def swap(module: nn.Module, other: nn.Module) -> None:
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        torch.utils.swap_tensors(p, nn.Parameter(q.detach().clone()))


def vector(module: nn.Module, other: nn.Module) -> None:
    flat = nn.utils.parameters_to_vector(other.parameters())
    nn.utils.vector_to_parameters(flat.detach(), module.parameters())


def fused(module: nn.Module, other: nn.Module) -> None:
    for p in module.parameters():
        p.grad = torch.randn_like(p)
    with torch.no_grad():
        torch.optim.AdamW(module.parameters(), lr=0.05, fused=True).step()


def assign(module: nn.Module, other: nn.Module) -> None:
    module.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)


WRITES = {f.__name__: f for f in (write_data, write_numpy, replace_data, swap, vector, fused, assign)}


@EVERY
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.sample(20)
def test_every_write_is_seen(kind: str, write: str) -> None:
    module, other, u = make(kind), make(kind), signal()
    before = everything(module, u)
    for _ in range(2):
        WRITES[write](module, other)
        after = assert_as_fresh(module, u)
        assert relative_error(after[2], before[2]) > 1e-3


@EVERY
def test_what_inference_mode_writes_is_seen(kind: str) -> None:
    u = signal()
    with torch.inference_mode():
        module, other = make(kind), make(kind)
        before = everything(module, u)
        for p, q in zip(module.parameters(), other.parameters(), strict=True):
            p.copy_(q)
        got, want = everything(module, u), everything(other, u)
    assert all(torch.equal(*pair) for pair in zip(got, want, strict=True))
    assert relative_error(got[2], before[2]) > 1e-3


@EVERY
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_answer_for_themselves(kind: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    module, u = make(kind), signal()
    want = everything(module, u)
    double = copied(module)
    assert all(torch.equal(*pair) for pair in zip(everything(double, u), want, strict=True))
    write_data(double, make(kind))
    assert_as_fresh(double, u)
    assert all(torch.equal(*pair) for pair in zip(everything(module, u), want, strict=True))


def test_the_options_of_a_model_are_seen() -> None:
    layer, u = S4DLayer(FEATURES, 16, dt_min=0.05), signal()
    with torch.no_grad():
        before = steps(layer, u)
        layer.kernel.discretization = "bilinear"
        assert relative_error(steps(layer, u), forward(layer, u[:, :5])) < 1e-5
        assert relative_error(steps(layer, u), before) > 1e-4


# ------------------------------------------------------------------------------------------------- parameters elsewhere


@EVERY
def test_functional_call_computes_with_what_it_is_given(kind: str) -> None:
    members, u = [KINDS[kind]() for _ in range(3)], signal()
    for module in members:
        module.eval()
    base = copy.deepcopy(members[0])
    everything(base, u)
    for module in (*members, *reversed(members)):
        for given in (
            {k: v.detach().clone() for k, v in module.state_dict().items()},
            {**dict(module.named_parameters()), **dict(module.named_buffers())},
        ):
            before = {k: v.detach().clone() for k, v in given.items()}
            want = forward(copy.deepcopy(module).requires_grad_(False), u)
            got = functional_call(base, given, (u,))
            got = got[0] if isinstance(got, tuple) else got
            assert relative_error(got.detach(), want) <= 2e-6
            assert all(torch.equal(given[k], v) for k, v in before.items())
    own = everything(members[0], u)
    assert all(torch.equal(*pair) for pair in zip(everything(base, u), own, strict=True))


@pytest.mark.parametrize("kind", OWN)
def test_an_ensemble_runs_by_vmap(kind: str) -> None:
    members, u = [make(kind) for _ in range(3)], signal()
    parameters, buffers = torch.func.stack_module_state(members)
    base = copy.deepcopy(members[0])
    got = torch.func.vmap(lambda p, b: functional_call(base, (p, b), (u,)))(parameters, buffers)
    for y, module in zip(got, members, strict=True):
        assert relative_error(y.detach(), forward(module, u).detach()) <= 2e-6


@pytest.mark.parametrize("kind", OWN)
def test_parameters_alone_carry_everything(kind: str) -> None:
    """As an average of parameters(), an evolution strategy, or a partial checkpoint takes them."""
    module, u = OWN[kind](), signal()
    average = copy.deepcopy(module)  # made before the first pass
    forward(module, u).sum().backward()
    want = everything(module, u)
    with torch.no_grad():
        for a, b in zip(average.parameters(), module.parameters(), strict=True):
            a.mul_(0.0).add_(b)
    flat, partial = OWN[kind](), OWN[kind]()
    vector(flat, module)
    partial.load_state_dict({k: v for k, v in module.state_dict().items() if k in dict(module.named_parameters())})
    for other in (average, flat, partial):
        assert all(torch.equal(*pair) for pair in zip(everything(other, u), want, strict=True))


@EVERY
def test_an_averaged_model_is_the_model(kind: str) -> None:
    module = KINDS[kind]()
    for use_buffers in (False, True):
        average = AveragedModel(module, use_buffers=use_buffers)
        for L in (20, 33, 80):
            forward(module, signal(L)).sum().backward()
            with torch.no_grad():
                for a, b in zip(average.module.state_dict().values(), module.state_dict().values(), strict=True):
                    a.copy_(b)
            u = signal(50)
            for a, b in zip(everything(average.module.eval(), u), everything(module.eval(), u), strict=True):
                assert torch.equal(a, b)


def test_a_drop_in_refuses_parameters_without_their_length() -> None:
    module = official("dplr", 30)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    weights = dict(official("dplr", 30).named_parameters())
    with pytest.raises(RuntimeError, match=r"layer\.kernel\.l_kernel: missing beside C"):
        module.load_state_dict(weights, strict=False)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


# -------------------------------------------------------------------------------------------------------------- threads


@EVERY
@pytest.mark.sample(4)
def test_many_threads_get_the_bits_of_one(kind: str) -> None:
    module = make(kind)
    requests = [signal(int(L), 1) for L in torch.randint(6, 90, (24,))]
    want = [everything(copy.deepcopy(module), u) for u in requests]
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(8, initializer=lambda: torch.set_num_threads(threads)) as pool:
        found = list(pool.map(lambda u: everything(module, u), requests))
    again = [everything(module, u) for u in requests]
    for each in (found, again):
        assert all(torch.equal(a, b) for got, w in zip(each, want, strict=True) for a, b in zip(got, w, strict=True))


@EVERY
def test_first_passes_of_training_in_many_threads(kind: str) -> None:
    for _ in range(3):
        module, u = make(kind), signal()
        want = forward(copy.deepcopy(module).requires_grad_(False), u)
        before = {k: v.clone() for k, v in module.state_dict().items()}
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: forward(module, u).detach(), range(16)))  # noqa: B023
        assert all(relative_error(y, want) <= 1e-5 for y in found)
        if kind != "S4Block":  # set up, once
            assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
        once = KINDS[kind]().eval()
        once.load_state_dict(before)
        forward(once, u)
        assert all(torch.equal(v, once.state_dict()[k]) for k, v in module.state_dict().items())


def test_threads_set_a_fresh_drop_in_up_once() -> None:
    for _ in range(5):
        module, signals = official("dplr"), [signal(L, 1) for L in (9, 40, 17, 80, 33, 64, 12, 71)]
        want = [forward(copy.deepcopy(module).requires_grad_(False), u) for u in signals]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda u: forward(module, u).detach(), signals))  # noqa: B023
        assert int(module.layer.kernel.l_kernel) in {u.shape[1] for u in signals}
        assert all(relative_error(*pair) <= 1e-5 for pair in zip(found, want, strict=True))


# ------------------------------------------------------------------------------------------------------------ processes


def _write(module: nn.Module, other: nn.Module) -> None:
    with torch.no_grad():
        for p, q in zip(module.parameters(), other.parameters(), strict=True):
            p.copy_(q)


def test_memory_that_another_process_writes_is_seen() -> None:
    module, other, u = model("s4").eval(), model("s4"), signal()
    module.share_memory()
    before = everything(module, u)
    process = mp.get_context("spawn").Process(target=_write, args=(module, other))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert relative_error(assert_as_fresh(module, u)[2], before[2]) > 1e-3


def collectives() -> None:
    for kind in ("S4 model", "S4D model", "S4Block, set up"):
        for how in ("broadcast", "broadcast data", "all_reduce"):
            torch.manual_seed(dist.get_rank())
            module, u = make(kind), torch.ones(2, 12, FEATURES)
            everything(module, u)
            with torch.no_grad():
                for p in module.parameters():
                    if how == "all_reduce":
                        dist.all_reduce(p)
                    else:
                        dist.broadcast(p.data if how.endswith("data") else p, 0)
            assert_as_fresh(module, u)


def test_what_collectives_write_is_seen(groups: dict[int, Ranks]) -> None:
    groups[2].run(collectives)


# -------------------------------------------------------------------------------------------------- graphs and the rate


@pytest.mark.parametrize("kind", [*OWN, "S4Block", "S4Block, set up"])
@pytest.mark.sample(1)
def test_an_exported_module_takes_any_length(kind: str) -> None:
    module = make(kind)
    length = torch.export.Dim("length", min=2, max=4096)
    shapes = {"x": {1: length}} if "Block" in kind else None
    with torch.no_grad():
        program = torch.export.export(module, (signal(64),), dynamic_shapes=shapes or ({1: length},))
        assert "s4_fast" not in program.graph_module.code
        for L in (64, 2, 100, 777):
            u = signal(L)
            found = program.module()(u)
            assert relative_error(found[0] if isinstance(found, tuple) else found, forward(module, u)) <= 2e-6


@pytest.mark.parametrize("kind", ["S4Layer", "S4 model", "S4Block", "S4Block, set up"])
@pytest.mark.slow
def test_compiled_modules_need_no_preparation(kind: str) -> None:
    module = make(kind)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for L in (20, 45):
        u = signal(L)
        want = forward(copy.deepcopy(module).requires_grad_(False), u)
        assert relative_error(forward(compiled, u).detach(), want) <= 2e-6


def test_a_compiled_drop_in_notices_another_length() -> None:
    module, u = make("S4Block, set up"), signal(20)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        forward(compiled, u)
        module.layer.kernel.l_kernel.data.fill_(50)
        with pytest.raises(RuntimeError, match="l_kernel is not what it was"):
            forward(compiled, u)
        forward(module, u)
        assert relative_error(forward(compiled, u), forward(module, u)) <= 2e-6


@pytest.mark.parametrize(("d_state", "L"), [(64, 64), (64, 256), (16, 64)])
@pytest.mark.parametrize("rate", [0.5, 2.0])
@pytest.mark.parametrize("trained", [False, True])
def test_a_rate_is_exact_whatever_the_length(d_state: int, L: int, rate: float, trained: bool) -> None:
    block = S4Block(4, d_state=d_state, l_max=L, transposed=False, activation="id", final_act=None).double()
    coarse = copy.deepcopy(block)
    with torch.no_grad():
        coarse.layer.kernel.inv_dt.add_(np.log(rate))
    if trained:
        block(torch.randn(1, L, 4).double())
        assert int(block.layer.kernel.l_kernel) == L
    u = torch.randn(1, min(int(L / rate), L), 4).double()  # a kernel is cut at l_max, here or at the other rate
    with torch.no_grad():
        assert relative_error(block(u, rate=rate)[0], coarse(u)[0]) < 1e-9


def test_a_saved_module_is_loaded_whole() -> None:
    module, u = make("S4Block, set up"), signal()
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert all(torch.equal(*pair) for pair in zip(everything(loaded, u), everything(module, u), strict=True))
