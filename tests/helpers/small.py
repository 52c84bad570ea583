"""`tiny`, the config that most tests train with."""

from diffunet.config import Config


def tiny(**sections):
    """Return a config of some thousand weights, which trains in a second or two on one core.

    It is for 8x8 RGB images in classes (the fixture `folder` has such), runs for 8 steps of 6 images, and does within
    them all that a run does: two log lines or more, held-out losses, checkpoints and a preview.

    Args:
        sections: changes by section, of those fields alone: `tiny(train={"steps": 3}, data={"classes": False})`.
    """
    content = {
        "model": {"channels": 8, "multipliers": (1, 2), "num_blocks": 1, "attention_resolutions": (4,), "dropout": 0.1},
        "data": {"image_size": 8, "classes": True},
        "diffusion": {"sample_steps": 4},
        "train": {
            "steps": 8, "batch_size": 6, "warmup": 3, "cooldown": 0.25, "log_every": 2, "validate_every": 4,
            "sample_every": 8, "checkpoint_every": 3, "previews": 4,
        },
    }  # fmt: skip
    for section, values in sections.items():
        content[section] |= values
    return Config.model_validate(content)
