"""The routes of the page: what is asked for in JSON and bytes, by ids, and how it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import time
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from diffunet import build, names
from diffunet.commands.inpaint import as_typed
from diffunet.errors import Error, UsageError
from diffunet.inpainting import part
from diffunet.inpainting.pairs import Pair, pairs
from diffunet.web import manual, receiving, views
from diffunet.web.jobs import Full, Job, Jobs
from diffunet.web.pages import Pages
from diffunet.web.runs import NONE, Runs
from diffunet.web.store import Gone, Item
from diffunet.web.work import READING, Workshop, named

FILES = Path(__file__).parent / "page"

SHOWN = 60
"""Pictures of a folder that are listed at a time, if it is not said how many."""


class Site:
    """The page of one workshop, with its queue. `image` is the file that the page opens at first; `runs` are shown.

    `close` ends the jobs and deletes the temporary files.

    Raises:
        DataError, UsageError: the image cannot be filled in, or there are none in the folder.
    """

    def __init__(self, workshop: Workshop, image: Path | None = None, runs: Runs = NONE) -> None:
        self.workshop, self.store, self.limits = workshop, workshop.store, workshop.limits
        self.listed = [] if workshop.folder is None else pairs([workshop.folder], None, workshop.out)
        if image is not None:
            views.opened(image, self.limits.max_pixels)
        self.pages = Pages(self.told)
        self.jobs = Jobs(self.limits.max_jobs, self.pages.notify)
        self.first, self.runs = image, runs
        # Large pictures take gigabytes while they are decoded, so only one is at a time.
        self.decoding = anyio.CapacityLimiter(1)

    def close(self) -> None:
        """End all jobs, and delete all files."""
        self.pages.end()
        self.jobs.close()
        self.store.close()

    def told(self, job: Job) -> dict[str, Any]:
        """Return what a page is told of a job."""
        seconds = time.monotonic() - job.began if job.state == "running" else job.seconds
        return {
            "id": job.id, "kind": job.kind, "state": job.state, "position": self.jobs.position(job), "step": job.step,
            "steps": job.steps, "seconds": round(seconds, 2), "box": job.box,
            "previews": {str(number): step for number, (step, _) in list(job.previews.items())},
            "results": list(job.results), "said": job.said, "error": job.error, "command": job.command,
            "image": None, "mask": None, "files": job.files, **job.about,
        }  # fmt: skip

    def app(self) -> ASGIApp:
        """Return the application, without the guard in front of it."""
        get, post = ["GET"], ["POST"]
        routes: list[tuple[str, Callable[[Request], Awaitable[Response]], list[str]]] = [
            ("/", self.index, get),
            ("/health", self.health, get),
            ("/api/model", self.model, get),
            ("/api/pages", self.page, post),
            ("/api/events", self.events, get),
            ("/api/images", self.add_image, post),
            ("/api/images/{id}", self.image, get),
            ("/api/images/{id}/view", self.image_view, get),
            ("/api/images/{id}/hole", self.hole, post),
            ("/api/images/{id}/regions", self.regions, post),
            ("/api/masks", self.add_mask, post),
            ("/api/jobs", self.job_list, get),
            ("/api/jobs", self.add_job, post),
            ("/api/jobs/{id}", self.job, get),
            ("/api/jobs/{id}", self.cancel, ["DELETE"]),
            ("/api/jobs/{id}/previews/{number:int}", self.preview, get),
            ("/api/jobs/{id}/zip", self.zip, get),
            ("/api/results/{id}/view", self.result_view, get),
            ("/api/results/{id}/file", self.result_file, get),
            ("/api/results/{id}/save", self.save, post),
            ("/api/folder", self.folder, get),
            ("/api/folder/{number:int}/view", self.thumbnail, get),
            ("/api/runs", self.runs.listed, get),
            ("/api/runs/report", self.runs.report, get),
        ]
        handlers: Any = {Error: receiving.failed, HTTPException: receiving.refused}
        return Starlette(
            routes=[*(Route(path, answer, methods=how) for path, answer, how in routes), *manual.ROUTES,
                    Mount("/static", StaticFiles(directory=FILES))],
            exception_handlers=handlers, lifespan=self.lifespan,
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Watch for pages that have gone, and close the site at the end."""
        self.pages.loop = asyncio.get_running_loop()
        watching = asyncio.create_task(self._end_jobs_of_missed_pages())
        try:
            yield
        finally:
            watching.cancel()
            await run_sync(self.close)

    async def _end_jobs_of_missed_pages(self) -> None:
        while True:
            await asyncio.sleep(2)
            for page in self.pages.missed():
                for job in self.jobs.of(page):
                    if job.page == page and not job.over:
                        self.jobs.cancel(job)

    async def index(self, request: Request) -> Response:
        """Answer with the page itself."""
        return FileResponse(FILES / "index.html")

    async def health(self, request: Request) -> Response:
        """Say that the server is there."""
        return JSONResponse({"ok": True})

    async def model(self, request: Request) -> Response:
        """Say what the model is and can do, and what this server allows."""
        workshop, limits, config = self.workshop, self.limits, self.workshop.pipe.config
        image = None
        if self.first is not None:
            with contextlib.suppress(Error):  # it may be gone by now
                image = _image(await self._own(self.first))
        trained = config.diffusion.task == "inpaint"
        return JSONResponse({
            "name": workshop.model, "image_size": workshop.pipe.image_size, "channels": workshop.pipe.channels,
            "classes": workshop.pipe.class_names, "trained": trained, "weaker": workshop.pipe.weaker is not None,
            "methods": ["auto", *(name for name in names.METHODS if trained or name != "trained")],
            "fits": names.INPAINT_FITS, "samplers": names.SAMPLERS, "steps": config.diffusion.sample_steps,
            "sampler": config.diffusion.sampler, "saves": workshop.out is not None,
            "limits": {"body": limits.max_body * 10**6, "pixels": limits.max_pixels, "jobs": limits.max_jobs,
                       "fillings": limits.max_fillings, "pictures": limits.max_generated},
            "out": workshop.out and workshop.out.name, "image": image,
            "folder": None if workshop.folder is None else {"count": len(self._listed())},
            "runs": self.runs is not NONE,
        })  # fmt: skip

    async def page(self, request: Request) -> Response:
        """Give a page its id, or confirm the one that it has."""
        return JSONResponse({"page": self.pages.open((await receiving.json_of(request)).get("page"))}, 201)

    async def events(self, request: Request) -> Response:
        """Stream what changes in a page's jobs."""
        page = self._page(request.query_params.get("page"))
        return StreamingResponse(self.pages.stream(page, self.jobs.of(page)), media_type="text/event-stream")

    async def add_image(self, request: Request) -> Response:
        """Take in a picture: the body, a result, or one of the folder; or say whether one is still known."""
        asked = request.query_params
        if "known" in asked:
            try:
                return JSONResponse(_image(self.store.get("image", asked["known"])))
            except Gone:
                return Response(status_code=204)
        if "result" in asked:
            result = self.store.get("result", asked["result"])
            with self.store.using(result):
                path = self.store.new_path(result.path.suffix)
                await run_sync(shutil.copyfile, result.path, path)
            item = await self._image_of(path, result.name)
        elif "folder" in asked:
            item = await self._own(self._pair(asked["folder"]).image)
        else:
            path = await receiving.file(request, self.store, self.limits)
            item = await self._image_of(path, None)
        return JSONResponse(_image(item), 201)

    async def _image_of(self, path: Path, name: str | None) -> Item:
        """Take in the file of a picture, which is deleted if it is none."""
        try:
            return self.store.add("image", path, name, **await self._facts(path, name))
        except Error:
            path.unlink(missing_ok=True)
            raise

    async def _own(self, path: Path) -> Item:
        """Return the item of a file of the person's own; it is another once the file has changed."""
        try:
            id = hashlib.sha256(f"{path} {path.stat().st_mtime_ns}".encode()).hexdigest()[:16]
        except OSError:
            raise Gone(f"{path.name} is not there any more") from None
        with contextlib.suppress(Gone):
            return self.store.get("image", id)
        facts = await self._facts(path, path.name)
        return self.store.add("image", path, path.name, owned=False, id=id, **facts)

    async def _facts(self, path: Path, name: str | None) -> dict[str, Any]:
        """Return what is known of a picture once it is decoded, see `views.facts`."""

        def read() -> dict[str, Any]:
            picture = views.opened(path, self.limits.max_pixels)
            return views.facts(picture, build.ranges(self.workshop.pipe.config.data))

        try:
            return await run_sync(read, limiter=self.decoding)
        except Error as error:
            raise type(error)(as_typed(str(error).replace(str(path), name or "the picture"))) from None

    async def image(self, request: Request) -> Response:
        """Say what a picture is."""
        return JSONResponse(_image(self.store.get("image", request.path_params["id"])))

    async def image_view(self, request: Request) -> Response:
        """Show a picture at the size at which its mask is drawn."""
        return await self._view(request, "image")

    async def result_view(self, request: Request) -> Response:
        """Show a result, at the size of its picture's view."""
        return await self._view(request, "result")

    async def _view(self, request: Request, kind: str) -> Response:
        item = self.store.get(kind, request.path_params["id"])
        size = item.about.get("mask", item.about)

        def make() -> bytes:
            picture = views.opened(item.path, self.limits.max_pixels)
            return views.png(picture, size["width"], size["height"], item.about.get("range"))

        path = await self._decoded(request, self.store.view, item, "view", make)
        return FileResponse(path, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    async def hole(self, request: Request) -> Response:
        """Say how a mask is understood for a picture, or what of it is transparent."""
        asked, image = await receiving.json_of(request), self.store.get("image", request.path_params["id"])
        mask = None if asked.get("mask") is None else self.store.get("mask", asked["mask"])
        invert, most = asked.get("invert") is True, self.limits.max_pixels
        work = partial(views.hole, image.path, mask.path if mask else None, invert, most, **image.about["mask"])
        found = await self._with_files(request, image, mask, work)
        return JSONResponse(found | {"said": [as_typed(named(line, image, mask)) for line in found["said"]]})

    async def regions(self, request: Request) -> Response:
        """Say which regions of a picture the net will see."""
        asked, image = await receiving.json_of(request), self.store.get("image", request.path_params["id"])
        mask = None if asked.get("mask") is None else self.store.get("mask", asked["mask"])
        checked = self.workshop.checked_filling(given if isinstance(given := asked.get("options"), dict) else {})
        reading = {name: checked[name] for name in READING if name in checked and (mask or name != "resize_mask")}

        def found() -> dict[str, Any]:
            masked = part.read(image.path, mask and mask.path, max_pixels=self.limits.max_pixels, **reading)
            parts = part.parts_for(self.workshop.pipe.config.data, masked, checked.get("fit", "auto"))
            corners = [(one.region.corners, one.region.fit) for one in parts]
            shown = [dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)) | {"fit": fit} for box, fit in corners]
            return {"regions": shown, "pixels": int(masked.hole.sum())}

        return JSONResponse(await self._with_files(request, image, mask, found))

    async def _with_files(self, request: Request, image: Item, mask: Item | None, work: Callable[[], Any]) -> Any:
        """Do what decodes files, see `_decoded`; errors name the files as a person does."""
        with self.store.using(image, mask):
            try:
                return await self._decoded(request, work)
            except Error as error:
                raise type(error)(as_typed(named(str(error), image, mask))) from None

    async def _decoded(self, request: Request, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do what decodes files, in a thread, unless the browser has given up while others had their turn."""
        async with self.decoding:
            if await request.is_disconnected():
                raise HTTPException(408, "nobody waits for the answer any more")
            return await run_sync(work, *arguments)

    async def add_mask(self, request: Request) -> Response:
        """Take in the file of a mask; the same bytes have the same id."""
        path = await receiving.file(request, self.store, self.limits)
        digest = hashlib.sha256(await run_sync(path.read_bytes)).hexdigest()[:32]
        return JSONResponse({"id": self.store.add("mask", path, id=digest).id}, 201)

    async def add_job(self, request: Request) -> Response:
        """Put a job into the queue."""
        asked = await receiving.json_of(request)
        if not isinstance(given := asked.get("options", {}), dict):
            raise HTTPException(400, "options is an object")
        page = self._page(asked.get("page"))
        mask = None if asked.get("mask") is None else self.store.get("mask", asked["mask"])
        if (kind := asked.get("kind")) == "fill":
            job = self.workshop.fill(page, self.store.get("image", asked.get("image")), mask, given)
        elif kind == "generate":
            job = self.workshop.generate(page, given)
        elif kind == "folder":
            if mask is None:
                raise UsageError("all pictures are filled where one mask is white, and there is none")
            job = self.workshop.fill_folder(mask, given)
        else:
            raise HTTPException(400, "kind is fill, generate or folder")
        try:
            self.jobs.submit(job)
        except Full:
            job.ended()
            raise
        return JSONResponse(self.told(job), 202)

    async def job_list(self, request: Request) -> Response:
        """Say what jobs a page has."""
        page = self._page(request.query_params.get("page"))
        return JSONResponse({"jobs": [self.told(job) for job in self.jobs.of(page)]})

    async def job(self, request: Request) -> Response:
        """Say how far a job is."""
        return JSONResponse(self.told(self._job(request)))

    async def cancel(self, request: Request) -> Response:
        """End a job."""
        job = self._job(request)
        self.jobs.cancel(job)
        return JSONResponse(self.told(job))

    async def preview(self, request: Request) -> Response:
        """Show what a picture of a job looks like now."""
        number = request.path_params["number"]
        if (found := self._job(request).previews.get(number)) is None:
            return Response(status_code=204)  # the job has just ended
        return Response(found[1], media_type="image/png")

    async def zip(self, request: Request) -> Response:
        """Give all results of a job in one file."""
        job = self._job(request)
        found = [self.store.get("result", result["id"]) for result in job.results]
        if not found:
            raise Gone("there are no results of it")
        path = self.store.new_path(".zip")

        def packed() -> Item:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # pictures are compressed themselves
                for item in found:
                    archive.write(item.path, item.name)
            return self.store.add("zip", path, "pictures.zip")

        with self.store.using(*found):
            item = await run_sync(packed)
        return FileResponse(item.path, filename=item.name)

    async def result_file(self, request: Request) -> Response:
        """Give the file of a result."""
        item = self.store.get("result", request.path_params["id"])
        # Without a name: a browser would take it in place of the page's, which knows what the picture is called.
        return FileResponse(item.path, headers={"Content-Disposition": "attachment"})

    async def save(self, request: Request) -> Response:
        """Write a result into the folder of --out."""
        result = self.store.get("result", request.path_params["id"])
        with self.store.using(result):
            return JSONResponse({"name": await run_sync(self.workshop.save, result)})

    async def folder(self, request: Request) -> Response:
        """List pictures of the folder."""
        listed = self._listed()
        start, count = (receiving.number(request, name, usual) for name, usual in (("start", 0), ("count", SHOWN)))
        chosen = range(start, min(start + min(count, 1000), len(listed)))
        some = [{"number": number, "name": listed[number].image.name} for number in chosen]
        return JSONResponse({"count": len(listed), "images": some})

    async def thumbnail(self, request: Request) -> Response:
        """Show a picture of the folder, small."""
        pair = self._pair(request.path_params["number"])
        small = await self._decoded(request, views.thumbnail, pair.image, self.limits.max_pixels)
        return Response(small, media_type="image/png")

    def _page(self, id: object) -> str:
        if not isinstance(id, str) or id not in self.pages:
            raise Gone("there is no such page; the server may have been started anew")
        return id

    def _pair(self, number: object) -> Pair:
        listed = self._listed()
        if not str(number).isdecimal() or len(str(number)) > 9 or int(str(number)) >= len(listed):
            raise Gone("there is no such picture in the folder")
        return listed[int(str(number))]

    def _listed(self) -> list[Pair]:
        if self.workshop.folder is None:
            raise Gone("the command names no folder")
        return self.listed

    def _job(self, request: Request) -> Job:
        job = self.jobs.get(request.path_params["id"])
        if job is None:
            raise Gone("there is no such job any more")
        return job


def _image(item: Item) -> dict[str, Any]:
    """Return what a page is told of a picture."""
    return {"id": item.id, "name": item.name} | {name: value for name, value in item.about.items() if name != "range"}
