import os
import sys
import tempfile

# Trainings side by side have more threads than the machine has cores: those that wait are to sleep, not to spin, which
# takes half of the time. Before torch is imported, here and in what the tests start.
# Not for the benchmarks.
if "pytest" in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # What the program remembers of this machine is not to be the user's.
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="resnet-tests-state-")
