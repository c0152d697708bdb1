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
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "mish": activations.mish,
    "elu": lambda x: np.where(x > 0, x, np.exp(x) - 1),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "identity": lambda x: x,
}
SLOPES = {
    "relu": lambda x: 1.0 * (x > 0),
    "relu2": lambda x: 2 * np.maximum(x, 0),
    "tanh": lambda x: 1 / np.cosh(x) ** 2,
    "softplus": FUNCTIONS["sigmoid"],
    "elu": lambda x: np.where(x > 0, 1, np.exp(np.minimum(x, 0))),
    "leaky_relu": lambda x: np.where(x > 0, 1, 0.01),
    "identity": np.ones_like,
    "gelu": lambda x: activations.gelu(x) / x + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi),
    "silu": lambda x: FUNCTIONS["sigmoid"](x) * (1 + x * (1 - FUNCTIONS["sigmoid"](x))),
}


def dense(f, s):
    """E f(z) by Simpson's rule on 200001 points a half line, so that a kink at 0 costs nothing."""
    x = np.linspace(0, 13, 200001)
    w = np.full(len(x), 2.0)
    w[1::2], w[0], w[-1] = 4, 1, 1
    w *= (x[1] - x[0]) / 3 * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    x[0] = 1e-12  # each half line has its own slope there
    return float(w @ f(math.sqrt(s) * x) + w @ f(-math.sqrt(s) * x))


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
    points = (
        2701 if name in ("relu", "leaky_relu") else 601
    )  # a kink costs the trapezoid rule digits, smooth functions nearly none
    expected = integrate(FUNCTIONS[name], s, rho * s, points)
    assert activations.moments(name, s, s, rho * s)[0] == pytest.approx(expected, rel=2e-5, abs=1e-9)


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
    assert activations.moments(name, s, s, s)[0] == pytest.approx(square, abs=6e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("s", [0.1536, 1 / 3, 1.0, 4.0])
def test_moments_of_one_input_against_dense_quadrature(name, s):
    f = FUNCTIONS[name]
    square, slope = activations.moments(name, s, s, s)
    assert activations.mean(name, s) == pytest.approx(dense(f, s), rel=1e-8, abs=1e-12)
    assert square == pytest.approx(dense(lambda x: f(x) ** 2, s), rel=1e-8)
    if name in SLOPES:
        assert slope == pytest.approx(dense(lambda x: SLOPES[name](x) ** 2, s), rel=1e-8)


@pytest.mark.parametrize(
    ("name", "s", "slope"),
    [
        ("gelu", 0.1536, 0.3247),
        ("gelu", 0.3072, 0.3705),
        ("gelu", 1 / 3, 0.3765),
        ("gelu", 1.0, 0.4559),
        ("gelu_tanh", 0.3072, 0.3704),
        ("silu", 1 / 3, 0.3131),
        ("silu", 1.0, 0.3795),
        ("relu", 0.7, 0.5),
        ("relu2", 0.7, 1.4),
    ],
)
def test_known_slopes(name, s, slope):
    assert activations.moments(name, s, s, s)[1] == pytest.approx(slope, abs=6e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("s1", "s2", "rho"), [(0.2, 0.3, 0.5), (1.0, 0.4, -0.3), (1.0, 1.0, 0.8)])
def test_slopes_are_the_derivative_of_gamma_by_the_covariance(name, s1, s2, rho):
    # Price's theorem: d E f(z1) f(z2) / dk = E f'(z1) f'(z2)
    k, h = rho * math.sqrt(s1 * s2), 1e-4
    above, below = (activations.moments(name, s1, s2, k + step)[0] for step in (h, -h))
    assert activations.moments(name, s1, s2, k)[1] == pytest.approx((above - below) / (2 * h), rel=1e-6)


def test_any_function_by_quadrature():
    rng = np.random.default_rng(0)
    s, k = rng.uniform(0.1, 2, 5), 0.3
    for name in ("gelu", "relu2", "leaky_relu", "identity"):
        by_name = activations.moments(name, s[:, None], s[None, :], k * np.sqrt(np.outer(s, s)))
        by_function = activations.moments(FUNCTIONS[name], s[:, None], s[None, :], k * np.sqrt(np.outer(s, s)))
        np.testing.assert_allclose(by_function, by_name, rtol=1e-8)
        np.testing.assert_allclose(activations.mean(FUNCTIONS[name], s), activations.mean(name, s), atol=1e-10)
    # one pair at a time: as many variances as covariances
    pairs = activations.moments(activations.gelu, s, s[::-1], k * np.sqrt(s * s[::-1]))
    np.testing.assert_allclose(pairs, activations.moments("gelu", s, s[::-1], k * np.sqrt(s * s[::-1])), rtol=1e-9)


def test_a_mean_may_be_negative_or_zero():
    assert activations.mean(lambda x: -np.maximum(x, 0), 1.0) == pytest.approx(-1 / math.sqrt(2 * math.pi), rel=1e-9)
    assert activations.mean("tanh", 2.0) == pytest.approx(0, abs=1e-14)
    assert activations.moments("tanh", 1.0, 1.0, 0.0)[0] == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in ("sigmoid", "softplus")])
def test_zero_variance_gives_zero(name):
    assert activations.moments(name, 0.0, 0.0, 0.0)[0] == 0.0


def test_zero_variance_gives_the_value_at_zero():
    assert activations.moments("sigmoid", 0.0, 0.0, 0.0)[0] == pytest.approx(0.25)
    assert activations.mean("softplus", 0.0) == pytest.approx(math.log(2))


