"""The real gcloud without its slow start: one process loads it once, and forks for each call.

A call of gcloud takes 1.2 s; a second of that is Python and its imports. This program runs under
gcloud's own Python, imports gcloud once, and answers on a Unix socket, one call at a time. For each
call it forks. The fork takes the caller's arguments, folder and standard streams, and runs gcloud's
`main`. Afterwards this process imports what the call had to import, so that the next one need not.

Usage: gcloud_server.py SDK_ROOT SOCKET
"""

import contextlib
import importlib
import json
import os
import socket
import sys
from types import ModuleType

_REQUEST_BYTES = 1 << 20


def _load(sdk_root: str) -> ModuleType:
    """Import gcloud's main module in the same way as its own launcher."""
    sys.path.insert(0, f"{sdk_root}/lib")
    launcher = importlib.import_module("gcloud")
    sys.path = launcher.reorder_sys_path(sys.path)
    launcher._fix_google_module()
    return importlib.import_module("googlecloudsdk.gcloud_main")


def _call(main: ModuleType, request: bytes, streams: list[int], report: int) -> None:
    """Make one call, in the forked process. Writes its status and its imports as JSON."""
    before = set(sys.modules)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    arguments, folder = json.loads(request)
    sys.argv = ["gcloud", *arguments]
    os.chdir(folder)
    status: object = 1
    try:
        main.main()
        status = 0
    except SystemExit as left:
        status = left.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        imported = sorted(set(sys.modules) - before)
        os.write(report, json.dumps([status, imported]).encode())
        os._exit(0)


def _serve(main: ModuleType, path: str) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    while True:
        caller, _ = server.accept()
        request, streams, _, _ = socket.recv_fds(caller, _REQUEST_BYTES, 3)
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            _call(main, request, streams, writer)
        for descriptor in (writer, *streams):
            os.close(descriptor)
        with open(reader, "rb") as report:  # noqa: PTH123 - a descriptor
            status, imported = json.loads(report.read() or b"[1, []]")
        os.waitpid(child, 0)
        caller.sendall(bytes([status]))
        caller.close()
        for name in imported:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


if __name__ == "__main__":
    _serve(_load(sys.argv[1]), sys.argv[2])
