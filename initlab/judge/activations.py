"""Moments of an activation on Gaussian inputs: E f(z), and E f(z1) f(z2) and E f'(z1) f'(z2) for a correlated pair.

Closed forms where they exist; a Hermite series over a quadrature for every other elementwise function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from initlab.errors import ConfigError

Array = NDArray[np.float64]
Function = Callable[[Array], Array]
Activation = str | Function
# variances s1, s2 and covariance k of the pair -> E f f, E f' f'
Moments = Callable[[Array, Array, Array], tuple[Array, Array]]

_ERF = np.vectorize(math.erf, otypes=[float])
_TERMS = 64  # of the Hermite series
_REACH, _PANELS, _POINTS = 12, 24, 12  # standard deviations, panels of the quadrature, and nodes in each


def gelu(x: Array) -> Array:
    """Exact GELU, x * Phi(x)."""
    return np.asarray(0.5 * x * (1 + _ERF(x / math.sqrt(2))))


def gelu_tanh(x: Array) -> Array:
    """GPT-2's tanh approximation of GELU."""
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))))


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x)."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def silu(x: Array) -> Array:
    """x * sigmoid(x)."""
    return np.asarray(x * sigmoid(x))


def softplus(x: Array) -> Array:
    """ln(1 + e^x)."""
    return np.asarray(np.logaddexp(0.0, x))


def mish(x: Array) -> Array:
    """x * tanh(softplus(x))."""
    return np.asarray(x * np.tanh(softplus(x)))


def elu(x: Array) -> Array:
    """x above 0, e^x - 1 below."""
    return np.asarray(np.where(x > 0, x, np.expm1(np.minimum(x, 0))))


def _gelu(s1: Array, s2: Array, k: Array) -> tuple[Array, Array]:
    # D is the determinant of I + covariance: Phi(z) is the probability that one more standard normal is below z
    product, square = (1 + s1) * (1 + s2), k * k
    D = product - square
    root = np.sqrt(D)
    below = 0.25 + np.arcsin(k / np.sqrt(product)) / (2 * np.pi)
    slopes = 1 / (1 + s1) + 1 / (1 + s2)
    both = k * below + (s1 * s2 - square + square * slopes) / (2 * np.pi * root)
    return both, below + k * (slopes + 1 / D) / (2 * np.pi * root)


def _relu(s1: Array, s2: Array, k: Array) -> tuple[Array, Array]:
    # arc-cosine kernels of order 1 and 0, Cho & Saul 2009
    theta = np.arccos(_correlation(s1, s2, k))
    both = np.sqrt(s1 * s2) * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) / (2 * np.pi)
    return both, (np.pi - theta) / (2 * np.pi)


def _relu2(s1: Array, s2: Array, k: Array) -> tuple[Array, Array]:
    # arc-cosine kernel of order 2, Cho & Saul 2009; the derivative is 2 relu
    theta = np.arccos(_correlation(s1, s2, k))
    sine, cosine = np.sin(theta), np.cos(theta)
    both = s1 * s2 * (3 * sine * cosine + (np.pi - theta) * (1 + 2 * cosine**2)) / (2 * np.pi)
    return both, 4 * _relu(s1, s2, k)[0]


def _leaky_relu(s1: Array, s2: Array, k: Array) -> tuple[Array, Array]:
    # a x + (1 - a) relu(x), with E x relu(y) = k / 2
    a = 0.01
    both, slopes = _relu(s1, s2, k)
    return (a * a + a * (1 - a)) * k + (1 - a) ** 2 * both, a * a + a * (1 - a) + (1 - a) ** 2 * slopes


def _identity(s1: Array, s2: Array, k: Array) -> tuple[Array, Array]:
    shape = np.broadcast_shapes(s1.shape, s2.shape, k.shape)
    return np.broadcast_to(k, shape).copy(), np.ones(shape)


