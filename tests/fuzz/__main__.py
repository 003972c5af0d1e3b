"""The long part of the fuzzing: python -m tests.fuzz --inputs 100000 --seed 1 --output studies/trust/fuzz.json."""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
