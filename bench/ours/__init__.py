"""Tandem's own program: real tasks, a real registry, and ``arq worker.Settings``."""
