"""Narratives written by a language model: from a plan to requests, from answers to narratives."""
