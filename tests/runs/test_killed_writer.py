"""SIGKILL at any moment of a write leaves the old or the new file, and nothing after the next start."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# A write flushes its file, before the renaming, and then the folder. The first writers wait to be killed in the first,
# the second, ... of these: in every one of three files once. The others are killed at any moment.
FLUSHES, KILLS = 6, 16

# One process that has torch imported forks the writers, so that all kills cost one start of Python. Every content is
# a long repetition of one number: a mixture of two contents or a piece of one cannot pass for either.
_SCRIPT = """
    import os, pathlib, random, signal, sys, time
    import numpy as np, torch
    from tllm_plugin.runs import atomic
    from tllm_plugin.runs.reading import load_torch, read_json, read_npz
    from tllm_plugin.runs.run_folder import RunFolder

    folder = RunFolder(sys.argv[1]).create()
    size = 30_000

    def write(number):
        atomic.write_json(folder.flags_json, {"schema": "tllm/t", "version": 1, "x": [number] * size})
        atomic.write_npz(folder.curves_npz, schema="tllm/t", version=1, x=np.full(size, number))
        atomic.save_torch(folder.state, torch.full((size,), number))

    def check():
        for values in (
            read_json(folder.flags_json, "t", 1)["x"],
            read_npz(folder.curves_npz, "t", 1)["x"].tolist(),
            load_torch(folder.state, "a state").tolist(),
        ):
            assert len(values) == size and len(set(values)) == 1, "a mixture"

    write(0)
    rng = random.Random(0)
    torn = 0
    flushes, kills = map(int, sys.argv[2:])
    for kill in range(kills):
        begun, begin = os.pipe()
        child = os.fork()
        if child == 0:
            fsync, done = os.fsync, [0]

            def flush(descriptor):
                if done[0] == kill < flushes:
                    os.write(begin, b"1")
                    time.sleep(600)
                # A slow disk, so that most kills fall between the first byte and the renaming.
                time.sleep(0.03)
                fsync(descriptor)
                done[0] += 1

            os.fsync = flush
            if kill >= flushes:
                os.write(begin, b"1")
            number = 1
            while True:
                write(number)
                number += 1
        os.close(begin)
        assert os.read(begun, 1), "the writer ended by itself"
        os.close(begun)
        if kill >= flushes:
            time.sleep(rng.uniform(0.005, 0.2))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        check()
        half_written = any(path.name.startswith(".") for path in folder.path.iterdir())
        assert half_written == (kill % 2 == 0) or kill >= flushes, "the kill did not fall where it should"
        torn += half_written
        folder.create()
        assert sorted(path.name for path in folder.path.iterdir()) == ["curves.npz", "flags.json", "state.pt"]
    print(torn)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_kills_during_writes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(_SCRIPT), str(tmp_path / "tllm"), str(FLUSHES), str(KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0, "no kill fell into a write, so that this shows nothing"
