"""Batches: over images, formats and programs, on several devices and hosts, in chunks; against single runs."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plena_jax as pj
from plena_jax import EngineError, MachineConfig, MachineFault, MachineState, hbm
from plena_jax.formats import Quantizer, named
from tests.states import differences

ROOT = Path(__file__).resolve().parents[1]
TEXT = """
S_ADDI_INT gp1, gp0, 8
S_ADDI_INT gp2, gp0, 16
C_LOOP_START gp5, 3
V_MUL_VV gp1, gp1, gp2, 0
V_ADD_VF gp2, gp1, f1, 0
C_LOOP_END gp5
H_PREFETCH_M gp0, gp0, a0, 0, 0
M_MM 0, gp0, gp1
M_MM_WO gp2, gp0, 0
V_RED_SUM f2, gp2, 0
"""
PROGRAM = pj.assemble(TEXT)
STORING = pj.assemble(TEXT + "H_STORE_V gp2, gp1, a0, 0, 0")


def start(config: MachineConfig, seed: int = 0, **changes: object) -> MachineState:
    random = np.random.default_rng(seed)
    vram, fp = random.standard_normal((24, 8)).astype(np.float32), np.zeros(4, np.float32)
    image = random.integers(0, 0x60, 512).astype(np.uint8)
    state = MachineState.create(config, vram=vram, fp_sram=fp, hbm=image, vram_rows=48, hbm_bytes=1024)
    return state.replace(f=state.f.at[1].set(seed / 4), **changes)


def check(batch: MachineState, config: MachineConfig, programs: object, states: list[MachineState]) -> None:
    programs = programs if isinstance(programs, list) else [programs] * len(states)
    for i, (program, state) in enumerate(zip(programs, states, strict=True)):
        single = pj.run(program, state, config, engine="resolved")
        assert differences(pj.lane(batch, i, config), single) == {}, i
    assert not np.array_equal(batch.vram[0], batch.vram[1])


@pytest.mark.parametrize("program", [PROGRAM, STORING], ids=["reading", "storing"])
def test_as_single_runs(small: MachineConfig, program: pj.Program) -> None:
    states = [start(small, i) for i in range(5)]
    check(pj.run_batch(program, states, small), small, program, states)


def test_chunks_and_progress(small: MachineConfig) -> None:
    states, done = [start(small, i) for i in range(7)], []
    batch = pj.run_batch(STORING, states, small, chunk=3, progress=done.append)
    check(batch, small, STORING, states)
    assert done == [3, 6, 7]
    assert pj.run_batch(STORING, states, small, progress=True).vram.shape[0] == 7


def test_weights_are_shared(small: MachineConfig) -> None:
    one, vram = start(small), jnp.stack([start(small, i).vram for i in range(4)])
    batch = pj.run_batch(PROGRAM, one.replace(vram=vram), small)
    assert batch.hbm.shape == one.hbm.shape
    check(batch, small, PROGRAM, [one.replace(vram=v) for v in vram])
    stored = pj.run_batch(STORING, one.replace(vram=vram), small)
    assert stored.hbm.shape == (4, *one.hbm.shape)
    check(stored, small, STORING, [one.replace(vram=v) for v in vram])


def test_memory_grows(small: MachineConfig) -> None:
    states = [start(small, i) for i in range(3)]
    states = [s.replace(vram=s.vram[:20], hbm=s.hbm[:64]) for s in states]
    program = pj.assemble("S_ADDI_INT gp1, gp0, 240\nV_ADD_VV gp1, gp0, gp0\nS_ADDI_INT gp2, gp0, 512\n" + TEXT)
    batch = pj.run_batch(program, states, small)
    assert batch.vram.shape[1] > 30
    check(batch, small, program, states)


def test_different_programs_and_registers(small: MachineConfig) -> None:
    programs = [
        PROGRAM,
        STORING,
        pj.assemble("V_ADD_VV gp1, gp0, gp0"),
        PROGRAM,
        pj.assemble("S_EXP_FP f3, f1"),
    ]
    states = [start(small, i) for i in range(5)]
    states[3] = states[3].replace(gp=states[3].gp.at[7].set(5))
    batch = pj.run_batch(programs, states, small)
    check(batch, small, programs, states)
    assert int(batch.gp[3, 7]) == 5
    assert len(set(np.asarray(batch.ticks).tolist())) > 2


def test_formats(small: MachineConfig) -> None:
    """Images and formats, alone and together; each lane as a run with its own format."""
    names = ["bfloat16", "float16", "e4m5", "tf32", "float32"]
    values = np.random.default_rng(0).standard_normal(512).astype(np.float32)
    state = start(small).replace(hbm=MachineState.create(small, hbm=values).hbm)
    formats = [Quantizer.of(named(name)) for name in names]
    precision = [dataclasses.replace(small.precision, vector_sram_type=f) for f in formats]
    stacked = jax.tree.map(lambda *leaves: jnp.asarray(leaves), *precision)
    batch = pj.run_batch(PROGRAM, state, small, precision=stacked)
    singles = [pj.run(PROGRAM, state, small, precision=p) for p in precision]
    for i, single in enumerate(singles):
        assert differences(pj.lane(batch, i, small), single) == {}, names[i]
    assert len({np.asarray(s.vram).tobytes() for s in singles}) == len(names)
    # The format of the configuration, not as an argument, gives the same.
    plain = pj.run(PROGRAM, state, small)
    assert np.array_equal(batch.vram[0], plain.vram)
    states = state.replace(vram=jnp.stack([state.vram * (i + 1) for i in range(5)]))
    both = pj.run_batch(PROGRAM, states, small, precision=stacked)
    last = pj.run(PROGRAM, state.replace(vram=state.vram * 5), small, precision=precision[4])
    assert differences(pj.lane(both, 4, small), last) == {}
    mapped = jax.jit(jax.vmap(lambda p: pj.run(PROGRAM, state, small, precision=p).vram))(stacked)
    assert np.array_equal(mapped, batch.vram)


# -- several devices and hosts ----------------------------------------------------------------------------------------

DEVICES = """
import sys, numpy as np, jax
sys.path.insert(0, {root!r})
from jax.sharding import Mesh
import plena_jax as pj
from tests.test_batch import PROGRAM, STORING, start, check
from tests.conftest import small
config = small.__wrapped__() if hasattr(small, "__wrapped__") else small._get_wrapped_function()()
mesh = Mesh(np.array(jax.devices()), ("lanes",))
assert mesh.size == 8
states = [start(config, i) for i in range(16)]
batch = pj.run_batch(STORING, states, config, mesh=mesh)
assert len(batch.vram.sharding.device_set) == 8
check(batch, config, STORING, states)
check(pj.run_batch(STORING, states, config, mesh=mesh, chunk=8), config, STORING, states)
check(pj.run_batch(STORING, states, config, mesh=mesh, engine="fused", strict=True), config, STORING, states)
programs = [PROGRAM, STORING] * 8
check(pj.run_batch(programs, states, config, mesh=mesh), config, programs, states)
try:
    pj.run_batch(PROGRAM, states[:12], config, mesh=mesh)
