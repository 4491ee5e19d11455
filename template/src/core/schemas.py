"""Base class of request and response bodies."""

from pydantic import BaseModel, ConfigDict


class Schema(BaseModel):
    """Body of a request or response. NaN and infinity are refused, because they are not JSON."""

    model_config = ConfigDict(allow_inf_nan=False)
