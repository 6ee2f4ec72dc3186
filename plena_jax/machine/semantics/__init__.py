"""What every instruction does: one semantic function each, one file per unit."""

from plena_jax.machine.semantics import matrix, memory, scalar, vector
from plena_jax.machine.semantics.control import CONTROL as CONTROL
from plena_jax.machine.semantics.registry import SEMANTICS as SEMANTICS
from plena_jax.machine.semantics.registry import Accumulator as Accumulator
from plena_jax.machine.semantics.registry import Semantic as Semantic
from plena_jax.machine.semantics.registry import Stage as Stage
from plena_jax.machine.semantics.registry import Target as Target
from plena_jax.machine.semantics.registry import branch_index as branch_index
from plena_jax.machine.semantics.registry import branches as branches
