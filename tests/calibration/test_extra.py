"""What calibrated quantization is computed with."""

from __future__ import annotations

import json
import subprocess
import sys

CODE = """
import json
from octavo.calibration.extra import one_blas_thread
with one_blas_thread():
    import scipy.linalg
    from threadpoolctl import threadpool_info
    print(json.dumps([part["num_threads"] for part in threadpool_info() if part["user_api"] == "blas"]))
"""


def test_every_blas_has_one_thread_from_the_first_run_on() -> None:
    """scipy brings a BLAS of its own. Loaded within the bound, it would add in the order of its threads: other bytes for other machines."""
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    threads = json.loads(found.stdout)
    assert len(threads) >= 1 and set(threads) == {1}
