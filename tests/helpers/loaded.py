"""What commands of the project load: imported once, in the process from which tests fork them."""

import gc
import importlib
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a pool of threads would not survive a fork

for name in ("hydra._internal.hydra", "torch", "fogzo.training.launch", "matplotlib.figure", "scipy.stats", "optuna"):
    importlib.import_module(name)
importlib.import_module("torch").set_num_threads(1)
importlib.import_module("fogzo.data").mnist5k()  # parsed once
gc.freeze()  # else a collection in a forked process would copy all of it
