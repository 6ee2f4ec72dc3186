"""Small model definitions in JAX, with the tensor names of checkpoints."""

from plena_jax.models.llama import LlamaShape as LlamaShape
from plena_jax.models.llama import decoder_layer as decoder_layer
from plena_jax.models.llama import random_weights as random_weights
from plena_jax.models.llama import rope_tables as rope_tables
