from collections.abc import Callable, Sequence
from typing import Any, Optional, final

__all__ = ["Engine", "__version__", "compile"]
__version__: str

_Picture = tuple[int, int, bytes]

@final
class Engine:
    def __new__(
        cls,
        path: str,
        device: Optional[str] = None,
        threads: Optional[int] = None,
        onnxruntime: Optional[str] = None,
    ) -> Engine: ...
    @property
    def path(self) -> str: ...
    @property
    def notices(self) -> list[str]: ...
    def generate(
        self,
        request: str,
        init: Optional[_Picture] = None,
        mask: Optional[_Picture] = None,
        strength: Optional[float] = None,
        controls: Sequence[tuple[_Picture, Optional[float], float, float]] = ...,
        on_step: Optional[Callable[[int, Optional[float], tuple[list[int], bytes]], bool]] = None,
    ) -> tuple[list[_Picture], tuple[float, float, float], tuple[list[int], bytes]]: ...
    def plan(self, request: str, budget: Optional[int] = None) -> str: ...
    def set_memory(self, options: str) -> None: ...
    def set_loras(self, loras: Sequence[tuple[str, float]]) -> list[str]: ...
    def add_controlnet(self, path: str) -> None: ...
    def add_embedding(self, path: str, token: Optional[str] = None) -> str: ...
    def release(self) -> None: ...

def compile(
    checkpoint: str,
    target: str = "cpu",
    precision: Optional[str] = None,
    engine_cache: Optional[str] = None,
) -> str: ...
