"""Diffusion pipelines from compiled bundles, without PyTorch.

    import kiln

    pipe = kiln.Pipeline.from_pretrained("path/to/checkpoint or bundle")
    image = pipe("a red circle", seed=7).images[0]
    image.save("circle.png")
"""

from ._kiln import __version__
from .errors import BudgetError, Cancelled, DeviceError, FilesError, InputError, KilnError, RequestError
from .pipeline import Pipeline, PipelineOutput, compile

__all__ = [
    "BudgetError",
    "Cancelled",
    "DeviceError",
    "FilesError",
    "InputError",
    "KilnError",
    "Pipeline",
    "PipelineOutput",
    "RequestError",
    "__version__",
    "compile",
]
