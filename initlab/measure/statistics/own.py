"""initlab's own statistics beside the moments; taken when asked for."""

from __future__ import annotations

from torch import Tensor

from initlab.measure.attention import Attention
from initlab.measure.statistics import statistic


@statistic("abs_median")
def abs_median(x: Tensor) -> Tensor:
    """Median of |x|: unlike rms, hardly moved by a few large elements"""
    return x.abs().flatten().median()


@statistic("channel_rms", of=("activation", "grad"), per="channel")
def channel_rms(x: Tensor) -> Tensor:
    """sqrt(E[x^2]) of a channel over all tokens: far above the median, it is an outlier feature"""
    return x.float().square().mean(0).sqrt()


@statistic("sink", per="head")
def sink(attention: Attention) -> Tensor:
    """Mean weight that the attention pattern gives to the first token, over the sampled rows"""
    return attention.pattern[..., 0].mean((0, 2))
