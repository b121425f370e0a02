"""The JSON API of a model: /v1/classify, /v1/sample, /v1/likelihood and /healthz, described by /openapi.json and /docs."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI, File, Query, Request, UploadFile
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field
from torch import Tensor

from .. import __version__
from ..metrics.doubt import RISK
from ..model import COVERAGE
from .api_errors import answer_errors, refuse_other_methods, refuse_unknown
from .api_page import api_page
from .drawing import Wanted, draw
from .limits import BOUNDS, PICTURES, Caller, read_pictures
from .markup import png
from .service import Service


async def caller(request: Request) -> AsyncIterator[Caller]:
    """Whoever sent a request; they leave as they disconnect."""
    waiting = Caller()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        waiting.leave()

    watching = asyncio.create_task(watch())
    try:
        yield waiting
    finally:  # after a refusal too
        watching.cancel()


Pictures = Annotated[
    list[UploadFile], File(min_length=1, max_length=PICTURES, description="Image files of any format and size.")
]
FewPictures = Annotated[
    list[UploadFile], File(min_length=1, max_length=BOUNDS, description="Image files of any format and size.")
]
Client = Annotated[Caller, Depends(caller)]


class Answer(BaseModel):
    """The answers for one image."""

    label: str = Field(description="The most probable class.")
    probabilities: dict[str, float] = Field(description="The most probable classes, in descending order.")
    log_density: float = Field(description="Higher for images like the training images. It is a score, not a density.")
    familiarity: float | None = Field(description="Share of familiar images of lower log density; null if not measured yet.")
    abstains: bool | None = Field(
        description=f"Whether it is too unsure, if at most {RISK:.0%} of answers may be wrong; null if not calibrated for that."
    )
    set: list[str] | None = Field(description="Classes that hold the true one with this coverage; null if not calibrated.")
    coverage: float | None = Field(description="The probability that they do.")


class Classification(BaseModel):
    """The answers for all images, in the order of the request."""

    answers: list[Answer]
    compared_with: str | None = Field(description="The familiar images.")


class Likelihood(BaseModel):
    """How likely one image is."""

    log_density: float | None = Field(description="Of the classifier; null for a model without one.")
    bits_per_dim: float | None = Field(description="An upper bound, by the denoiser; null for a model without one.")


class Samples(BaseModel):
    """Generated images."""

    images: list[str] = Field(description="PNG files, in base64.")


class Health(BaseModel):
    """That the server answers, and how long its line is."""

    status: str
    model: str
    version: str
    in_line: int = Field(description="Requests that are answered or wait.")


class Problem(BaseModel):
    """What is wrong with a request, and the cure, in one line."""

    detail: str


def build_api(service: Service) -> FastAPI:
    """The API alone, without the page."""
    model = service.model
    app = FastAPI(
        title=f"hybvit: {service.name}",
        version=__version__,
        description="Images in, JSON out. Every error is an object with one line, its detail.",
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(refuse_unknown)],
        responses={413: {"model": Problem}, 422: {"model": Problem}, 503: {"model": Problem}},
    )
    answer_errors(app)

    @app.post("/v1/classify")
    def classify(
        image: Pictures,
        client: Client,
        top: Annotated[int, Query(ge=1, description="Classes in an answer.")] = 5,
        coverage: Annotated[float, Query(gt=0, lt=1, description="Of the sets, for a calibrated model.")] = COVERAGE,
    ) -> Classification:
        """Label images, and tell how familiar they are."""
        pixels = uploaded(service, image)
        found = service.desk.submit(lambda: service.classify(pixels, coverage), client).result()
        familiarity = service.familiarity([one.log_density for one in found])
        answers = [Answer(**one.record(model.classes, top), familiarity=f) for one, f in zip(found, familiarity, strict=True)]
        return Classification(answers=answers, compared_with=service.familiar and service.familiar.images)

    @app.post("/v1/sample")
    def sample(wanted: Wanted, client: Client) -> Samples:
        """Generate images."""
        pixels = service.desk.submit(lambda: draw(model, wanted), client).result()
        return Samples(images=[base64.b64encode(png(image[None])).decode() for image in pixels])

    @app.post("/v1/likelihood")
    def likelihood(image: FewPictures, client: Client) -> list[Likelihood]:
        """Bound the likelihood of images, which takes one evaluation of the network for each diffusion time."""
        pixels = uploaded(service, image)
        nothing = [None] * len(pixels)

        def work() -> list[Likelihood]:
            densities = [found.log_density for found in service.classify(pixels)] if model.has_classes else nothing
            bits = service.bits_per_dim(pixels) if model.has_denoiser else nothing
            return [Likelihood(log_density=d, bits_per_dim=b) for d, b in zip(densities, bits, strict=True)]

        return service.desk.submit(work, client).result()

    @app.get("/healthz")
    def health() -> Health:
        """Whether the server answers; it does not wait in line."""
        return Health(status="ok", model=service.name, version=__version__, in_line=service.desk.taken)

    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(api_page(app.openapi(), str(request.base_url).rstrip("/")))

    refuse_other_methods(app)
    return app


def uploaded(service: Service, files: list[UploadFile]) -> Tensor:
    return read_pictures(service.model, [(file.filename or "", file.file.read()) for file in files])
