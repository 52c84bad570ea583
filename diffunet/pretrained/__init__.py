"""The models that come with diffunet, by their short names: folders beside this file, of a config, weights and a card.

`card.json` says what the config cannot: the data, their licence, how the model was made, and what it reached. It is the
one place for that; README.md beside it is the same for people, written from it by scripts/pretrain.py.
"""

import difflib
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

CARD = "card.json"
"""The file of a model's folder that says what its config cannot."""


def names() -> list[str]:
    """Return the short names that there are."""
    return sorted(path.parent.name for path in HERE.glob(f"*/{CARD}"))


def folder(name: str) -> Path | None:
    """Return the folder of the model of a short name, or None for anything else."""
    return HERE / name if name in names() else None


def card(name: str) -> dict[str, Any]:
    """Return what `card.json` of a model says."""
    content: dict[str, Any] = json.loads((HERE / name / CARD).read_text(encoding="utf-8"))
    return content


def hint(text: str) -> str:
    """Return what to add to a message that there is no model `text`: the name that may have been meant, or all."""
    if close := difflib.get_close_matches(text, names(), n=1):
        return f"did you mean {close[0]}, which comes with diffunet?"
    return f"these come with diffunet: {', '.join(names())}"


def lines(name: str) -> list[str]:
    """Describe a model by its card, for people: data and licence, how it was made, and what it reached."""
    about = card(name)
    made, reached = about["training"], about["reached"]
    found = [
        about["about"],
        f"data: {about['data']}; licence: {about['licence']}",
        f"trained for {made['minutes']:g} minutes on {made['hardware']}: {made['images_seen']:,} images seen, of "
        f"{made['images']:,}; {made['held_out']:,} held out",
    ]
    return [*found, f"reached: {short(reached)}"] if reached else found


def short(reached: dict[str, Any]) -> str:
    """Return what a model reached in one line."""
    return (
        f"loss on held-out images {reached['loss']:.3f}, feature distance {reached['distance']:.2f} where real images "
        f"have {reached['floor']:.2f}, near copies {reached['copies']:.1%} (held-out reals "
        f"{reached['held_out_copies']:.1%})"
    )
