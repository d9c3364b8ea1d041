"""The engine. Use the package's names, not these."""

from typing import (
    Any,
    Callable,
    Dict,
    Generic,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
    Union,
    final,
)
from types import GenericAlias

from typing_extensions import disjoint_base

_T = TypeVar("_T")
_Seconds = Union[int, float]

version: str

@disjoint_base
class Future(Generic[_T]):
    def __init__(self) -> None: ...
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...
    def add_done_callback(self, fn: Callable[[Any], object]) -> None: ...
    def cancel(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def done(self) -> bool: ...
    def exception(self, timeout: Optional[_Seconds] = None) -> Optional[BaseException]: ...
    def result(self, timeout: Optional[_Seconds] = None) -> _T: ...
    def running(self) -> bool: ...
    def set_exception(self, exception: Optional[BaseException]) -> None: ...
    def set_result(self, result: _T) -> None: ...
    def set_running_or_notify_cancel(self) -> bool: ...
    @property
    def pid(self) -> Optional[int]: ...
    _condition: Any
    _done_callbacks: Any
    _exception: Any
    _result: Any
    _state: str
    _waiters: Any

@disjoint_base
class MapFuture(Future[MapResults[_T]]): ...

@final
class MapResults(Generic[_T]):
    def __iter__(self) -> Iterator[_T]: ...
    def __next__(self) -> _T: ...
    def __length_hint__(self) -> int: ...
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...

@disjoint_base
class Pool:
    def __init__(
        self,
        threads: bool,
        max_workers: int,
        max_tasks: int,
        initializer: Optional[Callable[..., object]],
        initargs: Optional[Iterable[Any]],
        name: Optional[str],
        start_method: Optional[str],
        command: Optional[List[str]],
        data: Optional[bytes],
        termination_grace: Optional[_Seconds],
        initializer_timeout: Optional[_Seconds],
        /,
    ) -> None: ...
    def close(self) -> None: ...
    def join(self, timeout: Optional[_Seconds] = None) -> None: ...
    def map(
        self,
        function: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        chunksize: Union[int, float] = 1,
        timeout: Optional[_Seconds] = None,
    ) -> Any: ...
    def schedule(
        self,
        function: Callable[..., Any],
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] = {},
        timeout: Optional[_Seconds] = None,
    ) -> Any: ...
    def stop(self) -> None: ...
    @property
    def active(self) -> bool: ...
    @property
    def pids(self) -> List[int]: ...

def at_exit() -> None: ...
def run_process(
    function: Callable[..., Any],
    args: Tuple[Any, ...],
    kwargs: Optional[Dict[str, Any]],
    timeout: Optional[_Seconds],
    name: Optional[str],
    start_method: str,
    command: Optional[List[str]],
    data: Optional[bytes],
    /,
) -> Any: ...
def run_thread(
    function: Callable[..., Any],
    args: Tuple[Any, ...],
    kwargs: Optional[Dict[str, Any]],
    name: Optional[str],
    /,
) -> Any: ...
def serve(problem: Optional[str], executed_each: bool, /) -> None: ...
def set_types(
    *,
    ProcessFuture: Type[Any],
    ThreadFuture: Type[Any],
    MapFuture: Type[Any],
    ProcessMapFuture: Type[Any],
    ProcessExpired: Type[BaseException],
    RemoteTraceback: Type[BaseException],
) -> None: ...
def worker_data() -> Optional[bytes]: ...
