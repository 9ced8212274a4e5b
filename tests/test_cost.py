"""The model of what the kernels cost on a GPU: listings, ways through loops, cycles known by hand, stored figures."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path

import pytest

from benchmarks.cost import __main__ as command
from benchmarks.cost import kernels, launches, machine, sass, sm

STORED = json.loads((command.RESULTS / "predicted-h200.json").read_text("utf-8"))
FREE = 7  # no scoreboard


def listed(*lines: str | tuple[str, int] | tuple[str, int, int, int]) -> str:
    """As nvdisasm prints it: labels and places as they are, instructions with stall, write scoreboard and waits."""
    text = []
    for line in lines:
        if isinstance(line, str):
            text.append(line)
            continue
        code, stall, write, wait = (*line, FREE, 0)[:4] if len(line) == 2 else line
        control = (stall | write << 5 | FREE << 8 | wait << 11) << 41
        text.append(f"        /*0010*/    {code} ;    /* 0x0000000000007947 */\n    /* 0x{control:016x} */")
    return "\n".join(text)


def code(*lines: str | tuple[str, int] | tuple[str, int, int, int]) -> sass.Code:
    return sass.Code("made", sass.parse(listed(*lines)), 32, 0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.cu"
    path.write_text("if (warp)\nfor (outer)\nfor (inner)\n", "utf-8")
    return path


@pytest.fixture
def nested(source: Path) -> sass.Code:
    """A branch over a slow path, a loop in a loop, and one that a part of the warps leaves out."""

    def at(number: int) -> str:
        return f'\t//## File "{source}", line {number} inlined at "b.cu", line 7\n\t//## File "b.cu", line 7'

    return code(
        *(("@P1 BRA `(.L_x_0)", 5), ("CALL.REL.NOINC `(slow)", 5), ".L_x_0:"),
        *(".L_x_1:", ("FADD R1, R1, R2", 4), ".L_x_2:", ("FFMA R3, R3, R4, R5", 4, 2, 0b100)),
        *(at(3), ("@!P0 BRA `(.L_x_2)", 5), at(2), ("@P0 BRA `(.L_x_1)", 5)),
        *(at(1), ("@P2 BRA `(.L_x_3)", 5), ("MUFU.EX2 R6, R6", 1), ".L_x_3:", ("EXIT", 5)),
    )


def test_a_listing_is_decoded(nested: sass.Code) -> None:
    ins = nested.instructions[3]
    assert (ins.name, ins.operands, ins.stall, ins.write, ins.wait) == ("FFMA", "R3, R3, R4, R5", 4, 2, 0b100)
    assert nested.loops == [sass.Loop(2, 5, "for (outer)"), sass.Loop(3, 4, "for (inner)")]
    assert [nested.instructions[i].target for i in nested.branches] == [2, 8]


def test_a_warp_runs_what_is_declared(nested: sass.Code) -> None:
    inner = [3, 4]
    assert sass.way(nested, {"outer": 2, "inner": 3}, {}, 0.5) == [0, *[2, *inner * 3, 5] * 2, 6, 7, 8]
    shares: sass.Numbers = {"if (warp)": 0.25}
    ways = [sass.way(nested, {"for (": (1.5, 1)}, shares, place) for place in (0.125, 0.375, 0.625, 0.875)]
    assert [way.count(2) for way in ways] == [1, 1, 2, 2]
    assert [7 in way for way in ways] == [True, False, False, False]


def test_a_warp_keeps_off_what_is_never_run(source: Path) -> None:
    def sides(first: int, second: int) -> sass.Code:
        """A branch between two sides, from these lines of the source."""
        at = [f'\t//## File "{source}", line {number}' for number in (first, second)]
        return code(
            *(("@P0 BRA `(.L_x_1)", 5), at[0], ("FADD R1, R1, R2", 4), ("BRA `(.L_x_2)", 5)),
            *(".L_x_1:", at[1], ("FMUL R1, R1, R2", 4), ".L_x_2:", ("EXIT", 5)),
        )

    assert sass.way(sides(2, 3), {}, {}, 0.5, ("for (inner)",)) == [0, 1, 2, 4]
    assert sass.way(sides(3, 2), {}, {}, 0.5, ("for (inner)",)) == [0, 3, 4]


def test_the_last_warps_may_stay(nested: sass.Code) -> None:
    ways = [sass.way(nested, {"for (": 1}, {"if (warp)": -0.25}, place) for place in (0.125, 0.375, 0.625, 0.875)]
    assert [7 in way for way in ways] == [False, False, False, True]


def test_what_is_off_is_not_waited_for(source: Path) -> None:
    at = f'\t//## File "{source}", line 1'
    load = code(at, ("@P0 LDG.E R1, [R2]", 1, 0, 0), ("FADD R1, R1, R1", 1, FREE, 1), ("EXIT", 1))
    launch = launches.Launch(lambda: load, 1, 32)
    for off, least in ((("if (warp)",), 0), ((), machine.GLOBAL_LATENCY)):
        instructions = dataclasses.replace(launch, off=off).instructions()
        assert least <= sm.simulate(instructions, [[0, 1, 2]], 1, 1).cycles < least + 50


@pytest.mark.parametrize(
    ("trips", "shares", "said"),
    [
        ({"outer": 2}, {}, "no trips for"),
        ({"for (": 2, "while": 1}, {}, "'while' has 0 numbers for 0 loops"),
        ({"for (": (1, 2, 3)}, {}, "has 3 numbers for 2 loops"),
        ({"for (": 1}, {"if (none)": 1}, "0 branches"),
    ],
)
def test_a_declaration_that_does_not_fit_is_refused(
    nested: sass.Code, trips: sass.Numbers, shares: sass.Numbers, said: str
) -> None:
    with pytest.raises(sass.CostError) as caught:
        sass.way(nested, trips, shares, 0.5)
    assert said in str(caught.value)


def cycles(warps: int, blocks: int, *lines: tuple[str, int] | tuple[str, int, int, int], resident: int = 32) -> float:
    instructions = code(*lines).instructions
    return sm.simulate(instructions, [list(range(len(instructions)))] * warps, blocks, resident).cycles


def test_cycles_that_are_known() -> None:
    fma, end = ("FFMA R1, R2, R3, R4", 1), ("EXIT", 1)
    stalled, special = ("FFMA R1, R2, R3, R4", 4), ("MUFU.EX2 R1, R1", 1)
    assert cycles(1, 1, *[fma] * 100, end) == 100
    assert cycles(1, 1, *[stalled] * 100, end) == 400
    assert cycles(4, 4, *[stalled] * 100, end) == pytest.approx(400, abs=4)  # four warps of a partition fill its slots
    assert cycles(4, 8, *[stalled] * 100, end) == pytest.approx(800, abs=16)
    assert cycles(1, 1, *[special] * 10, end) == 73  # the eleventh issues a cycle after the tenth
    products = ("HMMA.16816.F32 R4, R8, R12, R4", 1)
    assert cycles(1, 1, *[products] * 10, end) == pytest.approx(9 * machine.HMMA_LATENCY + 1)
    independent = [(f"HMMA.16816.F32 R{16 + 4 * i}, R4, R8, RZ", 1) for i in range(10)]
    assert cycles(1, 1, *independent, end) == pytest.approx(9 * machine.HMMA + 1)


def test_what_warps_wait_for() -> None:
    end = ("EXIT", 1)
    assert cycles(1, 1, ("LDG.E R1, [R2]", 1, 0, 0), ("FADD R1, R1, R1", 1, FREE, 1), end) >= machine.GLOBAL_LATENCY
    access = ("LDS.128 R4, [R2]", 1)
    assert cycles(4, 1, *[access] * 50, end) == pytest.approx(4 * 50 * 4, abs=8)  # wavefronts of the SM
    slow, barrier = [("MUFU.EX2 R1, R1", 1)] * 20, ("BAR.SYNC 0x0", 1)
    assert cycles(2, 1, *slow, barrier, end) == pytest.approx(153 + machine.BARRIER, abs=1)
    one = cycles(1, 1, *slow, end)
    assert cycles(1, 3, *slow, end, resident=1) == pytest.approx(3 * one + 2 * machine.BLOCK_START, abs=3)
    copies = (("LDGSTS.E.128 [R1], [R2]", 1), ("LDGDEPBAR", 1), ("DEPBAR.LE SB0, 0x0", 1), end)
    assert cycles(1, 1, *copies) >= machine.GLOBAL_LATENCY


def test_how_many_blocks_an_sm_holds() -> None:
    assert machine.resident(128, 128, 0) == 4  # registers
    assert machine.resident(128, 32, 60 * 1024) == 3  # shared memory
    assert machine.resident(1024, 32, 0) == 2  # warps
    assert machine.resident(32, 16, 0) == 32


def key(row: dict[str, object]) -> tuple[object, ...]:
    return tuple(row[name] for name in ("op", "implementation", "H", "L", "pass", "batch", "signal"))


def key_of(case: kernels.Case) -> tuple[object, ...]:
    return case.op, case.implementation, case.H, case.L, case.kind, case.batch, case.signal


def test_stored_predictions_are_those_of_the_registry() -> None:
    cases = {key_of(case): case for case in kernels.cases()}
    assert {key(row) for row in STORED["rows"]} == set(cases), f"run: {command.COMMAND}"
    for row in STORED["rows"]:
        assert row["measured_ms"] == command.measured(cases[key(row)], STORED["compilers"]["triton"]), row["op"]


def test_stored_predictions_are_near_what_was_measured() -> None:
    ratios = {key(row): row["ratio"] for row in STORED["rows"] if row["measured_ms"]}
    assert not {name: ratio for name, ratio in ratios.items() if not 2 / 3 < ratio < 1.25}
    assert 0.9 < statistics.geometric_mean(ratios.values()) < 1.1
    assert sum(0.8 < ratio < 1.25 for ratio in ratios.values()) >= 0.8 * len(ratios)


def needs_compilers() -> None:
    for name in ("nvcc", "cuobjdump", "nvdisasm", "c++filt"):
        try:
            sass.tool(name)
        except sass.CostError as error:
            pytest.skip(str(error))


@pytest.mark.slow
def test_a_kernel_is_compiled_and_read(tmp_path: Path) -> None:
    needs_compilers()
    path = tmp_path / "small.cu"
    text = """
        template <int N> __global__ void sums(const float *from, float *to, int count) {
            float sum = 0;
        #pragma unroll 1
            for (int i = 0; i < count; ++i) sum += from[i * N + threadIdx.x];
            to[threadIdx.x] = sum;
        }
        template __global__ void sums<1>(const float *, float *, int);
        template __global__ void sums<32>(const float *, float *, int);"""
    path.write_text(text, "utf-8")
    found = sass.native(path, "sums<32>")
    assert [loop.line for loop in found.loops] == [text.splitlines()[4].strip()]
    way = sass.way(found, {"i < count": 10}, {}, 0.5)
    assert sum(found.instructions[i].name.startswith("LDG") for i in way) == 10
    with pytest.raises(sass.CostError, match="is 2 of the kernels"):
        sass.native(path, "sums<")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({(case.op, case.implementation) for case in kernels.native_cases()}))
def test_predictions_are_those_of_the_code(name: tuple[str, str]) -> None:
    needs_compilers()
    if command.compilers()["nvcc"] != STORED["compilers"]["nvcc"]:
        pytest.skip(f"the stored predictions are those of nvcc {STORED['compilers']['nvcc']}")
    stored = {key(row): row for row in STORED["rows"]}
    case = next(case for case in kernels.native_cases() if (case.op, case.implementation) == name)
    row = command.row(case)
    assert row["predicted_ms"] == pytest.approx(stored[key(row)]["predicted_ms"], rel=1e-3), f"run: {command.COMMAND}"
