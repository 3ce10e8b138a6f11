"""A process that has imported what the commands need, and forks one for every call of `vlmkit`.

`python forks.py SOCKET WORK` builds the inputs in WORK/inputs and then serves. The command that it puts into WORK/bin
sends its arguments, folder, environment and streams to it, and ends with the code that comes back.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

# Packages of others alone, and none with threads: the modules of vlmkit are imported by each call itself.
PRELOAD = """
numpy PIL.Image PIL.ImageDraw PIL.JpegImagePlugin PIL.PngImagePlugin orjson typer rich.console rich.table tqdm
safetensors.numpy safetensors.torch tokenizers torch faiss httpx2 openai jsonschema rapidfuzz
transformers.models.auto.processing_auto transformers.models.auto.modeling_auto transformers.trainer
transformers.models.llava.modeling_llava transformers.models.llama.modeling_llama timm open_clip peft accelerate trl
transformers.models.clip.modeling_clip transformers.models.bert.modeling_bert transformers.models.blip.modeling_blip
transformers.models.qwen2_5_vl.modeling_qwen2_5_vl transformers.models.qwen2_5_vl.processing_qwen2_5_vl
transformers.models.clip.image_processing_clip transformers.models.qwen2_vl.image_processing_qwen2_vl
matplotlib.backends.backend_agg matplotlib.figure tomli_w onnxscript onnx
""".split()  # noqa: SIM905
CLIENT = """#!{python} -IS
import json, os, socket, sys
request = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({path!r})
    socket.send_fds(connection, [b"."], [0, 1, 2])
    connection.sendall(json.dumps(request).encode())
    connection.shutdown(socket.SHUT_WR)
    sys.exit(int(connection.recv(16) or 255))
"""
TERMINAL = """#!{python} -IS
import os, pty, sys
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))
"""


def serve(path: str, work: Path) -> None:
    """Fork a command for each connection, until this process is ended."""
    for name in PRELOAD:
        importlib.import_module(name)
    builder = os.fork()
    if builder == 0:
        _and_exit(lambda: _build(work / "inputs"))
    if os.waitpid(builder, 0)[1]:
        sys.exit("the inputs could not be built")
    for name, text in (("vlmkit", CLIENT), ("terminal", TERMINAL)):
        script = work / "bin" / name
        script.write_text(text.format(python=sys.executable, path=path))
        script.chmod(0o755)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the processes that wait need no waiting for
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    sys.path.pop(0)  # this folder: the commands must not find its modules
    gc.collect()
    gc.freeze()  # what is imported already need not be looked through
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _handle(connection, work)
        connection.close()


def _build(folder: Path) -> None:
    import fixed_inputs
    import tiny_models

    os.dup2(2, 1)  # standard output says when all is ready
    fixed_inputs.build(folder)
    tiny_models.build(folder / "models")
    fixed_inputs.fix_times(folder)


def _handle(connection: socket.socket, work: Path) -> NoReturn:
    """Fork the command and send its code back."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(b"".join(iter(lambda: connection.recv(1 << 16), b"")))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        connection.close()
        _and_exit(lambda: _command(request, streams, work))
    for stream in streams:
        os.close(stream)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    connection.sendall(str(code if code >= 0 else 128 - code).encode())
    os._exit(0)


def _command(request: dict, streams: list[int], work: Path) -> None:
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    tempfile.tempdir = None  # that of this environment
    sys.argv = ["vlmkit", *request["arguments"]]
    sys.dont_write_bytecode, sys.pycache_prefix = False, str(work / "compiled")
    from vlmkit.__main__ import run

    run()


def _and_exit(do: Callable[[], None]) -> NoReturn:
    """Do it and end the process with the code of its SystemExit, without tearing down all that is imported."""
    code = 0
    try:
        do()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
