"""A step must not cost what the memories cost: no copy of one inside a loop, no time that grows with it."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plena_jax as pj
from plena_jax import MachineConfig, MachineState
from plena_jax.machine.datapath import execute
from plena_jax.machine.layout import Layout
from plena_jax.machine.memories import pack_memories


@pytest.fixture(scope="module")
def roomy(small: MachineConfig) -> MachineConfig:
    return dataclasses.replace(small, vector_sram_size=1 << 20)


def loop_bodies(hlo: str) -> dict[str, str]:
    """The computations that while loops run, and all that those call, by name."""
    computations = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", hlo, re.MULTILINE | re.DOTALL))
    kinds = "body|condition|to_apply|calls|true_computation|false_computation"
    called = lambda text: re.findall(rf"(?:{kinds})=%?([\w.\-]+)", text)
    branches = lambda text: re.findall(r"%?([\w.\-]+)", " ".join(re.findall(r"branch_computations=\{([^}]*)\}", text)))
    pending = [name for text in computations.values() for name in re.findall(r"body=%?([\w.\-]+)", text)]
    bodies: dict[str, str] = {}
    while pending:
        name = pending.pop()
        if name in computations and name not in bodies:
            bodies[name] = computations[name]
            pending += called(bodies[name]) + branches(bodies[name])
    return bodies


def copies(bodies: dict[str, str], shape: tuple[int, ...], dtype: str) -> list[str]:
    text = f"{dtype}[{','.join(map(str, shape))}]"
    lines = [line for body in bodies.values() for line in body.splitlines()]
    return [line for line in lines if " copy(" in line and text in line]


def test_no_memory_is_copied_inside_a_loop(roomy: MachineConfig) -> None:
    state = MachineState.create(roomy, vram_rows=4096, hbm_bytes=1 << 15)
    memories = pack_memories(roomy, state)
    records = jnp.zeros((64, 16), jnp.int32)
    run = jax.jit(execute, static_argnums=0, donate_argnums=1)
    bodies = loop_bodies(run.lower(roomy, memories, records, jnp.int32(0)).compile().as_text())
    assert len(bodies) > 50
    for memory, dtype in ((memories.vram, "f32"), (memories.cells, "f32"), (memories.hbm, "u8")):
        assert copies(bodies, memory.shape, dtype) == []
    assert memories.cells.shape[0] == Layout(roomy).rows


def test_a_copy_would_be_seen() -> None:
    """Negative control: branches that return the memory, and two memories that change places, have to copy."""

    def found(body: Callable[..., Any], *memories: jax.Array) -> list[str]:
        loop = jax.jit(lambda *m: jax.lax.while_loop(lambda c: c[0] < 9, lambda c: (c[0] + 1, *body(*c)), (0, *m)))
        return copies(loop_bodies(loop.lower(*memories).compile().as_text()), (4096, 8), "f32")

    memory = jnp.zeros((4096, 8))
    branches = [lambda i, m: m.at[i].set(1.0), lambda i, m: m]
    assert found(lambda i, m: (jax.lax.switch(i % 2, branches, i, m),), memory)
    assert found(lambda i, m, n: (n, m), memory, memory)
    # What is read and written in place is not copied.
    assert found(lambda i, m: (m.at[i].set(m[i] + 1),), memory) == []


@pytest.mark.parametrize("engine", ["resolved", "architectural"])
def test_step_time_does_not_grow_with_vram(engine: str, roomy: MachineConfig) -> None:
    body = "V_ADD_VV gp1, gp2, gp3\nV_RED_SUM f1, gp1\nS_ST_FP f1, gp0, 3\n"

    def slope(rows: int) -> float:
        state = MachineState.create(roomy, vram_rows=rows, hbm_bytes=1 << 15)
        times = []
        for count in (1000, 21000):
            program = pj.assemble(f"C_LOOP_START gp5, {count}\n{body}C_LOOP_END gp5")
            run = lambda program=program: pj.run(program, state, roomy, engine=engine).pc.block_until_ready()
            run()
            best = np.inf
            for _ in range(5):
                start = time.perf_counter()
                run()
                best = min(best, time.perf_counter() - start)
            times.append(best)
        return times[1] - times[0]

    assert slope(65536) < 2 * slope(1024)
