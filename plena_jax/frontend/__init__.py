"""Front ends: functions of arrays become programs.

A jaxpr becomes a :class:`TensorGraph` (:mod:`tracing`, :mod:`primitives`), patterns in it become operations of their
own (:mod:`passes`), each operation becomes operators on matrices (:mod:`lowering`, :mod:`rules`), and these a program.
"""

from plena_jax.frontend.compile import Explanation as Explanation
from plena_jax.frontend.compile import compile as compile
from plena_jax.frontend.compile import explain as explain
from plena_jax.frontend.compiled import ArgumentError as ArgumentError
from plena_jax.frontend.compiled import CompiledProgram as CompiledProgram
from plena_jax.frontend.files import SavedProgram as SavedProgram
from plena_jax.frontend.files import SavedProgramError as SavedProgramError
from plena_jax.frontend.files import load as load
from plena_jax.frontend.profile import Profile as Profile
from plena_jax.frontend.report import Distance as Distance
from plena_jax.frontend.report import Report as Report
