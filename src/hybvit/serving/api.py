"""The JSON API of a model: /v1/classify, /v1/sample, /v1/likelihood and /healthz, described by /openapi.json and /docs."""

from __future__ import annotations

import base64
from typing import Annotated, Any

from fastapi import FastAPI, File, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field
from torch import Tensor

from .. import __version__
from ..errors import DivergedError
from .api_page import api_page
from .drawing import Wanted, draw
from .limits import BOUNDS, PICTURES, Busy, read_pictures
from .markup import png
from .service import COVERAGE, Service

RETRY_AFTER = 2  # seconds

Pictures = Annotated[
    list[UploadFile], File(min_length=1, max_length=PICTURES, description="Image files of any format and size.")
]
FewPictures = Annotated[
    list[UploadFile], File(min_length=1, max_length=BOUNDS, description="Image files of any format and size.")
]


class Answer(BaseModel):
    """The answers for one image."""

    label: str = Field(description="The most probable class.")
    probabilities: dict[str, float] = Field(description="The most probable classes, in descending order.")
    log_density: float = Field(description="Higher for images like the training images. It is a score, not a density.")
    familiarity: float | None = Field(description="Share of familiar images of lower log density; null if not measured yet.")
    set: list[str] | None = Field(description="Classes that hold the true one with this coverage; null if not calibrated.")


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
        responses={413: {"model": Problem}, 422: {"model": Problem}, 503: {"model": Problem}},
    )
    answer_errors(app)

    @app.post("/v1/classify")
    def classify(
        image: Pictures,
        top: Annotated[int, Query(ge=1, description="Classes in an answer.")] = 5,
        coverage: Annotated[float, Query(gt=0, lt=1, description="Of the sets, for a calibrated model.")] = COVERAGE,
    ) -> Classification:
        """Label images, and tell how familiar they are."""
        answers = []
        for found in service.classify(uploaded(service, image), coverage):
            first = sorted(range(len(found.probabilities)), key=found.probabilities.__getitem__, reverse=True)[:top]
            answers.append(
                Answer(
                    label=model.classes[found.label],
                    probabilities={model.classes[k]: found.probabilities[k] for k in first},
                    log_density=found.log_density,
                    familiarity=found.familiarity,
                    set=None if found.held is None else [model.classes[k] for k in found.held],
                )
            )
        return Classification(answers=answers, compared_with=service.familiar and service.familiar.images)

    @app.post("/v1/sample")
    def sample(wanted: Wanted) -> Samples:
        """Generate images."""
        pixels = service.desk.submit(lambda: draw(model, wanted)).result()
        return Samples(images=[base64.b64encode(png(image[None])).decode() for image in pixels])

    @app.post("/v1/likelihood")
    def likelihood(image: FewPictures) -> list[Likelihood]:
        """Bound the likelihood of images, which takes one evaluation of the network for each diffusion time."""
        pixels = uploaded(service, image)
        nothing = [None] * len(pixels)
        densities = [found.log_density for found in service.classify(pixels)] if model.has_classes else nothing
        bits = service.bits_per_dim(pixels) if model.has_denoiser else nothing
        return [Likelihood(log_density=d, bits_per_dim=b) for d, b in zip(densities, bits, strict=True)]

    @app.get("/healthz")
    def health() -> Health:
        """Whether the server answers; it does not wait in line."""
        return Health(status="ok", model=service.name, version=__version__, in_line=service.desk.taken)

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(api_page(app.openapi()))

    return app


def uploaded(service: Service, files: list[UploadFile]) -> Tensor:
    return read_pictures(service.model, [(file.filename or "", file.file.read()) for file in files])


def answer_errors(app: FastAPI) -> None:
    """Let every error be one line of JSON."""

    def answer(status: int, words: str, **headers: str) -> JSONResponse:
        return JSONResponse({"detail": " ".join(words.split())}, status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: Any) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(part for part in first["loc"][1:] if isinstance(part, str))
        return answer(422, f"{field or 'the request'}: {first['msg']}")

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Exception) -> JSONResponse:
        return answer(503, str(error), **{"Retry-After": str(RETRY_AFTER)})

    @app.exception_handler(ValueError)  # of which ConfigError and DataError are kinds
    async def refused(request: Request, error: Exception) -> JSONResponse:
        return answer(422, str(error))

    @app.exception_handler(DivergedError)
    async def diverged(request: Request, error: Exception) -> JSONResponse:
        return answer(500, str(error))
