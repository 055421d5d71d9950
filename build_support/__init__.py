"""What setup.py needs to compile csrc/; part of the source distribution, not of the installed package."""
