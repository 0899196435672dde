import os
import sys

# Trainings side by side have more threads than the machine has cores: those that wait are to sleep, not to spin, which
# takes half of the time. Before torch is imported, here and in what the tests start.
# Not for the benchmarks.
if "pytest" in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
