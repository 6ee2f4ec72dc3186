"""What depends on how a process of jax was started: nothing compiled yet, or 64-bit types enabled."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable

import jax
import numpy as np
import pytest

import plena_jax as pj
from plena_jax import MachineState
from tests.instructions.machine_helpers import section_11
from tests.random_programs import random_program

_ENGINES = ("architectural", "resolved")
#: What V_TOPK computes is loaded, so that the integer machine waits for the datapath.
_ROUTED = "V_TOPK gp1, gp1, gp1, 0\nS_LD_INT gp2, gp0, 1\nV_ADD_VV gp0, gp0, gp0"


def _new_compilations(engine: str) -> list[int]:
    """Compilations of first runs after ``prepare``: donated ones and others."""
    found: list[str] = []
    listener = lambda name, duration, **more: found.append(name) if "backend_compile" in name else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    counts = []
    for size, donate in ((50, True), (51, False)):
        config = section_11(vector_sram_size=size)
        job = random_program(config, 3)
        programs = [job.program, pj.assemble(_ROUTED)] if engine == "architectural" else [job.program]
        for program in programs:
            state = MachineState.from_images(config, job.images)
            pj.prepare(program, state, config, engine=engine)  # type: ignore[arg-type]
            before = len(found)
            pj.run(program, state, config, engine=engine, donate=donate).pc.block_until_ready()  # type: ignore[arg-type]
            counts.append(len(found) - before)
    assert len(found) > 10, "the listener heard of nothing"
    return counts


def _digests() -> list[str]:
    """The bits of final states: of both engines and of a run inside ``jit``."""
    config = section_11()
    digests = []
    for seed in (3, 5):
        job = random_program(config, seed)
        state = MachineState.from_images(config, job.images)
        finals = [pj.run(job.program, state, config, engine=e) for e in _ENGINES]  # type: ignore[arg-type]
        run: Callable[[MachineState], MachineState] = lambda s, p=job.program: pj.run(p, s, config)
        finals.append(jax.jit(run)(state))
        for final in finals:
            digest = hashlib.sha256()
            for leaf in jax.tree.leaves(final):
                digest.update(str(leaf.dtype).encode() + np.asarray(leaf).tobytes())
            digests.append(digest.hexdigest())
    return digests


def in_a_process(function: str, *arguments: str, **environment: str) -> list:
    command = [sys.executable, "-m", "tests.test_processes", function, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("engine", _ENGINES)
def test_after_prepare_a_run_compiles_nothing(engine: str) -> None:
    counts = in_a_process("_new_compilations", engine)
    assert counts == [0] * (4 if engine == "architectural" else 2)


@pytest.mark.exhaustive
def test_the_same_bits_with_64_bit_types_enabled() -> None:
    enabled = in_a_process("_digests", JAX_ENABLE_X64="1")
    assert enabled == _digests()
    assert len(set(enabled)) == 2


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
