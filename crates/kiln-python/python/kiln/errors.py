"""Why a call failed."""


class KilnError(Exception):
    """An engine failed, or something that should not happen did. ``hint`` says what may help, where that is known."""

    def __init__(self, message: str, hint: "str | None" = None) -> None:
        super().__init__(message if hint is None else f"{message} (hint: {hint})")
        self.hint = hint


class RequestError(KilnError, ValueError):
    """A parameter is wrong, alone or for this model."""


class InputError(KilnError, ValueError):
    """A checkpoint, bundle, LoRA or picture is missing, malformed or not supported."""


class DeviceError(KilnError, RuntimeError):
    """A native library, driver or device cannot be found or used."""


class FilesError(KilnError, OSError):
    """A file cannot be read or written."""


class BudgetError(KilnError, MemoryError):
    """What was asked for does not fit into the memory budget or a device."""


class Cancelled(KilnError):
    """The call was stopped."""
