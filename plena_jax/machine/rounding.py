"""What each place of the machine does to the values that it stores; straight-through for derivatives.

``precision``, if not None, replaces the configuration's formats and may be traced, so that ``vmap`` sweeps it;
``clipped`` makes the derivative zero where a value saturates.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from plena_jax.config import BF16, Formats, MachineConfig
from plena_jax.formats import FloatFormat, plena
from plena_jax.machine.transfer import effective, vram_format


def vector(x: jax.Array, config: MachineConfig, precision: Formats | None, clipped: bool) -> jax.Array:
    """``x`` as vector SRAM stores it."""
    if precision is not None:
        return precision.vector_sram_type.round(x, clipped)
    return _vector(x, config, clipped)


def scalar(x: jax.Array, config: MachineConfig, precision: Formats | None, clipped: bool) -> jax.Array:
    """``x`` as f registers and FP SRAM store it: BF16, or SCALAR_FP where that is intended."""
    if config.intended.scalar_fp:
        return (config.precision if precision is None else precision).scalar_fp.round(x, clipped)
    return _scalar(x, clipped)


def matrix(x: jax.Array, config: MachineConfig, precision: Formats | None, clipped: bool) -> jax.Array:
    """``x`` as matrix SRAM stores it: unrounded, or MATRIX_SRAM_TYPE where that is intended."""
    if config.intended.matrix_sram_type:
        return (config.precision if precision is None else precision).matrix_sram_type.round(x, clipped)
    return x


def stored(row: jax.Array, is_kv: bool, config: MachineConfig, precision: Formats | None, clipped: bool) -> jax.Array:
    """A row as HBM gives it back after H_STORE_V."""
    formats = config.precision if precision is None else precision
    fmt = formats.hbm_v_kv_type if is_kv else formats.hbm_v_act_type
    return (effective(fmt, config.intended) if precision is None else fmt).round(row, clipped)


# -- the two that run at nearly every step, in few operations ---------------------------------------------------------


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _vector(x: jax.Array, config: MachineConfig, clipped: bool) -> jax.Array:
    fmt = vram_format(config)
    if fmt.exponent == 8 and fmt.sign == 1 and fmt.family == "plena":
        return plena.round_8_exponent_bits(x, fmt.mantissa)
    return fmt.decode(fmt.encode(x))


@_vector.defjvp
def _vector_jvp(
    config: MachineConfig, clipped: bool, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return _vector(primals[0], config, clipped), _through(vram_format(config), clipped, primals[0], tangents[0])


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _scalar(x: jax.Array, clipped: bool) -> jax.Array:
    return plena.round_scalar(x)


@_scalar.defjvp
def _scalar_jvp(clipped: bool, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return _scalar(primals[0], clipped), _through(BF16, clipped, primals[0], tangents[0])


def _through(fmt: FloatFormat, clipped: bool, x: jax.Array, tangent: jax.Array) -> jax.Array:
    return jnp.where(fmt.saturates(x), jnp.float32(0), tangent) if clipped else tangent
