"""The command under test."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

from genmod.bench import cli


@pytest.fixture
def bench() -> Callable[..., int]:
    """`genmod bench` with these arguments; its exit code."""

    def run(*arguments: str) -> int:
        parser = argparse.ArgumentParser()
        cli.add_arguments(parser)
        return cli.main(parser.parse_args([*arguments]))

    return run
