"""A server that only writes down who came."""

import socket
import threading


class Listener:
    """A proxy, or any server, that writes down the first line of what comes and answers nothing."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                self.lines.append(connection.recv(200).split(b"\r\n")[0])
