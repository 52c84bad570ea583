"""Fixture with the recorded answers of guided-diffusion's and improved-diffusion's own code."""

import json
from typing import Any

import pytest
from helpers.openai_nets import VECTORS


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    return json.loads(VECTORS.read_text())
