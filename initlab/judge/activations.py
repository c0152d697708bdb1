"""Moments of an activation on Gaussian inputs: E f, E f^2 and E f(z1) f(z2)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from initlab.errors import ConfigError

Gamma = Callable[[float, float], float]

_ERF = np.vectorize(math.erf)


def _gelu_gamma(s: float, k: float) -> float:
    # D is the determinant of I + covariance; derived by writing Phi as an integral over one more Gaussian.
    # Kedia et al. 2403.09635 give the same.
    D = (1 + s) ** 2 - k * k
    angle = math.asin(k / (1 + s))
    return k * (0.25 + angle / (2 * math.pi)) + (s * s - k * k + 2 * k * k / (1 + s)) / (2 * math.pi * math.sqrt(D))


def _relu_gamma(s: float, k: float) -> float:
    # arc-cosine kernel of order 1, Cho & Saul 2009
    theta = math.acos(max(-1.0, min(1.0, k / s))) if s else 0.0
    return s * (math.sin(theta) + (math.pi - theta) * math.cos(theta)) / (2 * math.pi)


def _relu2_gamma(s: float, k: float) -> float:
    # arc-cosine kernel of order 2, Cho & Saul 2009
    theta = math.acos(max(-1.0, min(1.0, k / s))) if s else 0.0
    sine, cosine = math.sin(theta), math.cos(theta)
    return s * s * (3 * sine * cosine + (math.pi - theta) * (1 + 2 * cosine**2)) / (2 * math.pi)


def quadrature(f: Callable[[np.ndarray], np.ndarray]) -> Gamma:
    """Gamma of any smooth elementwise function, by Gauss-Hermite quadrature (64 x 64 points)."""
    z, w = np.polynomial.hermite_e.hermegauss(64)
    w = w / w.sum()

    def gamma(s: float, k: float) -> float:
        rho = k / s if s else 0.0
        rho = max(-1.0, min(1.0, rho))
        first = math.sqrt(s) * z
        second = math.sqrt(s) * (rho * z[:, None] + math.sqrt(1 - rho * rho) * z[None, :])
        return float(w @ (f(first) * (f(second) @ w)))

    return gamma


def gelu(x: np.ndarray) -> np.ndarray:
    """Exact GELU, x * Phi(x)."""
    return 0.5 * x * (1 + _ERF(x / math.sqrt(2)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """GPT-2's tanh approximation of GELU."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x)."""
    return x / (1 + np.exp(-x))


_GAMMAS: dict[str, Gamma] = {
    "gelu": _gelu_gamma,
    "gelu_tanh": quadrature(gelu_tanh),
    "relu": _relu_gamma,
    "relu2": _relu2_gamma,
    "silu": quadrature(silu),
}


def gamma(activation: str, s: float, k: float) -> float:
    """E f(z1) f(z2) for z1, z2 of variance s and covariance k; with k = s it is E f^2.

    Raises:
        ConfigError: unknown activation.
    """
    if activation not in _GAMMAS:
        raise ConfigError(f"no moments for activation {activation!r}; known: {', '.join(_GAMMAS)}")
    return _GAMMAS[activation](s, k)


def mean(activation: str, s: float) -> float:
    """E f(z) for z of variance s. Two independent inputs have E f f = (E f)^2, and f's mean is positive here."""
    return math.sqrt(max(gamma(activation, s, 0.0), 0.0))