@cache
def _quadrature() -> tuple[Array, Array, Array]:
    """Nodes and weights for E over a standard normal, and the first normalised Hermite polynomials at the nodes.

    Gauss-Legendre on panels: nearly every activation has its kink, if any, at 0, where two panels meet.
    """
    node, weight = np.polynomial.legendre.leggauss(_POINTS)
    edges = np.linspace(-_REACH, _REACH, _PANELS + 1)
    half = (edges[1] - edges[0]) / 2
    z = (edges[:-1, None] + half + half * node).ravel()
    w = np.tile(half * weight, _PANELS) * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    basis = [np.ones_like(z), z]  # E h_m h_n = 1[m = n]
    for n in range(1, _TERMS - 1):
        basis.append((z * basis[n] - math.sqrt(n) * basis[n - 1]) / math.sqrt(n + 1))
    return z, w, np.stack(basis)


def hermite(f: Function) -> Moments:
    """Moments of any elementwise function f.

    E f f = sum over n of a_n(s1) a_n(s2) rho^n, with the Hermite coefficients a_n of f(sqrt(s) z). What is left of
    E f f at rho = 1 after the last term counts with the next power of rho, so that E f^2 and E f'^2 are those of the
    quadrature: 1e-9 for smooth functions and for those with a kink at 0, 1e-4 for kinks elsewhere. Between, smooth
    functions keep that; a kink in f costs E f f up to 2e-5 and E f' f' up to 6e-3 close to rho = 1 (of relu, 0.99).
    """

    @lru_cache(maxsize=1)  # a block asks for one and the same spread four times; no cache for all: f may have a state
    def at_nodes(s: bytes) -> tuple[Array, Array]:
        return _at_nodes(f, np.frombuffer(s))

    def moments(s1: Array, s2: Array, k: Array) -> tuple[Array, Array]:
        rho = _correlation(s1, s2, k)
        (first, first_slope), (second, second_slope) = (at_nodes(s.tobytes()) for s in (s1, s2))
        return _series(first, second, s1, s2, rho), _series(first_slope, second_slope, s1, s2, rho)

    return moments


def _at_nodes(f: Function, s: Array) -> tuple[Array, Array]:
    """f and f' at sqrt(s) z, (len(s), nodes). The derivative is a difference of fourth order."""
    z, _, _ = _quadrature()
    root = np.sqrt(s)[:, None]
    h = 1e-4 * np.where(root > 0, root, 1.0)  # far below the distance of any node to 0
    x = root * z
    name = getattr(f, "__name__", repr(f))
    try:
        with np.errstate(invalid="ignore"):  # ∞ − ∞ is said below
            near, far = f(x + h) - f(x - h), f(x + 2 * h) - f(x - 2 * h)
            values, slopes = np.asarray(f(x), dtype=float), np.asarray((8 * near - far) / (12 * h))
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"activation {name} raised {type(error).__name__}: {error}; expected an elementwise function of a float64 "
            "array"
        ) from error
    if values.shape != x.shape or not (np.isfinite(values).all() and np.isfinite(slopes).all()):
        found = "values that aren't finite" if values.shape == x.shape else f"shape {values.shape} for {x.shape}"
        raise ConfigError(
            f"activation {name} gives {found}; expected an elementwise function of a "
            f"float64 array that is finite from {x.min():.3g} to {x.max():.3g}"
        )
    return values, slopes


def _series(first: Array, second: Array, s1: Array, s2: Array, rho: Array) -> Array:
    _, w, basis = _quadrature()
    a, b = first @ (w * basis).T, second @ (w * basis).T  # (points, terms)
    sizes = np.abs(a).max(0) * np.abs(b).max(0)
    used = 1 + int(np.flatnonzero(sizes >= 1e-15 * sizes.max())[-1])  # smooth functions need about 20
    a, b = a[:, :used], b[:, :used]
    if s1.size == s2.size == rho.size:  # pair by pair
        left = ((first * w * second).sum(-1) - (a * b).sum(-1)).reshape(rho.shape)
        terms = [(a[:, n] * b[:, n]).reshape(rho.shape) for n in range(used)]
    else:
        left = _outer(first * w, second, s1, s2) - _outer(a, b, s1, s2)
        terms = [a[:, n].reshape(s1.shape) * b[:, n].reshape(s2.shape) for n in range(used)]
    out = np.broadcast_to(left, np.broadcast_shapes(left.shape, rho.shape)).copy()
    for term in reversed(terms):  # Horner in rho
        out *= rho
        out += term
    return out


