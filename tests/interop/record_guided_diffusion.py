"""Write vectors/guided_diffusion.json: answers of the nets and processes of guided-diffusion and improved-diffusion.

Its arguments are clones of both, of which it imports only the nets and the processes:
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
    """Return the flags as their own parser reads them, without those of training and sampling."""
    defaults = scripts.model_and_diffusion_defaults()
    parser = scripts.argparse.ArgumentParser()
    scripts.add_dict_to_argparser(parser, defaults)
    return scripts.args_to_dict(parser.parse_known_args(shlex.split(flags))[0], defaults)


def built(scripts, flags):
    return scripts.create_model_and_diffusion(**arguments(scripts, flags))


def shapes(net):
    """Return the names and shapes of a net's weights, sorted by name."""
    return sorted((name, list(value.shape)) for name, value in net.state_dict().items())


def modules(net):
    """Return the shape of each module's weight; the shape of its bias follows from it."""
    weights = {name.removesuffix(".weight"): shape for name, shape in shapes(net) if name.endswith(".weight")}
    biases = {f"{module}.bias": shape[:1] for module, shape in weights.items() if module != "label_emb"}
    assert {name: shape for name, shape in shapes(net) if not name.endswith(".weight")} == biases
    return weights


def record(scripts, case):
    """Return the answers of a small net, and its timesteps."""
    net, process = built(scripts, case.flags)
    net.load_state_dict({name: parity.weight(name, tuple(shape)) for name, shape in shapes(net)})
    net.eval()
    x, t, labels = parity.asked(case, process.num_timesteps)
    conditions = {"y": labels} if net.num_classes else {}
    timesteps = []

    def listening(x, ts, **conditions):
        timesteps.extend(ts.tolist())
        return net(x, ts, **conditions)

    with torch.no_grad():
        moments = process.p_mean_variance(listening, x, t, clip_denoised=False, model_kwargs=conditions)
        answer = net(x, torch.tensor(timesteps), **conditions)
    vectors = {
        "weights": modules(net),
        "timesteps": timesteps,
        "answer": parity.some(answer),
        "x0": [parity.some(x0, 20) for x0 in moments["pred_xstart"]],
    }
    return vectors | ({"log variance": parity.some(moments["log_variance"], 30)} if answer.shape[1] == 6 else {})


def process(scripts, schedule, steps, rescaled):
    """Return a noise schedule at some timesteps, and the timesteps as their net gets them."""
    diffusion = scripts.create_gaussian_diffusion(steps=steps, noise_schedule=schedule, rescale_timesteps=rescaled)
    visited = parity.visited(steps)
    timesteps = diffusion._wrap_model(lambda x, ts: ts)(None, torch.tensor(visited))
    return {
        "beta": diffusion.betas[visited].tolist(),
        "alpha_bar": diffusion.alphas_cumprod[visited].tolist(),
        "timesteps": timesteps.tolist(),
    }


def main() -> None:
    scripts = {}
    for dialect, folder in zip((parity.GUIDED, parity.IMPROVED), sys.argv[1:], strict=True):
        sys.path.insert(0, folder)
        scripts[dialect] = importlib.import_module(dialect.replace("-", "_") + ".script_util")
    # Their parser of channel_mult takes only integers, but their table for 512 pixels has 0.5.
    scripts[parity.GUIDED].int = lambda text: float(text) if "." in text else int(text)
    commits = [
        subprocess.check_output(["git", "-C", folder, "rev-parse", "--short=7", "HEAD"], text=True).strip()
        for folder in sys.argv[1:]
    ]
    made_by = [f"{dialect} {commit}" for dialect, commit in zip(scripts, commits, strict=True)]
    vectors = {"made by": ", ".join([*made_by, f"torch {torch.__version__.split('+')[0]}"])}
    for dialect, script in scripts.items():
        vectors[f"defaults of {dialect}"] = script.model_and_diffusion_defaults()
    for name, (dialect, flags) in parity.PUBLISHED.items():
        with torch.device("meta"):
            net, _ = built(scripts[dialect], flags)
        digest = hashlib.sha256(json.dumps(shapes(net)).encode()).hexdigest()
        vectors[name] = {"parameters": sum(parameter.numel() for parameter in net.parameters()), "shapes": digest}
    for name, (schedule, steps, rescaled) in parity.PROCESSES.items():
        both = [process(script, schedule, steps, rescaled) for script in scripts.values()]
        assert both[0] == both[1]
        vectors[name] = both[0]
    for script in scripts.values():
        script.NUM_CLASSES = parity.CLASSES
    for name, case in parity.CASES.items():
        vectors[name] = record(scripts[case.dialect], case)
    lines = [f"{json.dumps(name)}: {json.dumps(values, separators=(',', ':'))}" for name, values in vectors.items()]
    parity.VECTORS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