except pj.EngineError as error:
    print("8 devices" in str(error), "good")
"""

HOSTS = """
import sys, numpy as np, jax
sys.path.insert(0, {root!r})
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize("localhost:{port}", 2, int(sys.argv[1]))
from jax.sharding import Mesh
import plena_jax as pj
from tests.test_batch import STORING, start
from tests.conftest import small
config = small.__wrapped__() if hasattr(small, "__wrapped__") else small._get_wrapped_function()()
mesh = Mesh(np.array(jax.devices()), ("lanes",))
assert mesh.size == 4 and len(mesh.local_devices) == 2
states = [start(config, i) for i in range(8)]
batch = pj.run_batch(STORING, states, config, mesh=mesh)
seen = 0
for shard in batch.vram.addressable_shards:
    for offset, vram in enumerate(np.asarray(shard.data)):
        lane = shard.index[0].start + offset
        assert np.array_equal(vram, pj.run(STORING, states[lane], config).vram), lane
        seen += 1
assert seen == 4
print("good")
"""


def environment(devices: int) -> dict[str, str]:
    # Beside those of the caller: .ci/run compiles tests without optimizations.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def test_eight_devices() -> None:
    code = DEVICES.format(root=str(ROOT))
    done = subprocess.run([sys.executable, "-c", code], env=environment(8), capture_output=True, text=True, timeout=600)
    assert done.stdout.split() == ["True", "good"], done.stderr


@pytest.mark.exhaustive
def test_two_hosts() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = HOSTS.format(root=str(ROOT), port=port)
    command = lambda i: [sys.executable, "-c", code, str(i)]
    hosts = [
        subprocess.Popen(command(i), env=environment(2), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    for host in hosts:
        out, error = host.communicate(timeout=600)
        assert out.strip().endswith("good"), error


# -- misuse -----------------------------------------------------------------------------------------------------------


def test_what_does_not_go_together(small: MachineConfig) -> None:
    states = [start(small, i) for i in range(4)]
    other = dataclasses.replace(small, hbm_v_prefetch_amount=1)
    for message, arguments in {
        "these differ in hbm_v_prefetch_amount": (PROGRAM, states, [small, other]),
        "no machines": (PROGRAM, [], small),
        "no leaf with a lane axis": (PROGRAM, states[0], small),
        "lane axes of 3, 4": ([PROGRAM] * 3, states, small),
        "different sizes do not stack": (PROGRAM, [states[0], states[1].replace(hbm=states[1].hbm[:64])], small),
        "allowed: 2 axes, and a lane axis": (PROGRAM, states[0].replace(vram=states[0].vram[None, None]), small),
    }.items():
        with pytest.raises(EngineError, match=message):
            pj.run_batch(*arguments)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="chunk 0"):
        pj.run_batch(PROGRAM, states, small, chunk=0)
    with pytest.raises(EngineError, match=r"V_TOPK computed; jax\.vmap of plena_jax\.run"):
        pj.run_batch(pj.assemble("V_TOPK gp0, gp0, gp0, 0\nS_LD_INT gp1, gp0, 0"), states, small)


def test_a_fault_names_the_machine(small: MachineConfig) -> None:
    bad = pj.assemble("S_ADDI_INT gp1, gp0, 3\nV_ADD_VV gp1, gp0, gp0")
    states = [start(small, i) for i in range(3)]
    with pytest.raises(MachineFault, match="pc 1: V_ADD_VV gp1, gp0, gp0: misaligned") as error:
        pj.run_batch([PROGRAM, bad, PROGRAM], states, small)
    assert error.value.__notes__ == ["machine 1 of the batch"]
    final = pj.run_batch([PROGRAM, bad, PROGRAM], states, small, throw=False)
    assert [int(s) != 0 for s in final.status] == [False, True, False]


@pytest.mark.parametrize("place", ["vector_sram_type", "scalar_fp"])
def test_formats_that_a_place_cannot_hold(small: MachineConfig, place: str) -> None:
    state = start(small).replace(hbm=jnp.zeros(512, jnp.float32))
    precision = dataclasses.replace(small.precision, **{place: named("mxfp4_e2m1")})
    with pytest.raises(EngineError, match=f"{place} is MXFormat; this place can hold a float format only"):
        pj.run(PROGRAM, state, small, precision=precision)
    with pytest.raises(EngineError, match="values face"):
        pj.run(PROGRAM, start(small), small, precision=small.precision)
    assert hbm.stage(np.ones(8, np.float32), named("mxfp4_e2m1", block=8)).shape == (8,)
