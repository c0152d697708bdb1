"""Moments of an activation on Gaussian inputs: E f(z), and E f(z1) f(z2) for a correlated pair."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from initlab.errors import ConfigError

Array = NDArray[np.float64]
Gamma = Callable[[Array, Array, Array], Array]

_ERF = np.vectorize(math.erf, otypes=[float])
_TERMS = 32  # of the Hermite series; smooth activations need about 10 up to variance 3


def _gelu_gamma(s1: Array, s2: Array, k: Array) -> Array:
    # D is the determinant of I + covariance: Phi(z) is the probability that one more standard normal is below z
    D = (1 + s1) * (1 + s2) - k * k
    angle = np.arcsin(k / np.sqrt((1 + s1) * (1 + s2)))
    rest = s1 * s2 - k * k + k * k / (1 + s1) + k * k / (1 + s2)
    return k * (0.25 + angle / (2 * np.pi)) + rest / (2 * np.pi * np.sqrt(D))


def _relu_gamma(s1: Array, s2: Array, k: Array) -> Array:
    # arc-cosine kernel of order 1, Cho & Saul 2009
    theta = np.arccos(_correlation(s1, s2, k))
    return np.sqrt(s1 * s2) * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) / (2 * np.pi)


def _relu2_gamma(s1: Array, s2: Array, k: Array) -> Array:
    # arc-cosine kernel of order 2, Cho & Saul 2009
    theta = np.arccos(_correlation(s1, s2, k))
    sine, cosine = np.sin(theta), np.cos(theta)
    return s1 * s2 * (3 * sine * cosine + (np.pi - theta) * (1 + 2 * cosine**2)) / (2 * np.pi)


def hermite(f: Callable[[Array], Array]) -> Gamma:
    """Gamma of any smooth elementwise function: sum over n of a_n(s1) a_n(s2) rho^n, with Hermite coefficients a_n."""
    z, w = np.polynomial.hermite_e.hermegauss(128)
    # probabilists' Hermite polynomials, normalised: E h_m h_n = 1[m = n]
    basis = np.stack([np.polynomial.hermite_e.hermeval(z, row) for row in np.eye(_TERMS)])
    basis *= w / w.sum() / np.array([[math.sqrt(math.factorial(n))] for n in range(_TERMS)])

    def gamma(s1: Array, s2: Array, k: Array) -> Array:
        rho = _correlation(s1, s2, k)
        first, second = (np.tensordot(basis, f(np.sqrt(s) * z.reshape(-1, *([1] * s.ndim))), 1) for s in (s1, s2))
        out = np.zeros(np.broadcast_shapes(s1.shape, s2.shape, k.shape))
        for n in range(_TERMS - 1, -1, -1):  # Horner in rho
            out = out * rho + first[n] * second[n]
        return out

    return gamma


def _correlation(s1: Array, s2: Array, k: Array) -> Array:
    scale = np.sqrt(s1 * s2)
    return np.clip(np.divide(k, scale, out=np.zeros(np.broadcast_shapes(k.shape, scale.shape)), where=scale > 0), -1, 1)


def gelu(x: Array) -> Array:
    """Exact GELU, x * Phi(x)."""
    return np.asarray(0.5 * x * (1 + _ERF(x / math.sqrt(2))))


def gelu_tanh(x: Array) -> Array:
    """GPT-2's tanh approximation of GELU."""
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def silu(x: Array) -> Array:
    """x * sigmoid(x)."""
    return np.asarray(x / (1 + np.exp(-x)))


_GAMMAS: dict[str, Gamma] = {
    "gelu": _gelu_gamma,
    "gelu_tanh": hermite(gelu_tanh),
    "relu": _relu_gamma,
    "relu2": _relu2_gamma,
    "silu": hermite(silu),
}


def gamma(activation: str, s1: Array | float, s2: Array | float, k: Array | float) -> Array:
    """E f(z1) f(z2) for jointly Gaussian z1, z2 of variances s1, s2 and covariance k; arrays broadcast.

    With s1 = s2 = k it is E f^2.

    Raises:
        ConfigError: unknown activation.
    """
    if activation not in _GAMMAS:
        raise ConfigError(f"no moments for activation {activation!r}; known: {', '.join(_GAMMAS)}")
    return _GAMMAS[activation](*(np.asarray(value, dtype=float) for value in (s1, s2, k)))


def mean(activation: str, s: Array | float) -> Array:
    """E f(z) for z of variance s. Independent inputs have E f f = (E f)^2, and no activation here has E f < 0."""
    return np.sqrt(np.maximum(gamma(activation, s, s, 0.0), 0.0))
