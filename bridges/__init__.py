"""Bridges to other people's packages and files (torch, checkpoints); installed as ``plena_jax.bridges``, imported on use.

Empty so far: front ends come with a later release.
"""
