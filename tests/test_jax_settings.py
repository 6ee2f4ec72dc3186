"""Programs run the same under jax settings that refuse what jax would do by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

import plena_jax as pj
from plena_jax import MachineConfig, MachineState
from tests.random_programs import random_program
from tests.states import bits

#: Both engines on the machine and the program that the test has; final states one below another. What jax refuses it
#: refuses while tracing: ``jit`` and ``vmap`` need not run.
_SCRIPT = """
import sys
import jax
import numpy as np
import plena_jax as pj
from tests.random_programs import random_program
from tests.states import batch_of, bits

config = pj.MachineConfig.from_toml(sys.argv[1])
job = random_program(config, 3)
state = pj.MachineState.from_images(config, job.images)
resolved = lambda vram: pj.run(job.program, state.replace(vram=vram), config, engine="resolved")
architectural = lambda state: pj.run(job.program, state, config, engine="architectural")
finals = {
    "resolved": resolved(state.vram),
    "architectural": architectural(state),
}
states = batch_of([state, state])
jax.eval_shape(resolved, state.vram)
jax.eval_shape(architectural, state)
jax.eval_shape(jax.vmap(resolved), np.stack([state.vram] * 2))
jax.eval_shape(jax.vmap(architectural), states)
leaves = {f"{name} {i}": bits(leaf) for name, final in finals.items() for i, leaf in enumerate(jax.tree.leaves(final))}
np.savez(sys.argv[2], **leaves)
"""


def test_neither_ranks_nor_types_are_promoted(small: MachineConfig, tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    settings = {"JAX_NUMPY_RANK_PROMOTION": "raise", "JAX_NUMPY_DTYPE_PROMOTION": "strict"}
    environment = os.environ | settings | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-c", _SCRIPT, small.to_toml(), str(tmp_path / "finals.npz")]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    job = random_program(small, 3)
    expected = pj.run(job.program, MachineState.from_images(small, job.images), small)
    found = np.load(tmp_path / "finals.npz")
    leaves = jax.tree.leaves(expected)
    assert len(found) == 2 * len(leaves)
    for name in found:
        assert np.array_equal(found[name], bits(leaves[int(name.split()[-1])])), name
