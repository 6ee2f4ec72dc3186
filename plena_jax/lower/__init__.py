"""From tensors to programs: a program builder, memory planning, kernels and the operator registry."""

from plena_jax.lower.builder import ProgramBuilder as ProgramBuilder
from plena_jax.lower.registers import Ar as Ar
from plena_jax.lower.registers import BuildError as BuildError
from plena_jax.lower.registers import Fp as Fp
from plena_jax.lower.registers import Gp as Gp
