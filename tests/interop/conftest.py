"""What the peers' own code answered, as it was recorded."""

import json
from typing import Any

import pytest
from helpers.openai_nets import VECTORS


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    return json.loads(VECTORS.read_text())
