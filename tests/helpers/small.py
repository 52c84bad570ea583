"""A config small enough to train in seconds."""

from diffunet.config import Config


def tiny(**sections):
    """A config that trains in seconds; `tiny(train={"steps": 3})` changes it."""
    content = {
        "model": {"channels": 8, "multipliers": (1, 2), "num_blocks": 1, "attention_resolutions": (4,), "dropout": 0.1},
        "data": {"image_size": 8, "classes": True},
        "diffusion": {"sample_steps": 4},
        "train": {
            "steps": 8, "batch_size": 6, "warmup": 3, "log_every": 2, "validate_every": 4, "sample_every": 8,
            "checkpoint_every": 3, "previews": 4, "tensorboard": False,
        },
    }  # fmt: skip
    for section, values in sections.items():
        content[section] |= values
    return Config.model_validate(content)
