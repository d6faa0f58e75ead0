import os
import tempfile

from tests.faults.told import pytest_terminal_summary as pytest_terminal_summary

# One thread each: the tests start several processes on few cores, and sums in one thread have one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# As a processor without instructions for bfloat16, so that `precision: auto` and all numbers are the same on any.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("SCALEKIT_CACHE", tempfile.mkdtemp(prefix="scalekit-"))
