"""The figures of an evaluation by name: what each says, and the file of a run that holds them."""

import json
from pathlib import Path
from typing import Any

from diffunet import files
from diffunet.errors import ResourceError

NAME = "evaluation.json"
"""The file of a run folder that holds the figures: one object, whose keys are those of `FIGURES`."""
PAIRS = "nearest.png"
"""The picture of a run folder of the samples that are nearest to a training image."""

FIGURES = {
    "samples": "number of generated images",
    "reals": "number of real images in DATA that are of use for this model",
    "seed": "seed of the samples and of the features",
    "model": "hash of the model's config and weights; none of a folder of samples",
    "step": "training step of the weights, of a run",
    "data": "hash of the paths and contents of DATA",
    "compared": "number of samples, and of real images, from which the next figures are",
    "features": "what the classifier, whose features are compared, learned: classes, or turns of an image",
    "accuracy": "share of images that it had not seen of which it is right",
    "distance": "Fréchet distance of its features, generated to real",
    "floor": "the same, other real images to real",
    "excess": "distance - floor",
    "agreement": "share of generated images that the classifier takes for their class",
    "classes": "by class: samples, agreement, distance, and the floor of as many real images",
    "feature_precision": "share of samples among real images, by its features (Kynkäänniemi et al. 2019)",
    "feature_recall": "share of real images among samples, likewise",
    "feature_density": "real images round a sample, over those expected, likewise (Naeem et al. 2020)",
    "feature_coverage": "share of real images with a sample near, likewise",
    "fid": "Fréchet inception distance, of all samples",
    "fid_reals": "number of real images that FID is measured against, or the file of statistics that was given",
    "kid": "kernel inception distance, the mean over 100 subsets; it is not multiplied by 1,000",
    "kid_error": "standard deviation of the kernel inception distance over the subsets",
    "kid_subset": "images of a subset",
    "precision": "share of samples among real images, by Inception's features (Kynkäänniemi et al. 2019)",
    "recall": "share of real images among samples, likewise",
    "density": "real images round a sample, over those expected, likewise (Naeem et al. 2020)",
    "coverage": "share of real images with a sample near, likewise",
    "inception_score": "inception score of all samples, the mean over 10 parts",
    "inception_score_error": "standard deviation of the inception score over the parts",
    "fd_dinov2": "Fréchet distance by DINOv2's features, of all samples (Stein et al. 2023)",
    "fd_dinov2_reals": "number of real images that it is measured against, or the file of statistics that was given",
    "copies": "share of samples as close, by pixels, to a training image as the closest 2% of those to one another",
    "held_out_copies": "that share of held-out real images; null where none is held out",
    "feature_copies": "that share of samples by the features of the classifier",
    "held_out_feature_copies": "that share of held-out real images by its features",
    "nearest_distance": "half of the samples are nearer to a training image: root mean square, grey levels to 255",
    "held_out_nearest_distance": "the same of held-out real images",
    "nearest": "name of the picture of the 16 samples nearest to a training image, each above that image",
    "likelihood": "bits per dimension of real images",
    "likelihood_error": "standard error of that mean; null of one image",
    "likelihood_kind": "vlb or ode",
    "likelihood_images": "number of real images that it is of",
    "likelihood_held_out": "whether training held these out",
    "loss": "mean over 16 noise levels of the logarithm of the error of denoised real images",
    "loss_images": "number of real images that it is of",
    "loss_held_out": "whether training held these out",
    "loss_by_noise": "noise level (sigma), and error over that of a denoiser that knows only how much pixels vary",
}  # fmt: skip
"""What each figure says. Those not asked for are left out, or null as those that there cannot be or are not finite."""

OF_LOSS = tuple(name for name in FIGURES if name.startswith("loss"))
"""Those of `evaluate --loss`; all others but model, step and data are of samples."""
OF_BOTH = ("model", "step", "data")


def text(found: dict[str, Any]) -> str:
    """Return figures as one JSON object on a line."""
    assert not (unknown := found.keys() - FIGURES.keys()), unknown
    return json.dumps(found, ensure_ascii=False, allow_nan=False)


def write(run: Path, found: dict[str, Any]) -> None:
    """Write figures to `RUN/evaluation.json`, or raise ResourceError.

    Figures of samples and of the loss are measured one without the other: the others stay in the file where they are of
    the same model and data.
    """
    path, other = run / NAME, {}
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        if all(before.get(name) == found.get(name) for name in OF_BOTH):
            other = {name: value for name, value in before.items() if (name in OF_LOSS) != ("loss" in found)}
    except (OSError, ValueError, AttributeError):
        pass
    merged = other | found
    ordered = {name: merged[name] for name in FIGURES if name in merged}
    try:
        files.write_atomic(path, json.dumps(ordered, ensure_ascii=False, allow_nan=False, indent=1) + "\n")
    except OSError as error:
        raise ResourceError(f"{path} cannot be written: {error.strerror or error}") from None
