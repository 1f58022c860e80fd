"""The peers' programs, each run in its own environment: see `bench.environments`. They import nothing of Tandem's."""
