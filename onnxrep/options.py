"""What a caller may ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnxrep.report import records


@dataclass(frozen=True)
class ModelOptions:
    """How a model is treated, alone or as one of many; see :class:`Options`."""

    verify: bool = True
    provider: str = "cpu"
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    input_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    input_data: Path | None = None
    allow_unverified: bool = False
    inline_functions: bool = False
    external_data: bool = False
    follow_symlinks: bool = False
    hf_cache: bool = False
    custom_ops_lib: Sequence[Path] = ()


@dataclass(frozen=True)
class Options(ModelOptions):
    """How a model is treated.

    Attributes:
        verify: run the end-to-end check.
        provider: ``cpu`` or ``cuda``, where both models run for the check.
        input_shapes: input name -> shape, for inputs with dynamic dimensions.
        input_ranges: input name -> smallest and largest value that it will get; inputs that the model itself declares
            as images have the range of its metadata.
        input_data: a ``.npz`` file with inputs to check on besides the random ones.
        allow_unverified: write a model also if the check could not decide.
        inline_functions: replace calls of local functions by their bodies, so that what is in them can fold;
            a model in which nothing folds stays as it was.
        external_data: write all weights into a data file beside the model.
        follow_symlinks: write through an output path that is a symbolic link.
        hf_cache: read models in a Hugging Face cache, whose files are links: follow those that stay inside the
            repository's own cache folder.
        custom_ops_lib: libraries of custom ops for ONNX Runtime. They are code that runs, so name only trusted ones.
        threads: for ONNX Runtime; 0 leaves it to choose, and means one thread where times are taken.
        bench: time original and result side by side, and put it in the report.
        tune: time regions where the price may be wrong, as they were and folded, and take what is faster.
        tune_cache: folder for the times of regions; None: where the platform keeps caches.
        only_nodes: patterns as of :mod:`fnmatch` for names of nodes or of their outputs: a region folds only if one of
            its nodes matches one; empty for all.
        exclude_nodes: the same for nodes that stay as they are; what is around them folds without them.
        kinds: kinds of folds that are made (``merge``, ``fuse``, ``move``); empty for all.
        select: is given the record of each fold, proven and not yet made, and says whether to make it.

    """

    threads: int = 0
    bench: bool = False
    tune: bool = False
    tune_cache: Path | None = None
    only_nodes: Sequence[str] = ()
    exclude_nodes: Sequence[str] = ()
    kinds: Sequence[str] = ()
    select: Callable[[records.Fold], bool] | None = None
