"""Tools that prove kernels right: Triton without a GPU, and compiling without running. Import the module you need."""
