"""Archives and arrays with bytes changed, lost and added: they are read or refused in words."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from broken_sources import KINDS, changed, whole

from diffunet.data.index import Paths
from diffunet.data.sources import open_source
from diffunet.errors import Error


@pytest.mark.seconds
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_damaged_is_read_or_refused(tmp_path, kind):
    sound, path, draw, outcomes = whole(kind), tmp_path / f"data.{kind}", random.Random(kind), []
    path.write_bytes(sound)
    assert len(open_source(path)[1].paths) == {"zip": 5, "tar": 6}.get(kind, 6)
    for _ in range(150):
        path.write_bytes(changed(sound, draw))
        try:
            source, found = open_source(path)
            list(found.left_out.lines())
            assert source.stamps(Paths.of(found.paths)).shape == (len(found.paths), 2)
            for name in found.paths:
                source.read(name)
            outcomes.append("read")
        except Error as error:
            outcomes.append("refused" if str(error).isprintable() else str(error))
    assert {"read", "refused"} == set(outcomes)
