"""Published claims about batch size, sharpness and generalization, as programs: one study per file.

`from experiments import sweep` trains a network and arrays at hand from Python or Jupyter.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from experiments.lab.sweep.in_process import sweep

__all__ = ["sweep"]


def __getattr__(name: str) -> object:
    """`sweep` once it is asked for: it brings torch."""
    if name != "sweep":
        raise AttributeError(f"module 'experiments' has no attribute {name!r}")
    from experiments.lab.sweep import in_process

    return in_process.sweep
