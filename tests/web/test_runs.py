"""The runs that the page shows: which ones, to whom, and that a report has no part in the page."""

import os
import shutil
from pathlib import Path

import pytest
from helpers.run_folders import line, run_folder
from helpers.web import told

from diffunet.errors import UsageError
from diffunet.evaluation import run_page, run_reading
from diffunet.web.runs import Runs


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Three runs below `runs` of the folder that the page is served from, the third the newest; and what is no run."""
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("third", "second", "first")):
        path = run_folder(
            tmp_path / "runs" / name, lines=[line(5)], status={"state": "done", "step": 5000, "steps": 9000}
        )
        os.utime(path, (10**9 - age, 10**9 - age))
    (tmp_path / "runs" / "photos").mkdir()
    (tmp_path / "runs" / "notes.txt").write_text("of somebody")
    return tmp_path / "runs"


def listed(client):
    """Return the ids of runs by their names, as a page is told of them."""
    return {run["name"]: run["id"] for run in told(client.get("/api/runs"))["runs"]}


def test_runs_below_the_working_directory_are_listed_the_newest_first(asking, runs):
    client = asking(model="emoji")
    assert told(client.get("/api/model"))["runs"] is True
    found = told(client.get("/api/runs"))
    assert [(run["name"], run["about"]) for run in found["runs"]] == [
        (name, "done, step 5,000 of 9,000") for name in ("third", "second", "first")
    ]
    assert found["most"] == run_page.MOST
    run_folder(runs / "fourth")
    assert next(iter(listed(client))) == "fourth", "they are looked for anew"


def test_a_model_that_is_a_run_is_one_of_them_and_once(asking, runs, run):
    assert listed(asking(model=str(run)))[run.name]
    assert len(listed(asking(model=str(runs / "first")))) == 3


def test_where_others_reach_it_only_runs_that_are_named_are_shown(asking, page, runs):
    shared = page(host="0.0.0.0", model=str(runs / "first"))
    assert shared.site.runs.paths() == {}
    assert len(page(host="0.0.0.0", model="emoji", runs=runs).site.runs.paths()) == 3
    with pytest.raises(UsageError, match=r"--runs .*no such folder"):
        page(runs=runs / "nowhere")


def test_a_run_that_begins_later_is_listed(asking, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    client = asking(model="emoji")
    assert told(client.get("/api/model"))["runs"] is True
    assert told(client.get("/api/runs"))["runs"] == []
    Path("runs/later").mkdir(parents=True)
    Path("runs/later/status.json").write_text("{}")
    assert [each["name"] for each in told(client.get("/api/runs"))["runs"]] == ["later"]


def test_a_run_that_is_deleted_meanwhile_is_left_out(asking, runs, monkeypatch):
    client = asking(model="emoji")
    gone, paths = listed(client)["first"], Runs.paths

    def then_deleted(self):
        found = paths(self)
        shutil.rmtree(runs / "first", ignore_errors=True)
        return found

    monkeypatch.setattr(Runs, "paths", then_deleted)
    assert sorted(each["name"] for each in told(client.get("/api/runs"))["runs"]) == ["second", "third"]
    answer = client.get("/api/runs/report", params={"ids": gone})
    assert answer.status_code == 404
    assert str(runs) not in answer.text


def test_a_report_is_that_of_the_command_as_the_run_is_now(asking, runs):
    client = asking(model="emoji")
    ids = listed(client)

    def same(*names):
        shown = client.get("/api/runs/report", params={"ids": ",".join(ids[name] for name in names)})
        made = run_page.page([run_reading.read((runs / name).resolve()) for name in names])
        return without_time(shown.text) == without_time(made) and shown.headers["content-type"].startswith("text/html")

    assert same("first")
    assert same("second", "third")
    (runs / "first" / "metrics.jsonl").write_text('{"step": 7777}\n')
    assert same("first")


def without_time(page):
    return page.partition("Written ")[0] + page.partition("Written ")[2].partition("by diffunet")[2]


def test_the_policy_of_a_report_is_its_own_and_stricter(asking, runs):
    """It may run the scripts of its own policy, and nothing else; in a sandbox, so cookies are out of its reach."""
    client = asking(model="emoji", frame="http://localhost:8888")
    answer = client.get("/api/runs/report", params={"ids": listed(client)["first"]})
    [policy] = answer.headers.get_list("content-security-policy")
    assert policy == (f"{run_page.policy()}; sandbox allow-scripts; frame-ancestors 'self' http://localhost:8888")
    assert "'self'" not in policy.partition("frame-ancestors")[0]
    assert answer.headers["cache-control"] == "no-store"
    assert "frame-src 'self'" in client.get("/").headers["content-security-policy"]


@pytest.mark.parametrize("ids", ["", ",", "nothing", "../first", "first", "/etc", "%2e%2e", "0" * 16])
def test_ids_of_runs_are_no_paths(asking, runs, ids):
    client = asking(model="emoji")
    answer = client.get("/api/runs/report", params={"ids": ids})
    assert answer.status_code in (404, 422)
    assert str(runs) not in answer.text
    there = listed(client)["first"]
    assert client.get("/api/runs/report", params={"ids": f"{there},{ids}"}).status_code in (404, 422)


def test_a_report_is_of_eight_runs_at_most_each_once(asking, runs):
    client = asking(model="emoji")
    for n in range(run_page.MOST):
        run_folder(runs / f"more-{n}")
    ids = list(listed(client).values())
    for some, status in ((ids[:8], 200), (ids[:9], 422), (ids[:1] * 2, 422)):
        assert client.get("/api/runs/report", params={"ids": ",".join(some)}).status_code == status


def test_a_run_that_is_gone_is_said(asking, runs):
    client = asking(model="emoji")
    there = listed(client)["first"]
    (runs / "first").rename(runs.parent / "elsewhere")
    answer = client.get("/api/runs/report", params={"ids": there})
    assert (answer.status_code, answer.json()["error"]) == (404, "there is no such run, or it is gone")
