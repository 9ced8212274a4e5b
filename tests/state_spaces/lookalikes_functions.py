"""Modules that choose among Cauchy and Vandermonde functions as the files of each official release do.

Functions that need a GPU there name KeOps' ``Genred`` here and fail when they are called.
"""

from __future__ import annotations

from types import ModuleType

from torch import nn

HEAD = """
import torch
from torch import nn
"""

FAST = """
def {name}({arguments}):
    return Genred("the original ran")
"""

CAUCHY_HALF = """
def {name}(v, z, w):
    return sum(v[..., n, None] / (z - w[..., n, None]) for n in range(w.shape[-1]))
"""

CAUCHY_PAIRS = """
def {name}(v, z, w{options}):
    v, w = torch.stack((v, v.conj())), torch.stack((w, w.conj()))
    return sum(v[..., n, None] / (z - w[..., n, None]) for n in range(w.shape[-1])).sum(0)
"""

VANDERMONDE = """
def log_vandermonde{end}(v, x, L):
    return torch.stack([2 * (v * torch.exp(l * x)).sum(-1).real for l in range(L)], -1)

def log_vandermonde_transpose{end}(u, v, x, L):
    return sum(u.to(x)[..., l, None] * v.to(x) * torch.exp(l * x) for l in range(L))
"""

# Releases 1 and 2: the CUDA function or KeOps, which the package has in a module of its own.
OLD_LAYER = """
class SSKernelNPLR(nn.Module):
    def forward(self, v, z, w):
        if has_cauchy_extension and z.dtype == torch.cfloat:
            return cauchy_mult(v, z, w, symmetric=True)
        return {call}(v, z, w)
"""

LAYER = """
class SSKernelNPLR(nn.Module):
    keops = False

    def forward(self, v, z, w):
        if has_cauchy_extension and z.dtype == torch.cfloat and not self.keops:
            r = cauchy_mult(v, z, w, symmetric=True)
        elif has_pykeops:
            r = cauchy_conj(v, z, w)
        else:
            r = {fallback}(v, z, w)
        return r
"""

DIAGONAL_LAYER = """
class SSKernelDiag(nn.Module):
    def forward(self, v, x, L):
        return log_vandermonde(v, x, L)

    def forward_state(self, u, v, x):
        return log_vandermonde_transpose(u, v, x, u.size(-1))
"""

LAYERS_4 = """
class SSMKernelDiag(nn.Module):
    backend = "cuda"

    def forward(self, v, x, L):
        if has_cuda_extension and self.backend == "cuda":
            log_vandermonde = log_vandermonde_cuda
        elif has_pykeops and self.backend in ("cuda", "keops"):
            log_vandermonde = log_vandermonde_keops
        else:
            log_vandermonde = log_vandermonde_naive
        return log_vandermonde(v, x, L)

    def forward_state(self, u, v, x):
        if has_pykeops and self.backend in ("cuda", "keops"):
            log_vandermonde_transpose = log_vandermonde_transpose_keops
        else:
            log_vandermonde_transpose = log_vandermonde_transpose_naive
        return log_vandermonde_transpose(u, v, x, u.size(-1))

class SSMKernelDPLR(SSMKernelDiag):
    def forward(self, v, z, w):
        if has_cuda_extension and self.backend == "cuda":
            cauchy_mult = cauchy_cuda
        elif has_pykeops and self.backend in ("cuda", "keops"):
            cauchy_mult = cauchy_keops
        else:
            cauchy_mult = cauchy_naive
        return cauchy_mult(v, z, w)
"""


def module_of(source: str, name: str = "standin") -> ModuleType:
    """A module of this name with the functions and classes of ``source``."""
    module = ModuleType(name)
    exec(HEAD + source, vars(module))
    return module


def fast(name: str) -> str:
    arguments = "u, v, x, L" if "transpose" in name else "v, x, L" if "vandermonde" in name else "v, z, w"
    return FAST.format(name=name, arguments=arguments + (", symmetric=True" if name == "cauchy_mult" else ""))


def official(release: str, extension: bool = False, keops: bool = False) -> ModuleType:
    """The file of a release whose layers call the functions, where the CUDA extension and KeOps are or are not.

    Args:
        release: ``"1"`` and ``"2"``, the standalone file; ``"1 package"``; ``"2.1"``, ``"3"``, standalone;
            ``"2.1 package"``, ``"3 package"``; ``"4"``.
    """
    number, _, package = release.partition(" ")
    if number == "4":
        return _official_4(extension, keops)
    flags = f"has_cauchy_extension, has_pykeops = {extension}, {keops}\n"
    source = flags + (fast("cauchy_mult") if extension else "")
    if number in ("1", "2"):
        module = module_of(source + OLD_LAYER.format(call="cauchy.cauchy_conj" if package else "cauchy_conj"))
        if package and keops:
            functional = "".join(fast(name) for name in ("cauchy", "cauchy_conj"))
            module.cauchy = module_of(functional + CAUCHY_PAIRS.format(name="cauchy_conj_slow", options=""), "cauchy")
        elif not package:
            exec(fast("cauchy_conj"), vars(module))
        return module
    fallback = "cauchy_slow" if number == "2.1" else "cauchy_naive"
    if keops:
        source += fast("cauchy_conj")
    elif package:
        source += CAUCHY_PAIRS.format(name=fallback, options=", conj=True")
    elif not extension:
        source += CAUCHY_HALF.format(name=fallback)
    source += LAYER.format(fallback=fallback)
    if number == "3":
        source += DIAGONAL_LAYER
        source += fast("log_vandermonde") + fast("log_vandermonde_transpose") if keops else VANDERMONDE.format(end="")
    return module_of(source)


def _official_4(extension: bool, keops: bool) -> ModuleType:
    source = f"has_cuda_extension, has_pykeops = {extension}, {keops}\n"
    source += CAUCHY_PAIRS.format(name="cauchy_naive", options="") + VANDERMONDE.format(end="_naive") + LAYERS_4
    names = ["cauchy_cuda", "log_vandermonde_cuda"] if extension else []
    names += ["cauchy_keops", "log_vandermonde_keops", "log_vandermonde_transpose_keops"] if keops else []
    return module_of(source + "".join(map(fast, names)))


def layer(module: ModuleType, kind: str) -> nn.Module:
    """The module's layer of this kind, ``"DPLR"`` or ``"Diag"``."""
    names = ("SSKernelNPLR", "SSMKernelDPLR") if kind == "DPLR" else ("SSKernelDiag", "SSMKernelDiag")
    return next(getattr(module, name) for name in names if hasattr(module, name))()