def test_unknown_activation_is_named():
    with pytest.raises(ConfigError, match="no moments for activation 'swoosh'; known: gelu"):
        activations.moments("swoosh", 1.0, 1.0, 0.0)[0]


def test_a_mean_of_no_name_is_refused_too():
    with pytest.raises(
        ConfigError, match=r"no moments for activation 'swoosh'; known: gelu, .*, or a function of a num"
    ):
        activations.mean("swoosh", 1.0)
    for bad in (5, None, [activations.gelu]):
        with pytest.raises(
            ConfigError, match=r"^activation is .*; expected one of gelu, .*identity, or a function of a"
        ):
            activations.check(bad)
    activations.check(activations.gelu)
    activations.check("relu")


def boom(x):
    raise ValueError("no")


def undefined_beyond(x):
    return np.where(np.abs(x) > 3, math.inf, x)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (boom, "activation boom raised ValueError: no; expected an elementwise function of a float64 array"),
        (lambda x: exit(1), "activation <lambda> raised SystemExit: 1; expected"),
        (
            lambda x: x.sum(-1),
            r"activation <lambda> gives shape \(1,\) for \(1, 288\); expected an elementwise function",
        ),
        (
            undefined_beyond,
            "activation undefined_beyond gives values that aren't finite; expected .* finite from -12 to 12",
        ),
    ],
)
def test_a_function_that_is_no_activation_is_said_to_be_none(function, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        activations.moments(function, 1.0, 1.0, 0.5)


def test_a_function_that_is_no_function_by_name_has_its_repr():
    class Shifted:
        def __call__(self, x):
            return x + math.nan

        def __repr__(self):
            return "Shifted()"

    with pytest.raises(ConfigError, match=r"^activation Shifted\(\) gives values"):
        activations.moments(Shifted(), 1.0, 1.0, 0.5)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "relu", "relu2", "leaky_relu", "identity", "tanh"])
@pytest.mark.parametrize(
    ("s1", "s2", "k"),
    [
        ((3, 1), (1, 4), (3, 4)),
        ((3, 1), (1, 4), ()),
        ((1, 4), (3, 1), (3, 4)),
        ((3,), (3,), (3,)),
        ((2, 3), (2, 3), (2, 3)),
        ((3,), (), ()),
        ((), (3,), (3,)),
        ((2, 1, 3), (3,), (2, 2, 3)),
        ((), (), (5,)),
    ],
)
def test_arrays_broadcast_to_what_pairs_give_one_by_one(name, s1, s2, k):
    rng = np.random.default_rng(0)
    first, second = rng.uniform(0.5, 2, s1), rng.uniform(0.5, 2, s2)
    covariance = rng.uniform(-0.4, 0.4, k)
    found = activations.moments(name, first, second, covariance)
    shape = np.broadcast_shapes(s1, s2, k)
    assert [each.shape for each in found] == [shape, shape]
    each = [np.broadcast_to(values, shape).ravel() for values in (first, second, covariance)]
    alone = np.array([activations.moments(name, *pair) for pair in zip(*each, strict=True)]).T
    np.testing.assert_allclose([values.ravel() for values in found], alone, rtol=1e-9, atol=1e-12)


def test_a_covariance_that_rounding_makes_too_large_counts_as_the_largest():
    for name in ("relu", "relu2", "leaky_relu", "silu"):
        exact = activations.moments(name, 0.7, 0.7, 0.7)
        np.testing.assert_allclose(activations.moments(name, 0.7, 0.7, 0.7 * (1 + 1e-9)), exact, rtol=1e-7)
        assert np.isfinite(activations.moments(name, 0.7, 0.7, -0.7 * (1 + 1e-9))).all()
    for name in ("relu", "tanh", "silu"):  # of a variance of 0 there is no correlation
        assert activations.moments(name, 0.0, 1.0, 0.0)[0] == pytest.approx(0.0, abs=1e-12)


def test_a_function_is_asked_again_when_its_state_may_have_changed():
    class Scaled:
        by = 1.0

        def __call__(self, x):
            return self.by * x

    scaled = Scaled()
    assert activations.moments(scaled, 1.0, 1.0, 0.5)[0] == pytest.approx(0.5)
    scaled.by = 2.0
    assert activations.moments(scaled, 1.0, 1.0, 0.5)[0] == pytest.approx(2.0)


def test_means_keep_the_shape_of_the_variances():
    s = np.array([[0.5, 1.0], [2.0, 4.0]])
    for name in FUNCTIONS:
        found = activations.mean(name, s)
        assert found.shape == (2, 2)
        assert found[1, 0] == pytest.approx(float(activations.mean(name, 2.0)), abs=1e-14)
    assert activations.mean(np.cos, 2.0) == pytest.approx(math.exp(-1), rel=1e-9)


def test_a_kink_costs_no_more_than_is_said():
    for rho in (0.5, 0.9, 0.99):
        both, slopes = activations.moments(FUNCTIONS["relu"], 1.0, 1.0, rho)
        known, known_slopes = activations.moments("relu", 1.0, 1.0, rho)
        assert both == pytest.approx(known, abs=2e-5)
        assert slopes == pytest.approx(known_slopes, abs=6e-3)
    for f in (np.tanh, activations.silu, activations.gelu):  # smooth: to 1e-9 between 0 and 1, too
        known = integrate(f, 1.0, 0.7, 601)
        assert activations.moments(f, 1.0, 1.0, 0.7)[0] == pytest.approx(known, rel=1e-8)
