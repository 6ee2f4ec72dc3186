"""Bridges to other people's packages and files, as ``plena_jax.bridges``; each is imported on use.

``plena_jax.bridges.torch`` turns PyTorch modules into JAX functions; ``plena_jax.bridges.checkpoints`` reads and
writes safetensors.
"""
