"""Writes vectors/guided_diffusion.json: what the nets and processes of guided-diffusion and improved-diffusion say.

Give it clones of both, of which it imports the nets and the processes alone:
`PYTHONPATH=.:tests python tests/interop/record_guided_diffusion.py ../guided-diffusion ../improved-diffusion`.
"""

import hashlib
import importlib
import json
import shlex
import subprocess
import sys

import torch
from helpers import openai_nets as parity


def arguments(scripts, flags):
    """The flags as their own parser reads them, those of training and sampling left out."""
    defaults = scripts.model_and_diffusion_defaults()
    parser = scripts.argparse.ArgumentParser()
    scripts.add_dict_to_argparser(parser, defaults)
    return scripts.args_to_dict(parser.parse_known_args(shlex.split(flags))[0], defaults)


def built(scripts, flags):
    """Their net and process."""
    return scripts.create_model_and_diffusion(**arguments(scripts, flags))


def shapes(net):
    """Names and shapes of a net's weights, in the order of names."""
    return sorted((name, list(value.shape)) for name, value in net.state_dict().items())


def modules(net):
    """The shape of each module's weight; what a bias is follows from it."""
    weights = {name.removesuffix(".weight"): shape for name, shape in shapes(net) if name.endswith(".weight")}
    biases = {f"{module}.bias": shape[:1] for module, shape in weights.items() if module != "label_emb"}
    assert {name: shape for name, shape in shapes(net) if not name.endswith(".weight")} == biases
    return weights


def record(scripts, case):
    """What a small net answers."""
    net, process = built(scripts, case.flags)
    net.load_state_dict({name: parity.weight(name, tuple(shape)) for name, shape in shapes(net)})
    net.eval()
    x, t, labels = parity.asked(case, process.num_timesteps)
    told = {"y": labels} if net.num_classes else {}
    timesteps = []

    def listening(x, ts, **conditions):
        timesteps.extend(ts.tolist())
        return net(x, ts, **conditions)

    with torch.no_grad():
        said = process.p_mean_variance(listening, x, t, clip_denoised=False, model_kwargs=told)
        answer = net(x, torch.tensor(timesteps), **told)
    vectors = {
        "weights": modules(net),
        "timesteps": timesteps,
        "answer": parity.some(answer),
        "x0": [parity.some(each, 20) for each in said["pred_xstart"]],
    }
    return vectors | ({"log variance": parity.some(said["log_variance"], 30)} if answer.shape[1] == 6 else {})


def process(scripts, schedule, steps, rescaled):
    """A noise schedule at some timesteps, and what the net is told of them."""
    diffusion = scripts.create_gaussian_diffusion(steps=steps, noise_schedule=schedule, rescale_timesteps=rescaled)
    visited = parity.visited(steps)
    told = diffusion._wrap_model(lambda x, ts: ts)(None, torch.tensor(visited))
    return {
        "beta": diffusion.betas[visited].tolist(),
        "alpha_bar": diffusion.alphas_cumprod[visited].tolist(),
        "timesteps": told.tolist(),
    }


def main() -> None:
    scripts = {}
    for dialect, folder in zip((parity.GUIDED, parity.IMPROVED), sys.argv[1:], strict=True):
        sys.path.insert(0, folder)
        scripts[dialect] = importlib.import_module(dialect.replace("-", "_") + ".script_util")
    # Their parser of channel_mult takes integers; the 0.5 that their table has for 512 pixels is said to it by this.
    scripts[parity.GUIDED].int = lambda text: float(text) if "." in text else int(text)
    commits = [
        subprocess.check_output(["git", "-C", folder, "rev-parse", "--short=7", "HEAD"], text=True).strip()
        for folder in sys.argv[1:]
    ]
    made_by = [f"{dialect} {commit}" for dialect, commit in zip(scripts, commits, strict=True)]
    vectors = {"made by": ", ".join([*made_by, f"torch {torch.__version__.split('+')[0]}"])}
    for dialect, each in scripts.items():
        vectors[f"defaults of {dialect}"] = each.model_and_diffusion_defaults()
    for name, (dialect, flags) in parity.PUBLISHED.items():
        with torch.device("meta"):
            net, _ = built(scripts[dialect], flags)
        digest = hashlib.sha256(json.dumps(shapes(net)).encode()).hexdigest()
        vectors[name] = {"parameters": sum(each.numel() for each in net.parameters()), "shapes": digest}
    for name, (schedule, steps, rescaled) in parity.PROCESSES.items():
        both = [process(each, schedule, steps, rescaled) for each in scripts.values()]
        assert both[0] == both[1]
        vectors[name] = both[0]
    for each in scripts.values():
        each.NUM_CLASSES = parity.CLASSES
    for name, case in parity.CASES.items():
        vectors[name] = record(scripts[case.dialect], case)
    lines = [f"{json.dumps(name)}: {json.dumps(values, separators=(',', ':'))}" for name, values in vectors.items()]
    parity.VECTORS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
