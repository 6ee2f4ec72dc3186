"""From tensors to programs: a program builder, memory planning, kernels and the operator registry."""

from plena_jax.lower.builder import ProgramBuilder as ProgramBuilder
from plena_jax.lower.graph import Graph as Graph
from plena_jax.lower.lowered import Cost as Cost
from plena_jax.lower.lowered import Lowered as Lowered
from plena_jax.lower.lowered import lower as lower
from plena_jax.lower.operators import operators as operators
from plena_jax.lower.registers import Ar as Ar
from plena_jax.lower.registers import BuildError as BuildError
from plena_jax.lower.registers import Fp as Fp
from plena_jax.lower.registers import Gp as Gp
from plena_jax.lower.tensors import CapacityError as CapacityError
from plena_jax.lower.tensors import OperatorError as OperatorError
from plena_jax.lower.tensors import Tensor as Tensor
