"""Bridges to other people's packages and files, as ``plena_jax.bridges``; each is imported on use.

Empty so far: front ends come with a later release.
"""
