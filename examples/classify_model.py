"""The classifier of classify.py, and S4D by the textbook formula, for a time before and after."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from classify_data import Series
from s4_fast import S4DLayer, SSMBlock
from s4_fast.bench import direct
from s4_fast.layers import padding
from s4_fast.layers.padding import Lengths

LAYERS = ("s4d", "s4", "official")


class Classifier(nn.Module):
    """(batch, length, channels) and lengths -> (batch, classes).

    The values and their differences go through bidirectional blocks; the head sees the mean over a series and the
    largest value of every feature. A mean tells how much of something there is, a maximum whether there is any.

    Args:
        channels, classes: sizes of the input and the output.
        d_model, n_layers, d_state, dropout: as of :class:`s4_fast.S4SequenceModel`.
        layer: ``"s4d"``, ``"s4"``, or ``"official"``: the same numbers as ``"s4d"`` by :class:`OfficialS4D`.
        dt_min, dt_max: the range of the first step sizes. A feature remembers for about 2 / dt steps: by default from 4
            to 200, and the layers add up.
    """

    spread: Tensor

    def __init__(
        self,
        channels: int,
        classes: int,
        d_model: int,
        n_layers: int,
        d_state: int,
        dropout: float,
        layer: str = "s4d",
        dt_min: float = 0.01,
        dt_max: float = 0.5,
    ) -> None:
        super().__init__()
        self.register_buffer("spread", torch.ones(channels))
        self.encoder = nn.Linear(2 * channels, d_model)
        options = {"dt_min": dt_min, "dt_max": dt_max, "bidirectional": True}
        kind = "s4d" if layer == "official" else layer
        self.blocks = nn.ModuleList(SSMBlock(d_model, d_state, dropout, layer=kind, **options) for _ in range(n_layers))
        if layer == "official":
            for block in self.blocks:
                block.layer = OfficialS4D(block.layer)
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * d_model, classes)

    def scale_differences(self, series: Series) -> None:
        """Bring the differences of these series to a spread of 1, as their values have."""
        inside = torch.arange(1, series.x.shape[1], device=series.x.device) < series.lengths[:, None]
        self.spread.copy_(series.x.diff(dim=1)[inside].std(0).clamp(min=1e-6))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        inside = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]
        padded = None if bool(inside.all()) else lengths
        differences = x.diff(dim=1, prepend=x[:, :1]) / self.spread
        x = self.encoder(torch.cat([x, differences], -1))
        for block in self.blocks:
            x = block(x, lengths=padded)
        x = self.norm(x).float()
        mean = x.masked_fill(~inside, 0).sum(1) / lengths[:, None]
        largest = x.masked_fill(~inside, -torch.inf).amax(1)
        return self.head(self.dropout(torch.cat([mean, largest], -1)))


class OfficialS4D(nn.Module):
    """An S4D layer by what S4 code does without compiled kernels: every term of the kernel's sum, FFTs of length 2L.

    It takes over the parameters of ``layer``, under the same names.
    """

    def __init__(self, layer: S4DLayer) -> None:
        super().__init__()
        self.kernel, self.D, self.bidirectional = layer.kernel, layer.D, layer.bidirectional

    def forward(
        self, u: Tensor, state: None = None, *, lengths: Lengths | None = None, return_state: bool = False
    ) -> Tensor:
        rows = padding.rows(lengths, u)
        signal = (u if rows is None else rows.cut(u)).mT.float()  # autocast has no FFT in half precision
        ssm, L = self.kernel, u.shape[1]
        A, dt = ssm.A(), ssm.dt()
        dt_A = dt * A
        C = torch.view_as_complex(ssm.C) * ssm.B_vector() * (torch.exp(dt_A) - 1) / A
        k, *others = (direct.log_vandermonde(c, dt_A, L) for c in C)
        y = direct.fft_conv(signal, k, self.D)
        for reverse in others:
            # The second kernel meets each sample one later.
            y = y + direct.fft_conv(signal.flip(-1), pad(reverse, (1, -1))).flip(-1)
        y = y.mT.to(u.dtype)
        return y if rows is None else rows.cut(y)
