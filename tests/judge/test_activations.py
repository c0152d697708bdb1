"""Moments of activations against brute-force integration over a correlated pair of Gaussians."""

import math

import numpy as np
import pytest

from initlab.errors import ConfigError
from initlab.judge import activations

FUNCTIONS = {
    "gelu": activations.gelu,
    "gelu_tanh": activations.gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "silu": activations.silu,
}


def integrate(f, s, k, points):
    """E f(z1) f(z2) by the trapezoid rule on a 2D grid, in the rotated coordinates where the pair is independent."""
    z = np.linspace(-9, 9, points)
    w = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    rho = k / s
    first = math.sqrt(s) * z[:, None]
    second = math.sqrt(s) * (rho * z[:, None] + math.sqrt(1 - rho * rho) * z[None, :])
    return float(w @ (f(first) * f(second)) @ w)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("s", "rho"), [(0.15, 0.0), (0.15, 0.4), (1.0, 0.9), (3.0, -0.5)])
def test_gamma_against_integration(name, s, rho):
    points = 2701 if name == "relu" else 601  # a kink costs the trapezoid rule digits, smooth functions nearly none
    expected = integrate(FUNCTIONS[name], s, rho * s, points)
    assert activations.gamma(name, s, s, rho * s) == pytest.approx(expected, rel=2e-5, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "s", "mean", "square"),
    [
        ("gelu", 0.1536, 0.05705, 0.04736),
        ("gelu", 0.3072, 0.10719, 0.10648),
        ("gelu", 1.0, 0.28209, 0.42522),
        ("gelu_tanh", 0.3072, 0.10716, 0.10646),
        ("silu", 1 / 3, 0.07733, 0.09977),
        ("silu", 1.0, 0.20662, 0.35578),
        ("relu", 2.0, math.sqrt(2 / (2 * math.pi)), 1.0),
        ("relu2", 0.5, 0.25, 0.375),
    ],
)
def test_known_moments(name, s, mean, square):
    assert activations.mean(name, s) == pytest.approx(mean, abs=6e-6)
    assert activations.gamma(name, s, s, s) == pytest.approx(square, abs=6e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_zero_variance_gives_zero(name):
    assert activations.gamma(name, 0.0, 0.0, 0.0) == 0.0


def test_unknown_activation_is_named():
    with pytest.raises(ConfigError, match="no moments for activation 'tanh'; known: gelu"):
        activations.gamma("tanh", 1.0, 1.0, 0.0)
