"""Runs of several logs: what ends one far from its start ends it once, and where it should.

The runs are in a process of their own with a time limit, because a loop inside ``jit`` that never ends cannot be
interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import plena_jax as pj
from plena_jax import Fault, MachineConfig, MachineState
from plena_jax.machine.control import LOG_ROWS

#: Records of the first log and some of the second.
ROWS = LOG_ROWS + 312
TURNS = ROWS + 500
#: Seconds that all runs together may take, most of them to compile.
_PATIENCE = 300
_SMALL = MachineConfig(
    mlen=8,
    vlen=8,
    blen=2,
    hlen=4,
    broadcast_amount=2,
    matrix_sram_size=32,
    hbm_m_prefetch_amount=8,
    hbm_v_writeback_amount=1,
)
_CONFIG = dataclasses.replace(_SMALL, vector_sram_size=ROWS)
_ROOMY = dataclasses.replace(_SMALL, vector_sram_size=20000)
_PROGRAM = f"C_LOOP_START gp2, {TURNS}\nV_EXP_V gp1, gp1\nS_ADDI_INT gp1, gp1, 8\nC_LOOP_END gp2"
_STORES = f"C_LOOP_START gp2, {TURNS}\nH_STORE_V gp0, gp1, a0, 0, 0\nS_ADDI_INT gp1, gp1, 8\nC_LOOP_END gp2"


def _summary(state: MachineState, turns: int) -> dict[str, Any]:
    written = np.asarray(state.vram)[:, 0] == 1
    return {
        "fault": state.fault.name,
        "pc": int(state.pc),
        "instructions": state.instructions,
        "gp1": int(state.gp[1]),
        "rows": int(written.sum()),
        "first rows": bool(written[:turns].all()),
        "stored": state.hbm_traffic[1],
    }


def _run(text: str, config: MachineConfig, engine: str, rows: int, size: int = 64, limit: int | None = None) -> Any:
    state = MachineState.create(config, vram_rows=rows, hbm_bytes=size)
    program = pj.assemble(text)
    return pj.run(program, state, config, engine=engine, max_instructions=limit, throw=False)  # type: ignore[arg-type]


def _inside(text: str, config: MachineConfig, rows: int, size: int = 64, limit: int | None = None) -> MachineState:
    state, program = MachineState.create(config, vram_rows=rows, hbm_bytes=size), pj.assemble(text)
    return jax.jit(lambda s: pj.run(program, s, config, max_instructions=limit))(state)


def _batched(text: str, config: MachineConfig, rows: int) -> MachineState:
    state, program = MachineState.create(config, vram_rows=rows, hbm_bytes=64), pj.assemble(text)
    batch = jax.tree.map(lambda leaf: np.stack([np.asarray(leaf)] * 2), state)
    return jax.tree.map(lambda leaf: leaf[1], jax.vmap(lambda s: pj.run(program, s, config))(batch))


#: A run by name, and after how many turns it must stop with which fault.
_RUNS: dict[str, tuple[Callable[[], MachineState], int, Fault]] = {
    "fault, jit": (lambda: _inside(_PROGRAM, _CONFIG, ROWS), ROWS, Fault.OUT_OF_RANGE),
    "fault, vmap": (lambda: _batched(_PROGRAM, _CONFIG, ROWS), ROWS, Fault.OUT_OF_RANGE),
    "no room, jit": (lambda: _inside(_PROGRAM, _ROOMY, ROWS), ROWS, Fault.VRAM_UNALLOCATED),
    "no room in HBM, jit": (lambda: _inside(_STORES, _CONFIG, ROWS, 8 * ROWS), ROWS, Fault.HBM_UNALLOCATED),
    "limit, jit": (lambda: _inside(_PROGRAM, _ROOMY, TURNS, limit=1 + 3 * ROWS), ROWS, Fault.LIMIT),
}
for _engine in ("architectural", "resolved"):
    _RUNS |= {
        f"fault, {_engine}": (lambda e=_engine: _run(_PROGRAM, _CONFIG, e, ROWS), ROWS, Fault.OUT_OF_RANGE),
        f"growth, {_engine}": (lambda e=_engine: _run(_PROGRAM, _ROOMY, e, ROWS), TURNS, Fault.OK),
        f"growth of HBM, {_engine}": (lambda e=_engine: _run(_STORES, _CONFIG, e, ROWS, 8 * ROWS), TURNS, Fault.OK),
        f"limit, {_engine}": (
            lambda e=_engine: _run(_PROGRAM, _ROOMY, e, TURNS, limit=1 + 3 * ROWS),
            ROWS,
            Fault.LIMIT,
        ),
    }


#: One of each kind; the others are for a run with ``-m exhaustive``.
_SOME = ("fault, jit", "fault, resolved", "fault, architectural", "growth, architectural", "limit, architectural")
_OTHERS = tuple(name for name in _RUNS if name not in _SOME)


def _found(names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """What the runs ended with, as far as they did in time."""
    command = [sys.executable, "-m", "tests.test_long_runs", *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
        assert done.returncode == 0, done.stderr
        output = done.stdout
    except subprocess.TimeoutExpired as expired:
        output = (expired.stdout or b"").decode()  # the run after the last line never ended
    return dict(json.loads(line) for line in output.splitlines())


@pytest.fixture(scope="module")
def some() -> dict[str, dict[str, Any]]:
    return _found(_SOME)


@pytest.fixture(scope="module")
def others() -> dict[str, dict[str, Any]]:
    return _found(_OTHERS)


@pytest.mark.parametrize("name", _SOME)
def test_ends_where_it_should(name: str, some: dict[str, dict[str, Any]]) -> None:
    check(name, some)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", _OTHERS)
def test_the_others_do_too(name: str, others: dict[str, dict[str, Any]]) -> None:
    check(name, others)


def check(name: str, found: dict[str, dict[str, Any]]) -> None:
    assert name in found, f"never ended, or came after one that did not: {list(found)} did"
    _, turns, fault = _RUNS[name]
    stores = "HBM" in name
    ended = fault is Fault.OK
    assert found[name] == {
        "fault": fault.name,
        "pc": 4 if ended else 1,
        "instructions": 1 + 3 * turns,
        "gp1": 8 * turns,
        "rows": 0 if stores else turns,
        "first rows": not stores,
        "stored": found[name]["stored"] if stores else 0,
    }
    # A block of elements and one of scales for each store.
    assert found[name]["stored"] == (128 * turns if stores else 0)


if __name__ == "__main__":
    for _name in sys.argv[1:]:
        _function, _turns, _ = _RUNS[_name]
        print(json.dumps([_name, _summary(_function(), _turns)]), flush=True)
