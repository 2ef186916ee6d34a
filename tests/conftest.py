"""Settings that must be in the environment before torch is imported, here and in every process that a test starts."""

import os

# Tiny tensors gain nothing from 64 threads and lose much; and the same count everywhere gives the same last bits.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "2")
