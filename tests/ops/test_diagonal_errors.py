"""Every error of diagonal_ssm and dplr_scan names the argument, what was expected, and what came."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ops.diagonal_inputs import EACH, run

U, A, D, S = torch.zeros(2, 4, 5), torch.full((4, 3), -0.5) + 0j, torch.zeros(4), torch.zeros(2, 4, 3) + 0j
DT, CHANNELS = torch.full((4,), 0.1), torch.stack((A, A))
LOW_RANK = {"diagonal_ssm": {}, "dplr_scan": {"P": A}}
REAL, SINGLE, DOUBLE = "torch.float32", "torch.complex64", "torch.complex128"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"u": U[0]}, ValueError, r"expected u of shape \(batch, H, L\) with L >= 1, got \(4, 5\)"),
        ({"u": U[..., :0]}, ValueError, r"expected u of shape \(batch, H, L\) with L >= 1, got \(2, 4, 0\)"),
        ({"u": U[:, :0], "time_major": True}, ValueError, r"u of shape \(batch, L, H\) with L >= 1, got \(2, 0, 5\)"),
        ({"u": U, "time_major": True}, ValueError, r"the 4 rows of A to divide the 5 features of u \(2, 4, 5\)"),
        ({"u": U + 0j}, TypeError, f"one precision, u to be {REAL}, got {SINGLE}"),
        ({"u": U.long()}, TypeError, f"one precision, u to be {REAL}, got torch.int64"),
        ({"u": U.double()}, TypeError, f"one precision, u to be {REAL}, got torch.float64"),
        ({"u": U.half(), "C": A.to(torch.complex128)}, TypeError, "u to be torch.float64, got torch.float16"),
        ({"u": U.to("meta")}, ValueError, "all tensors on one device, got u on meta, dt on cpu"),
        ({"A": A[0]}, ValueError, r"expected A of shape \(S, n\) with n >= 1, got \(3,\)"),
        ({"A": A[:, :0]}, ValueError, r"expected A of shape \(S, n\) with n >= 1, got \(4, 0\)"),
        ({"A": A[:3]}, ValueError, r"the 3 rows of A to divide the 4 features of u \(2, 4, 5\)"),
        ({"A": A.to(torch.complex128)}, TypeError, f"one precision, A to be {SINGLE}, got {DOUBLE}"),
        ({"A": A.real}, TypeError, r"A to be a complex tensor, got a tensor, float32 of shape \(4, 3\)"),
        ({"B": A[:2]}, ValueError, r"expected B of shape \(4, 3\), got \(2, 3\)"),
        ({"B": A.real}, TypeError, r"B to be a complex tensor, got a tensor, float32 of shape \(4, 3\)"),
        ({"B": A.to(torch.complex128)}, TypeError, f"one precision, B to be {SINGLE}, got {DOUBLE}"),
        ({"C": A[0]}, ValueError, r"C of shape \(H, n\) or \(channels, H, n\), got \(3,\)"),
        ({"C": A[:2]}, ValueError, r"expected C of shape \(channels, 4, 3\), got \(2, 3\)"),
        ({"C": CHANNELS[:0]}, ValueError, r"expected C of shape \(channels, 4, 3\), got \(0, 4, 3\)"),
        (
            {"C": A, "bidirectional": True},
            ValueError,
            r"C of shape \(channels, 4, 3\), an even number of channels, got",
        ),
        ({"C": A.real}, TypeError, r"C to be a complex tensor, got a tensor, float32 of shape \(4, 3\)"),
        ({"dt": DT[:3]}, ValueError, r"dt of shape \(4,\), \(4, 1\) or \(4, 3\), got \(3,\)"),
        ({"dt": DT[None]}, ValueError, r"dt of shape \(4,\), \(4, 1\) or \(4, 3\), got \(1, 4\)"),
        ({"dt": DT.double()}, TypeError, f"one precision, dt to be {REAL}, got torch.float64"),
        ({"dt": DT + 0j}, TypeError, f"one precision, dt to be {REAL}, got {SINGLE}"),
        ({"dt": DT.to("meta")}, ValueError, "all tensors on one device, got u on cpu, dt on meta"),
        ({"D": D[:2]}, ValueError, r"expected D of shape \(4,\), got \(2,\)"),
        ({"D": D, "C": CHANNELS}, ValueError, r"expected D of shape \(2, 4\), got \(4,\)"),
        ({"D": D + 0j}, TypeError, f"one precision, D to be {REAL}, got {SINGLE}"),
        ({"state": S[:1]}, ValueError, r"expected state of shape \(2, 4, 3\), got \(1, 4, 3\)"),
        ({"state": S.real}, TypeError, f"one precision, state to be {SINGLE}, got {REAL}"),
        ({"state": S.to("meta")}, ValueError, "one device, got u on cpu, .* state on meta"),
        ({"ahead": S}, ValueError, "ahead is for bidirectional=True"),
        ({"rate": 0}, ValueError, "expected a rate above 0, got 0"),
        ({"rate": -1.0}, ValueError, "expected a rate above 0, got -1"),
        ({"rate": float("nan")}, ValueError, "expected a rate above 0, got nan"),
        (
            {"ahead": S[:1], "C": CHANNELS, "bidirectional": True},
            ValueError,
            r"expected ahead of shape \(2, 4, 3\), got \(1, 4, 3\)",
        ),
    ],
)
@EACH
def test_bad_input(op: str, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    refuse(op, changes, error, message)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"P": A[0]}, ValueError, r"expected P of shape \(S, n\) or \(rank, S, n\) with rank >= 1, got \(3,\)"),
        ({"P": CHANNELS[:0]}, ValueError, r"expected P of shape \(S, n\) or .* with rank >= 1, got \(0, 4, 3\)"),
        ({"P": A[:2]}, ValueError, r"expected P of shape \(rank, 4, 3\), got \(1, 2, 3\)"),
        ({"P": CHANNELS[..., :2]}, ValueError, r"expected P of shape \(rank, 4, 3\), got \(2, 4, 2\)"),
        ({"P": A.real}, TypeError, r"P to be a complex tensor, got a tensor, float32 of shape \(4, 3\)"),
        ({"P": A.to(torch.complex128)}, TypeError, f"one precision, P to be {SINGLE}, got {DOUBLE}"),
        ({"P": A.to("meta")}, ValueError, "all tensors on one device, got u on cpu, .* P on meta"),
        ({"P": None}, TypeError, "expected P to be a complex tensor, got a NoneType"),
    ],
)
def test_bad_low_rank(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    refuse("dplr_scan", changes, error, message)


def test_an_unknown_discretization() -> None:
    said = "unknown discretization 'euler'; expected one of zoh, bilinear"
    refuse("diagonal_ssm", {"discretization": "euler"}, ValueError, said)


def refuse(op: str, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"u": U, "A": A, **LOW_RANK[op], "B": A, "C": A, "dt": DT, "D": D, "state": S, **changes}
    with pytest.raises(error, match=f"^{op}: .*{message}"):
        run(op, **given)


ARGUMENTS = {"u": U, "A": A, "B": A, "C": CHANNELS, "dt": DT, "D": D, "state": S, "ahead": S}


@EACH
@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_is_no_tensor(name: str, op: str) -> None:
    """A NumPy array too, and None where an argument may not be absent."""
    wrong: list[tuple[Any, str]] = [
        (ARGUMENTS[name].numpy(), r"a NumPy array \(torch.from_numpy makes a tensor of it\)"),
        (0.5, "a float"),
        ([0.5], "a list"),
        *([(None, "a NoneType")] if name in ("u", "A", "C", "dt") else []),
    ]
    for value, said in wrong:
        with pytest.raises(TypeError, match=f"^{op}: expected {name} to be a (complex )?tensor, got {said}$"):
            run(op, **{**ARGUMENTS, **LOW_RANK[op], name: value}, bidirectional=True)


@pytest.mark.parametrize(("rate", "said"), [("1", "str '1'"), (None, "NoneType None"), (True, "bool True")])
@EACH
def test_a_rate_is_a_number(op: str, rate: Any, said: str) -> None:
    with pytest.raises(TypeError, match=f"^rate must be a number, got {said}$"):
        run(op, u=U, A=A, **LOW_RANK[op], B=A, C=A, dt=DT, rate=rate)
