"""Writes k_diffusion.json: where k-diffusion's samplers end in float64, for those who do not have it.

It pins numpy below 2 and imports clip, clean-fid, kornia and wandb, so it has an environment of its own:
`pip install k-diffusion "setuptools<80"` beside diffunet, then `PYTHONPATH=.:tests python tests/parity/record.py`.
"""

import importlib.metadata
import json

import torch
from parity import test_k_diffusion as parity


def main() -> None:
    sampling = parity.sampling()
    sigmas = sampling.get_sigmas_karras(parity.N, parity.SIGMA_MIN, parity.SIGMA_MAX).double()
    exponential = sampling.get_sigmas_exponential(parity.N, parity.SIGMA_MIN, parity.SIGMA_MAX).double()
    vectors = {
        "made by": f"k-diffusion {importlib.metadata.version('k-diffusion')}, torch {torch.__version__.split('+')[0]}",
        "karras": sigmas.tolist(),
        "exponential": exponential.tolist(),
    }
    for name, case in parity.CASES.items():
        for ladder, levels in parity.ladders(sigmas).items():
            x, draws = parity.start(levels, torch.float64)
            end = parity.their_end(case, parity.their_exact, x, levels, draws)
            vectors[f"{name}, {ladder}"] = end.flatten().tolist()
    lines = [f"{json.dumps(name)}: {json.dumps(values)}" for name, values in vectors.items()]
    parity.VECTORS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
