"""Set before any test imports torch: one thread a test process, since the processes share the cores."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# what makes synthetic runs and models is used from several folders of tests
sys.path.append(str(Path(__file__).parent / "helpers"))
