"""ONNX Runtime sessions: one place for levels, providers, threads and the errors that they raise."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxrep import files
from onnxrep.errors import ProviderUnavailable, UsageError
from onnxrep.proof.errors import CannotRun

Level = Literal["off", "all"]
Feeds = Mapping[str, NDArray[Any]]
NO_FEEDS: Feeds = {}

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_LEVELS = {"off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL, "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL}
_FATAL = 4
_NO_MEMORY = re.compile("bad_alloc|bad allocation|allocate memory")

ort.set_default_logger_severity(_FATAL)


@dataclass(frozen=True)
class Runtime:
    """Where models run.

    Attributes:
        provider: ``cpu`` or ``cuda``.
        threads: per session; 0 leaves it to ONNX Runtime.
        tf32: whether CUDA may round operands of convolutions to 10 bits of mantissa.
        custom_ops: libraries that hold custom ops; loading one runs its code.

    """

    provider: str = "cpu"
    threads: int = 0
    tf32: bool = False
    custom_ops: tuple[Path, ...] = ()

    def check(self) -> None:
        """Make sure that the provider is there and is really used, and that the libraries can be loaded.

        Raises:
            UsageError: a library of custom ops is missing or none.
            ProviderUnavailable: it is unknown, not in this build of ONNX Runtime, or falls back to another.

        """
        if self.provider not in PROVIDERS:
            raise ProviderUnavailable(f"unknown provider {self.provider!r}; known: {', '.join(PROVIDERS)}")
        name = PROVIDERS[self.provider]
        if name not in ort.get_available_providers():
            raise ProviderUnavailable(
                f"provider {self.provider!r} was asked for, but this onnxruntime has only "
                f"{', '.join(ort.get_available_providers())}; install onnxruntime-gpu or use --provider cpu"
            )
        for path in self.custom_ops:
            try:
                ort.SessionOptions().register_custom_ops_library(str(path.resolve(strict=True)))
            except Exception as error:  # noqa: BLE001  ONNX Runtime raises what it likes
                why = "no such file" if isinstance(error, FileNotFoundError) else first_line(error)
                raise UsageError(f"--custom-ops-lib {path}: {why}") from None
        if self.provider != "cpu":
            self.session(_probe(), "off")

    def session(
        self,
        model: onnx.ModelProto | bytes | Path,
        level: Level,
        folder: files.Folder | None = None,
        *,
        reuse_memory: bool = True,
        alone: bool = False,
        flush: bool = False,
        profile: Path | None = None,
        weights: Feeds = NO_FEEDS,
        defaults: Feeds = NO_FEEDS,
    ) -> Session:
        """Return a session; external data of a model that is no path is looked for in the root of ``folder``.

        ``reuse_memory=False`` spares graphs of many thousand nodes ONNX Runtime's quadratic planning of buffers; with
        ``alone`` no node may be left to the CPU instead of the provider. ``flush`` makes zeros of denormal numbers,
        which cost the CPU a hundred times as much as others. With ``profile``, the time of each node is written to a
        file whose path begins so; :meth:`Session.profile` ends it. ``weights``: initializers that the model declares
        as external data, by name; they are used where they are, not copied. ``defaults``: what inputs get that are not
        fed.

        Raises:
            CannotRun: ONNX Runtime does not load the model.
            MemoryError: there is not enough memory for it.
            ProviderUnavailable: the session does not use the provider.

        """
        options = ort.SessionOptions()
        options.graph_optimization_level = _LEVELS[level]
        options.intra_op_num_threads = self.threads
        options.log_severity_level = _FATAL
        options.enable_mem_reuse = reuse_memory
        if alone:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if flush:
            options.add_session_config_entry("session.set_denormal_as_zero", "1")
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        if folder is not None:
            if level == "off":  # packing copies every weight; as it is, ONNX Runtime maps it
                options.add_session_config_entry("session.disable_prepacking", "1")
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.root))
        name = PROVIDERS[self.provider]
        settings: dict[str, Any] = {}
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in weights.items()}
        for initializer, value in values.items():
            options.add_initializer(initializer, value)  # alone it would be looked for in a file as well
        options.add_external_initializers(list(values), list(values.values()))
        if self.provider == "cuda":
            settings = {"use_tf32": int(self.tf32), "cudnn_conv_algo_search": "HEURISTIC"}
        try:
            for path in self.custom_ops:
                options.register_custom_ops_library(str(path.resolve()))
            data = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
            session = ort.InferenceSession(data, options, providers=[(name, settings)])
        except Exception as error:  # noqa: BLE001  ONNX Runtime raises what it likes
            raise _fault(error) from None
        if name not in session.get_providers():
            raise ProviderUnavailable(
                f"provider {self.provider!r} was asked for, but ONNX Runtime fell back to "
                f"{', '.join(session.get_providers())}; check the CUDA and cuDNN libraries"
            )
        return Session(session, self.provider, (weights, values), defaults)


class Session:
    """A loaded model."""

    def __init__(self, session: Any, provider: str = "cpu", kept: object = None, defaults: Feeds = NO_FEEDS) -> None:
        """``kept``: what must live as long as the session; ``defaults``: what inputs get that are not fed."""
        self._session, self._device, self._kept, self._defaults = session, provider, kept, defaults
        self._options = ort.RunOptions()
        self._options.log_severity_level = _FATAL
        self.inputs, self.overridable = (
            tuple((i.name, i.type, tuple(i.shape or ())) for i in found)
            for found in (session.get_inputs(), session.get_overridable_initializers())
        )
        self.outputs: tuple[str, ...] = tuple(o.name for o in session.get_outputs())

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the outputs by name.

        Raises:
            CannotRun: the model does not accept these inputs.
            MemoryError: there is not enough memory for it.

        """
        names = list(self.outputs if outputs is None else outputs)
        try:
            results = self._session.run(names, {**self._defaults, **feeds}, self._options)
            return dict(zip(names, results, strict=True))
        except Exception as error:  # noqa: BLE001  ONNX Runtime raises what it likes
            raise _fault(error) from None

    def stop(self) -> None:
        """End the runs that go on: they raise CannotRun, and so will others."""
        self._options.terminate = True

    def repeatable(self, feeds: Feeds) -> Callable[[], None]:
        """Return a call that runs the model once on these inputs, which lie on the device; outputs stay there too.

        The call raises what :meth:`run` does.
        """
        binding = self._session.io_binding()
        for name, values in feeds.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(values, self._device, 0))
        for name in self.outputs:
            binding.bind_output(name, self._device)

        def once() -> None:
            try:
                self._session.run_with_iobinding(binding)
                binding.synchronize_outputs()
            except Exception as error:  # noqa: BLE001  ONNX Runtime raises what it likes
                raise _fault(error) from None

        return once

    def profile(self) -> Path:
        """End the profile and return the file that holds it."""
        return Path(self._session.end_profiling())


def _fault(error: Exception) -> Exception:
    """Return what an exception of ONNX Runtime is called here: want of memory says nothing about the model."""
    line = first_line(error)
    return MemoryError(line) if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) else CannotRun(line)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, without ONNX Runtime's prefix."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].removeprefix("[ONNXRuntimeError] : ")[:300]


def _probe() -> bytes:
    """Return a model of one node, to see whether a provider can be started."""
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph(
        [node], "probe", [value("x", onnx.TensorProto.FLOAT, [1])], [value("y", onnx.TensorProto.FLOAT, [1])]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data