def _outer(a: Array, b: Array, s1: Array, s2: Array) -> Array:
    """Inner products of the rows of a and b, every pair that s1 and s2 broadcast to."""
    if s1.shape == (len(a), 1) and s2.shape == (1, len(b)):
        return np.asarray(a @ b.T)
    shape = np.broadcast_shapes(s1.shape, s2.shape)
    left = np.broadcast_to(np.arange(s1.size).reshape(s1.shape), shape)
    right = np.broadcast_to(np.arange(s2.size).reshape(s2.shape), shape)
    return np.asarray((a @ b.T)[left, right])


def _correlation(s1: Array, s2: Array, k: Array) -> Array:
    scale = np.sqrt(s1 * s2)
    return np.clip(np.divide(k, scale, out=np.zeros(np.broadcast_shapes(k.shape, scale.shape)), where=scale > 0), -1, 1)


_MOMENTS: dict[str, Moments] = {
    "gelu": _gelu,
    "gelu_tanh": hermite(gelu_tanh),
    "relu": _relu,
    "relu2": _relu2,
    "silu": hermite(silu),
    "tanh": hermite(np.tanh),
    "sigmoid": hermite(sigmoid),
    "softplus": hermite(softplus),
    "mish": hermite(mish),
    "elu": hermite(elu),
    "leaky_relu": _leaky_relu,
    "identity": _identity,
}
_MEANS: dict[str, Function] = {
    "gelu": lambda s: s / np.sqrt(2 * np.pi * (1 + s)),
    "relu": lambda s: np.sqrt(s / (2 * np.pi)),
    "relu2": lambda s: s / 2,
    "leaky_relu": lambda s: 0.99 * np.sqrt(s / (2 * np.pi)),
    "identity": np.zeros_like,
}
_FUNCTIONS: dict[str, Function] = {
    "gelu_tanh": gelu_tanh,
    "silu": silu,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "softplus": softplus,
    "mish": mish,
    "elu": elu,
}
NAMES = tuple(_MOMENTS)


def check(activation: Activation) -> None:
    """Raises ConfigError on a name that has no moments."""
    if isinstance(activation, str) and activation not in _MOMENTS:
        raise ConfigError(
            f"no moments for activation {activation!r}; known: {', '.join(_MOMENTS)}, or a function of a numpy array"
        )
    if not isinstance(activation, str) and not callable(activation):
        raise ConfigError(
            f"activation is {activation!r:.80}; expected one of {', '.join(_MOMENTS)}, or a function of a numpy array"
        )


def moments(activation: Activation, s1: Array | float, s2: Array | float, k: Array | float) -> tuple[Array, Array]:
    """Compute E f(z1) f(z2) and E f'(z1) f'(z2) for jointly Gaussian z1, z2 of variances s1, s2 and covariance k.

    Args:
        activation: a name, or an elementwise function of a float64 array.
        s1: variance of z1; the three arrays broadcast.
        s2: variance of z2.
        k: their covariance. With s1 = s2 = k it is E f^2 and E f'^2.

    Raises:
        ConfigError: unknown activation, or a function that isn't elementwise or not finite.
    """
    check(activation)
    found = _MOMENTS[activation] if isinstance(activation, str) else hermite(activation)
    return found(*(np.asarray(value, dtype=float) for value in (s1, s2, k)))


def mean(activation: Activation, s: Array | float) -> Array:
    """E f(z) for z of variance s."""
    check(activation)
    s = np.asarray(s, dtype=float)
    if isinstance(activation, str) and activation in _MEANS:
        return np.asarray(_MEANS[activation](s))
    f = _FUNCTIONS[activation] if isinstance(activation, str) else activation
    z, w, _ = _quadrature()
    return np.asarray(f(np.sqrt(s)[..., None] * z) @ w)
