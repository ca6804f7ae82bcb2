"""What a client asks: the body of a request, checked, and what is wrong with it in words.

Letters: b candidates, h events of the history.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError

from em3_jax.core.errors import nearest
from em3_jax.serving.field_values import LONGEST_ECHO
from em3_jax.serving.served_model import Asked, Model, Scores

SAID = {
    "missing": "missing, it has to be there",
    "list_type": "give a list",
    "dict_type": "give an object, name -> value",
    "bool_type": "give true or false",
    "too_short": "give at least one",
    "int_parsing": "give a whole number",
    "model_type": "the body is no JSON object; give one with candidates, and user, history, ...",
}
"""What pydantic finds wrong -> what to say of it, where its own words are not plain."""


class ScoreRequest(BaseModel):
    """The body of POST /score; ids and values are of any JSON type but lists and objects."""

    model_config = ConfigDict(extra="forbid")

    user: Any = None
    history: list[Any] = Field(default_factory=list)
    candidates: Annotated[list[Any], Field(min_length=1)]
    context: dict[str, Any] = Field(default_factory=dict)
    history_fields: dict[str, list[Any]] = Field(default_factory=dict)
    time: Any = None
    history_times: list[Any] | None = None
    strict: StrictBool | None = None


def score(model: Model, asked: ScoreRequest, seen: list[Asked] | None = None) -> Scores:
    """What a model answers; `seen` takes what its programs were asked."""
    return model.score(
        asked.user,
        asked.history,
        asked.candidates,
        context=asked.context,
        history_fields=asked.history_fields,
        time=asked.time,
        history_times=asked.history_times,
        strict=asked.strict,
        seen=seen,
    )


def parse(body: bytes) -> ScoreRequest:
    """A request that is JSON; refused with status 400 where it is none, 422 where it is no such request."""
    try:
        return ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        status = 400 if problems[0]["type"] == "json_invalid" else 422
        raise HTTPException(status, first_problem(problems, tuple(ScoreRequest.model_fields))) from None


def first_problem(problems: Sequence[Mapping[str, Any]], known: Sequence[str]) -> str:
    """ "history: give a list"; a name that is wrong goes before what is missing for it.

    Args:
      problems: as pydantic tells them.
      known: the names that there are.
    """
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    where = ".".join(str(part) for part in problem["loc"] if part != "query")
    if problem["type"] == "extra_forbidden":
        return no_such(where, known)
    said = SAID.get(problem["type"]) or problem["msg"].replace("Input should be", "has to be")
    return f"{where[:LONGEST_ECHO]}: {said}" if where else said


def no_such(name: str, known: Sequence[str]) -> str:
    """That there is no field of that name, and which may be meant."""
    name = name[:LONGEST_ECHO]
    return f"{name}: no such field; {nearest(name, known)}"


def checked(given: Mapping[str, Any]) -> ScoreRequest:
    """A request of parts; refused with status 422 where it is none."""
    try:
        return ScoreRequest.model_validate(given)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise HTTPException(422, first_problem(problems, tuple(ScoreRequest.model_fields))) from None
