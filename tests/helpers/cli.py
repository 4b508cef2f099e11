"""Commands of the project, without the seconds that an interpreter takes to load its libraries.

``run_script`` runs one in this process.  ``Command`` starts a process of its own, with its own output, folder and
signals, forked from one that has the libraries loaded: one such server for each test process.
"""

import atexit
import functools
import importlib
import logging
import multiprocessing
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import warnings
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
STARTED = []  # commands of the test that runs
MODULES = {"hydra-core": "hydra", "pillow": "PIL", "pyyaml": "yaml", "markdown-it-py": "markdown_it"}


def run_script(script, *words):
    """Run ``python SCRIPT WORDS`` here, with Hydra and logging as they were afterwards; returns the exit code."""
    from hydra.core.global_hydra import GlobalHydra

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", [script, *words])
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            return stop.code or 0
        finally:
            GlobalHydra.instance().clear()
            root.handlers[:], root.level = handlers, level
    return 0


@functools.cache
def server():
    """The way to processes that ``helpers.loaded`` was imported in."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.loaded"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        multiprocessing.forkserver.ensure_running()
    return context


class Command:
    """``python SCRIPT WORDS``, started, as the leader of a process group.

    What it prints goes to files, from which ``out`` and ``err`` read all that there is so far.

    Args:
        env: added to the environment.
        loads: modules to import first.
        ranks: how many processes of one group carry it out, as under torchrun.
        strict: warnings are errors.
    """

    def __init__(self, script, *words, cwd=ROOT, env=(), loads=(), ranks=0, strict=False):
        self._files = [Path(tempfile.mkstemp(suffix=suffix)[1]) for suffix in (".out", ".err")]
        told = ([str(script), *map(str, words)], str(cwd), os.environ | dict(env), self._files, loads, ranks, strict)
        self._process = server().Process(target=_carry_out, args=told)
        self._process.start()
        self.pid = self._process.pid
        STARTED.append(self)

    @property
    def out(self):
        return self._files[0].read_text(encoding="utf-8")

    @property
    def err(self):
        return self._files[1].read_text(encoding="utf-8")

    def poll(self):
        """The exit code, the negative of a signal's number, or None while it runs."""
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self, timeout=200):
        """Wait for its end; returns its exit code and what it printed and complained, as of a finished subprocess."""
        self._process.join(timeout)
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            pytest.fail(f"no end after {timeout} s: {self.out[-2000:]}{self.err[-2000:]}")
        return SimpleNamespace(returncode=self.poll(), stdout=self.out, stderr=self.err)

    def wait_until(self, condition, timeout=200):
        """Wait until ``condition()``, or its end."""
        deadline = time.monotonic() + timeout
        while self.poll() is None and not condition():
            assert time.monotonic() < deadline, self.err
            time.sleep(0.005)

    def wait_for_its_processes(self, timeout=90):
        """Wait until none is left of those that it started; they are killed when the time is over."""
        deadline = time.monotonic() + timeout
        with suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(self.pid, 0)
                time.sleep(0.05)
            os.killpg(self.pid, signal.SIGKILL)
            pytest.fail("a process that it started goes on without it")

    def end(self):
        """Kill what is left of it and of the processes that it started, and remove what they printed."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._process.is_alive():  # killed a moment ago, or not yet the leader of its group
            self._process.kill()
            self._process.join()
        for file in self._files:
            file.unlink(missing_ok=True)


def run(script, *words, **options):
    """Carry ``python SCRIPT WORDS`` out in a process of its own, to its end."""
    return Command(script, *words, **options).wait()


def _carry_out(words, cwd, env, files, loads, ranks, strict):
    os.setsid()
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    tempfile.tempdir = None  # TMPDIR may be another one
    sys.argv, script = words, str(Path(words[0]).resolve())
    sys.path.insert(0, str(Path(script).parent))
    for module in loads:
        importlib.import_module(module)
    if ranks:
        _become_a_rank(ranks)
    if strict:
        warnings.simplefilter("error")
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # processes of multiprocessing end without


def _become_a_rank(count):
    """Go on as ``count`` processes; this one waits for them, and ends them when one has failed, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = []
    for rank in map(str, range(count)):
        if not (pid := os.fork()):
            os.environ.update(place, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count))
            return
        ranks.append(pid)
    failed = False
    while ranks:
        pid, status = os.wait()
        ranks.remove(pid)
        failed = failed or bool(status)
        for other in ranks if status else ():
            os.kill(other, signal.SIGTERM)
    sys.exit(failed)


def run_alone(code, cwd=ROOT):
    """Run ``code`` by an interpreter of its own that finds nothing of the extras, as where torch alone is installed."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = [line for extra in ("train", "evidence", "export", "hf") for line in extras[extra]]
    names = [re.match(r"[\w-]+", line)[0] for line in lines]
    absent = {MODULES.get(name, name.replace("-", "_")) for name in names} | {"omegaconf"}
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({sorted(absent)}))\n"
    command = [sys.executable, "-W", "ignore", "-c", blocked + code]  # torch warns where numpy is not
    return subprocess.run(command, cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
