"""How many connections one may hold, and how long without asking: else idle ones would take every file handle."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from ceit.limits import CONNECTIONS, CONNECTIONS_A_CLIENT, IDLE_SECONDS


class Connection(H11Protocol):
    """A connection of uvicorn that is cut at once if there are too many, and later if nothing is asked on it."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        host = (self.client or ("",))[0]
        own = [one for one in self.connections if isinstance(one, Connection) and (one.client or ("",))[0] == host]
        if len(self.connections) > CONNECTIONS.value or len(own) > CONNECTIONS_A_CLIENT.value:
            transport.abort()
        else:
            self._look_later(None)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()  # which holds this connection, and all that was asked on it

    def _look_later(self, before: Any) -> None:
        self._timer = self.loop.call_later(IDLE_SECONDS.value, self._look, before)

    def _look(self, before: Any) -> None:
        """``before`` is the last request that was there at the look before this one; of a connection that closes, how
        much of the answer had not been taken."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if self.transport.is_closing():
            left = self.transport.get_write_buffer_size()
            if left == before:
                self.transport.abort()  # nobody takes the rest
            else:
                self._look_later(left)
        elif self.cycle is before and not is_answering:
            self.transport.abort()
        else:
            self._look_later(self.cycle)
