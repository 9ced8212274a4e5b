"""The exported C, compiled strictly, beside the model."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from s4_fast import S4DLayer, S4Layer
from s4_fast.export import to_c
from tests.export.exported import MODELS, STRICT, CStep, compiler, cpp, error, expected, inputs, made, stepped


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.sample(2)
def test_equals_the_model(name: str, tmp_path: Path) -> None:
    model = made(name)
    u = inputs(model, 2000)
    found = CStep(model, tmp_path).run(u)
    assert error(found, expected(model, u)) <= 1e-6
    if hasattr(model, "init_state"):
        assert error(found, stepped(model, u)) <= 1e-6


@pytest.mark.parametrize("name", ["s4d regression", "s4 regression", "s4d classification"])
def test_single_precision(name: str, tmp_path: Path) -> None:
    model = made(name)
    u = inputs(model, 2000)
    assert error(CStep(model, tmp_path, "-DMODEL_SINGLE").run(u), expected(model, u)) <= 5e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["s4d regression", "s4 regression", "S4DLayer", "S4Layer"])
def test_a_long_stream(name: str, tmp_path: Path) -> None:
    model = made(name)
    u = inputs(model, 100_000)
    assert error(CStep(model, tmp_path, "-O3").run(u), expected(model, u)) <= 1e-6


def test_states_in_double_add_up_no_error(tmp_path: Path) -> None:
    """Next to no damping: what float32 loses of the transition shows after some thousand steps."""
    torch.manual_seed(0)
    model = S4DLayer(4, 8, dt_min=0.5, dt_max=0.5).eval()
    with torch.no_grad():
        model.kernel.A_real.fill_(-12.0)
        model.D.zero_()
    u = torch.randn(8000, 4)
    reference = expected(model, u)
    assert error(CStep(model, tmp_path).run(u), reference) <= 2e-7
    assert 1e-6 <= error(CStep(model, tmp_path, "-DMODEL_SINGLE").run(u), reference) <= 5e-4


@pytest.mark.parametrize("flags", [[], ["-DMODEL_SINGLE"]])
@pytest.mark.parametrize("layer", [S4DLayer, S4Layer])
def test_in_silence_states_become_zero(layer: type[S4DLayer], flags: list[str], tmp_path: Path) -> None:
    """Numbers below the normal ones would stay, and slow processors down."""
    u = torch.zeros(40_000, 3)
    u[:5] = 1
    step = CStep(layer(3, 4, dt_min=0.3, dt_max=0.3), tmp_path, *flags)
    step.run(u[:5])
    size = 3 * 4 * (4 if flags else 8)
    assert any(step.state.raw[:size])
    step.run(u)
    assert not any(step.state.raw[:size])


def test_init_starts_anew(tmp_path: Path) -> None:
    model = made("s4 classification")
    u, step = inputs(model, 50), CStep(model, tmp_path)
    assert torch.equal(step.run(u), step.run(u))


def test_rate(tmp_path: Path) -> None:
    """Every other sample of a slow signal, at twice the step."""
    model = made("S4DLayer")
    u = inputs(model, 300)
    with torch.no_grad():
        model.kernel.inv_dt += torch.tensor(2.0).log()
        reference = expected(model, u)
        model.kernel.inv_dt -= torch.tensor(2.0).log()
    assert error(CStep(model, tmp_path, rate=2).run(u), reference) <= 1e-6
    assert error(CStep(model, tmp_path).run(u), reference) > 1e-2


def test_parameters_of_other_precisions(tmp_path: Path) -> None:
    model = made("s4 regression").double()
    u = inputs(model, 200)
    assert error(CStep(model, tmp_path).run(u), expected(model, u)) <= 1e-6
    half = made("s4d regression").bfloat16()
    assert error(CStep(half, tmp_path).run(u), expected(half, u)) <= 1e-6


def test_training_mode_does_not_matter(tmp_path: Path) -> None:
    model = made("SSMBlock")
    before = CStep(model, tmp_path).text
    assert CStep(model.train(), tmp_path).text == before
    assert model.training


PROGRAM = """
#define RENAMED_DECLARATIONS
#include "renamed.c"
#include <stdio.h>
static renamed_state state, other;
int main(void)
{
    float u[RENAMED_INPUTS] = {1.0f}, y[RENAMED_OUTPUTS];
    int i;
    renamed_init(&state);
    renamed_init(&other);
    for (i = 0; i < 3; i++) {
        renamed_step(&state, u, y);
        printf("%.9g\\n", (double)y[0]);
    }
    renamed_step(&other, u, y);
    printf("%.9g\\n", (double)y[0]);
    return 0;
}
"""


def test_a_program_includes_the_declarations_and_links_the_file(tmp_path: Path) -> None:
    model = made("s4d regression")
    facts = to_c(model, tmp_path / "renamed.c")
    (tmp_path / "main.c").write_text(PROGRAM)
    command = [compiler(), *STRICT, "main.c", "renamed.c", "-o", "main", "-lm"]
    subprocess.run(command, cwd=tmp_path, check=True)
    printed = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout.split()
    reference = stepped(model, torch.tensor([[1.0, 0, 0]]).expand(3, -1))[:, 0].tolist()
    assert [float(value) for value in printed] == pytest.approx([*reference, reference[0]], rel=1e-5)
    assert facts["inputs"] == "3" and facts["task"] == "regression"


@pytest.mark.parametrize("language", ["c", "c++"])
def test_the_program_of_the_guide(language: str, tmp_path: Path) -> None:
    """Samples from standard input to standard output, as C, and as C++ that links the C."""
    model = made("s4d regression")
    to_c(model, tmp_path / "effect.c")
    guide = Path(__file__).parents[2] / "docs" / "deploy.md"
    (tmp_path / "live.c").write_text(guide.read_text(encoding="utf-8").split("```c\n")[1].split("```")[0])
    subprocess.run([compiler(), *STRICT, "-c", "effect.c"], cwd=tmp_path, check=True)
    build = [compiler(), *STRICT] if language == "c" else [cpp(), "-Wall", "-Werror", "-x", "c++"]
    subprocess.run([*build, "-c", "live.c"], cwd=tmp_path, check=True)
    subprocess.run([compiler(), "live.o", "effect.o", "-o", "live", "-lm"], cwd=tmp_path, check=True)
    u = inputs(model, 40)
    result = subprocess.run([tmp_path / "live"], input=u.numpy().tobytes(), capture_output=True, check=True).stdout
    found = torch.frombuffer(bytearray(result), dtype=torch.float32).view(40, -1)
    assert error(found, expected(model, u)) <= 1e-6


def test_the_file_says_what_it_needs(tmp_path: Path) -> None:
    text = CStep(made("s4d classification"), tmp_path).text
    comment = text[: text.index("*/")]
    assert "classification" in comment and "sqrtf, erff, expf" in comment
    assert "malloc" not in text
    plain = CStep(made("S4DLayer"), tmp_path).text
    assert "Of libm: nothing" in plain
