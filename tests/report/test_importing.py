"""seaborn is imported without most of scipy, and is whole all the same."""

import subprocess
import sys

import pytest

HEAVY = "{'scipy.stats', 'scipy.cluster', 'scipy.optimize'} & set(sys.modules)"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", f"import sys\n{code}"], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout


def test_the_parts_of_scipy_that_no_figure_uses_are_not_imported():
    assert run(f"from initlab.report.importing import seaborn; seaborn(); print({HEAVY} or 'none')") == "none\n"
    # the check can fail
    assert run(f"import seaborn; print({HEAVY} or 'none')") != "none\n"


def test_scipy_is_itself_again_afterwards():
    run(
        "from initlab.report.importing import seaborn; seaborn()\n"
        "import scipy, scipy.stats, scipy.cluster.hierarchy\n"
        "assert isinstance(scipy.stats.gaussian_kde, type) and scipy.stats is sys.modules['scipy.stats']\n"
        "assert scipy.stats.norm.cdf(0) == 0.5 and scipy.cluster.hierarchy.linkage([[0.0], [1.0]]).shape == (1, 4)"
    )


@pytest.mark.parametrize("drawn", ["kdeplot(x=np.arange(9.0), cumulative=True)", "clustermap(np.eye(4))"])
def test_a_user_of_seaborn_beside_it_finds_everything(drawn):
    run(
        "import matplotlib; matplotlib.use('agg'); import numpy as np\n"
        f"from initlab.report.importing import seaborn; seaborn().{drawn}"
    )


def test_a_thread_that_imports_scipy_meanwhile_gets_it():
    run(
        "from initlab.report.importing import _StandIn\n"
        "sys.modules['scipy.stats'] = _StandIn('scipy.stats')\n"
        "from scipy.stats import gaussian_kde, norm\n"
        "assert norm.cdf(0) == 0.5 and gaussian_kde([0.0, 1.0, 3.0]).n == 3"
    )
