"""The benchmarks themselves, as tests for pytest; `genmod.bench.session` runs them and has their fixtures."""
