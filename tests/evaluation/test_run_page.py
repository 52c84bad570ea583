"""The report of runs as a file: what is in it, what cannot get into it, and what is said where something is missing."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers.run_folders import line, noise, run_folder
from PIL import Image

from diffunet.errors import UsageError
from diffunet.evaluation import fillings, markup, run_curves, run_page, run_reading
from diffunet.names import MASK_KINDS

FIXTURE = Path(__file__).parents[1] / "fixtures" / "v1" / "run"
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and the text within each kind of them."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.inside, self.texts = [], [], {}
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "input", "meta"):
            self.inside.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        if self.inside:
            self.texts[self.inside[-1]][-1] += data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(*folders, unfilled=None):
    return run_page.page([run_reading.read(folder) for folder in folders], unfilled)


@pytest.fixture
def hostile(tmp_path):
    """A run in which every text that a stranger may have chosen is hostile."""
    begun = {
        "data": HOSTILE, "environment": {"device": HOSTILE, "precision": HOSTILE},
        "images": {
            "images": 3, "classes": {HOSTILE: 2, "\u2028": 1}, "reasons": [[HOSTILE, HOSTILE]], "rejected": 1,
            "notes": [HOSTILE], "sizes": {HOSTILE: [1, 2]},
        },
    }  # fmt: skip
    status = {"state": HOSTILE, "step": 3, "error": HOSTILE}
    names = json.dumps([HOSTILE])
    folder = run_folder(
        tmp_path / HOSTILE.replace("/", "\u2215"), lines=[line(1), line(2, **{HOSTILE: 3})], previews=[1, 2],
        begun=begun, status=status,
        config=f'[diffusion]\ntask = "inpaint"\n[data]\nclasses = true\nclass_names = {names}\n',
    )  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps({HOSTILE: 1.5, "fid": 2}))
    return folder


def test_uplot_is_the_published_one():
    """The sha256 are those of dist/uPlot.iife.min.js, dist/uPlot.min.css and LICENSE of the package uplot 1.6.32."""
    digests = {
        "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
        "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
        "uPlot.LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
    }
    assert {name: hashlib.sha256((run_page.PAGE / name).read_bytes()).hexdigest() for name in digests} == digests
    assert b"MIT" in (run_page.PAGE / "uPlot.LICENSE").read_bytes()


def test_elements_escape_all_that_is_no_html():
    made = markup.tag("p", "a < b & c", markup.tag("b", '"q"', title='"<&'), hidden=True, id=None)
    assert made == '<p hidden>a &lt; b &amp; c<b title="&quot;&lt;&amp;">&quot;q&quot;</b></p>'


def test_names_of_strangers_are_texts_and_nothing_else(hostile):
    page = Parsed(page_of(hostile, unfilled={hostile: HOSTILE}))
    assert len(page.of("script")) == 3, "the data, uPlot, and our own"
    assert all(each["src"].startswith("data:image/") for each in page.of("img"))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    said = " ".join(text for texts in page.texts.values() for text in texts)
    assert said.count("document.title='owned'") > 10, "and they are there to be read"
    assert page.of("title") == [{}]


def test_only_what_is_hashed_may_run(hostile):
    page = Parsed(page_of(hostile))
    policy = next(each["content"] for each in page.of("meta") if "http-equiv" in each)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        shown = [
            content
            for content, attributes in zip(page.texts[tag], page.of(tag), strict=True)
            if attributes.get("type") != "application/json"
        ]
        hashed = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in shown]
        assert rules[rule].split() == [f"'sha256-{digest}'" for digest in hashed]
    assert not [attributes for _, attributes in page.elements if "style" in attributes], "no such rule lets them"


def test_numbers_of_the_page_are_those_of_the_files(tmp_path):
    """The data within it, read as JSON, has every value of metrics.jsonl and the very previews."""
    held_out = [{"step": step, "validation_loss": value} for step, value in ((2, 0.5), (4, 0.25))]
    folder = run_folder(tmp_path / "r", lines=[line(2), held_out[0], line(4), held_out[1]], previews=[2, 4])
    page = Parsed(page_of(folder))
    (run,) = json.loads(page.texts["script"][0])["runs"]
    assert run["curves"]["loss"] == {"step": [2, 4], "loss": [0.5, 0.25]}
    assert run["curves"]["held-out"] == {"step": [2, 4], "validation_loss": [0.5, 0.25]}
    assert run["curves"]["noise"]["noise0"] == [None, None]
    assert run["curves"]["noise"]["noise7"] == [3.5, 1.75]
    assert [step for step, _ in run["film"]] == [2, 4]
    shown = base64.b64decode(run["film"][1][1].partition(",")[2])
    assert shown == (folder / "samples" / "step-00000004.png").read_bytes()


@pytest.mark.long
def test_it_stays_below_four_megabytes(tmp_path):
    """Of pictures that no format makes small, many classes and many steps; of one run and of eight."""
    classes = {f"class {n} {'x' * 300}": n for n in range(2_000)}
    reasons = [[f"{n} {'y' * 3000}.png", "z" * 3000] for n in range(300)]
    begun = {"images": {"classes": classes, "reasons": reasons, "rejected": 5000, "notes": ["n" * 9000] * 99}}
    folders = []
    for n in range(8):
        folder = run_folder(tmp_path / f"run-{n}", lines=map(line, range(1, 2000)), previews=range(60), begun=begun)
        picture = noise(400)
        for path in folder.glob("samples/*.png"):
            path.unlink()
        picture.save(folder / "samples" / "step-00000000.png")
        for step in range(1, 60 if n == 0 else 2):
            (folder / "samples" / f"step-{step:08d}.png").hardlink_to(folder / "samples" / "step-00000000.png")
        for name in ("images.png", "nearest.png"):
            picture.save(folder / name)
        (folder / "evaluation.json").write_text(json.dumps({f"{'f' * 500}{k}": k for k in range(5000)}))
        fillings.keep(folder, {kind: noise(300, n) for n, kind in enumerate(MASK_KINDS)}, 60)
        folders.append(folder)
    for some in (folders[:1], folders):
        page = page_of(*some)
        assert page.count('alt="mask box"') == len(some)
        assert 1_000_000 < len(page.encode()) < 4_000_000
        frames = json.loads(Parsed(page).texts["script"][0])["runs"][0]["film"]
        assert len(frames) == (24 if len(some) == 1 else 4)
        assert frames[0][0] == 0
        assert frames[-1][0] == 59
        step = np.diff([number for number, _ in frames])
        assert step.max() - step.min() <= 1, "evenly"
        Image.open(io.BytesIO(base64.b64decode(frames[0][1].partition(",")[2]))).load()


GARBAGE = {
    "empty": b"", "binary": b"\xff\xfe\x00\x9f" * 40,
    "torn": b'{"step": 3, "loss"', "list": b"[]", "deep": b"[" * 99_999,
    "numbers": b'{"step": "3", "steps": [1], "state": 5, "images": 7, "environment": [], "loss_by_noise": 9}',
    "huge": b'{"step": 1' + b"0" * 400 + b', "steps": 1e999, "seconds": NaN, "images": {"sizes": {"a": [1e999, "b"]}}}',
    "nested": b'{"images": {"classes": {"a": [1]}, "reasons": [[1, 2], 3], "notes": [{}], "sizes": [], "images": "x"}}',
}  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize(
    "name",
    [
        "config.toml", "status.json", "metrics.jsonl", "begun.json", "evaluation.json", "images.png", "nearest.png",
        "fillings/step-00000001-wide.png",
    ],
)  # fmt: skip
def test_foreign_files_are_said_and_left_out(tmp_path, name, garbage):
    folder = run_folder(tmp_path / "r", lines=[line(1), line(2)], previews=[1], begun={})
    (folder / "fillings").mkdir()
    (folder / name).write_bytes(GARBAGE[garbage])
    page = Parsed(page_of(folder))
    assert page.texts["h1"] == ["Report of "]
    if garbage in ("binary", "torn", "deep"):
        assert any(Path(name).name in said for said in page.texts["li"] + page.texts.get("b", [])), "it says which"


@pytest.mark.parametrize("name", ["config.toml", "status.json", "metrics.jsonl", "begun.json", "evaluation.json"])
def test_a_folder_in_place_of_a_file_is_said(tmp_path, name):
    folder = run_folder(tmp_path / "r", previews=[1], begun={})
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    assert any(name in said or "options" in said for said in Parsed(page_of(folder)).texts["li"])


def test_a_torn_last_line_costs_that_line_alone(tmp_path):
    folder = run_folder(tmp_path / "r", lines=[line(1), line(2)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    run = run_reading.read(folder)
    assert [each["step"] for each in run.lines] == [1, 2]
    assert "metrics.jsonl: 1 of 3 lines cannot be read and are left out." in run.missing


def test_damaged_previews_are_counted(tmp_path):
    folder = run_folder(tmp_path / "r", lines=[line(1)], previews=[1, 2, 3])
    (folder / "samples" / "step-00000002.png").write_bytes(b"\x89PNG\r\n")
    (folder / "samples" / "notes.txt").write_text("of somebody")
    page = Parsed(page_of(folder))
    assert "1 of the previews cannot be read." in page.texts["li"]
    assert len(json.loads(page.texts["script"][0])["runs"][0]["film"]) == 2


def test_a_run_of_an_earlier_version_has_a_report_that_says_what_it_lacks():
    page = Parsed(page_of(FIXTURE))
    assert any("begun.json" in said for said in page.texts["li"])
    assert "done" in page.texts["span"]


def test_a_run_that_has_just_begun_has_one_too(tmp_path):
    folder = tmp_path / "r"
    (folder / "checkpoints").mkdir(parents=True)
    page = Parsed(page_of(folder))
    for name in ("status.json", "config.toml", "metrics.jsonl", "begun.json", "previews"):
        assert any(name in said for said in page.texts["li"]), name


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir])
def test_what_is_no_run_is_refused(tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(UsageError, match=r"no such folder|no run folder"):
        run_reading.read(tmp_path / "x")


def test_the_time_left_is_that_of_the_minutes_or_of_the_pace(tmp_path):
    by_minutes = run_folder(tmp_path / "a", lines=[line(10)], config="[train]\nminutes = 2\n")
    assert run_reading.read(by_minutes).seconds_left() == 120 - 5
    by_pace = run_folder(tmp_path / "b", lines=[line(10), line(20)])
    assert run_reading.read(by_pace).seconds_left() == (200 - 20) * 0.5
    early = [{name: value for name, value in line(step).items() if name != "seconds"} for step in (10, 20)]
    assert run_reading.read(run_folder(tmp_path / "c", lines=early)).seconds_left() == (200 - 20) * 4 / 8
    ended = run_folder(tmp_path / "d", lines=[line(10), line(20)], status={"state": "done", "step": 20})
    assert run_reading.read(ended).seconds_left() is None


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([3, 2, 1], "the least up to now"),
        ([3, 1, 1.5, 1.6, 1.7], "rising since step 2, where it was least, 1"),
        ([3, 1, 1.001, 1.002, 1.003], "least at step 2, 1."),
        ([-1, -2, -1.9, -1.8, -1.7], "rising since step 2, where it was least, -2"),
        ([3, 1, 1.5], "least at step 2, 1."),
    ],
)
def test_it_says_in_words_whether_the_held_out_loss_rises(tmp_path, losses, said):
    lines = [{"step": step, "validation_loss": loss} for step, loss in enumerate(losses, 1)]
    assert said in " ".join(run_curves.words(run_reading.read(run_folder(tmp_path / "r", lines=lines))))


def test_long_curves_are_means_of_neighbours_and_the_least_held_out_loss_stays(tmp_path):
    values = np.random.default_rng(0).random(4000) + 0.5
    lines = [line(n + 1, loss=float(value), validation_loss=float(value)) for n, value in enumerate(values)]
    drawn = run_curves.curves(run_reading.read(run_folder(tmp_path / "r", lines=lines)), 1)
    whole = values[: 4000 // 3 * 3].reshape(-1, 3)
    assert len(drawn["loss"]["loss"]) == 1334 <= run_curves.POINTS
    np.testing.assert_allclose(drawn["loss"]["loss"][:-1], whole.mean(1), rtol=1e-4)
    assert drawn["loss"]["step"][:2] == [3, 6]
    assert min(drawn["held-out"]["validation_loss"]) == pytest.approx(values.min(), rel=1e-4)


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [run_folder(tmp_path / each / "run", lines=[line(1)], previews=[1]) for each in "ab"]
    shown = [run["name"] for run in json.loads(Parsed(page_of(*folders)).texts["script"][0])["runs"]]
    assert shown == [str(folder) for folder in folders]


def test_no_name_ends_the_data_of_the_page(tmp_path):
    """Folders of one name are told apart by their paths, which have slashes."""
    folders = [run_folder(tmp_path / each / "script><script>run", lines=[line(1)]) for each in ("a<", "b<")]
    page = Parsed(page_of(*folders))
    assert len(page.of("script")) == 3
    assert [run["name"] for run in json.loads(page.texts["script"][0])["runs"]] == [str(folder) for folder in folders]


def test_figures_of_quality_are_a_table(tmp_path):
    folder = run_folder(tmp_path / "r", lines=[line(1)])
    (folder / "evaluation.json").write_text(json.dumps({"precision": 0.75, "excess": 1.25, "of": "words"}))
    cells = re.findall(r"<th scope=\"row\">(\w+)</th><td>([\d.]+)</td>", page_of(folder))
    assert cells == [("precision", "0.75"), ("excess", "1.25")]


def test_options_that_differ_are_listed_beside_the_defaults(tmp_path):
    page = page_of(run_folder(tmp_path / "r", lines=[line(1)]))
    assert '<th scope="row">--train.batch-size</th><td>4</td><td>chosen for you</td>' in page
    assert "--train.clip" not in page, "which is the default"
