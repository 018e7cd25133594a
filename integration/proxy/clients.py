"""Clients that nobody here wrote: curl, nghttp, and Python's websockets."""

import asyncio
import re
import subprocess

WAIT = 60  # seconds: nothing takes this long unless it hangs


class Answer:
    """What curl printed: the last header block, those before it (1xx), the body."""

    def __init__(self, output, code):
        self.code, self.interim = code, []
        head = b""
        while output.startswith(b"HTTP/"):
            head, _, output = output.partition(b"\r\n\r\n")
            self.interim.append(head.decode("latin-1"))
        self.head = self.interim.pop() if self.interim else ""
        self.body = output
        words = self.head.split()
        self.protocol, self.status = (words[0], int(words[1])) if len(words) > 1 else ("", 0)

    def headers(self, name):
        """All values of a field, in order."""
        fields = (line.partition(":") for line in self.head.splitlines()[1:])
        return [value.strip() for field, _, value in fields if field.lower() == name.lower()]

    def header(self, name):
        """The only value of a field; None when it is absent."""
        values = self.headers(name)
        assert len(values) <= 1, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None

    @property
    def node(self):
        """Which node's application answered."""
        return self.header("App-Node")

    @property
    def token(self):
        """The transaction this answer stands for."""
        token = self.header("Litefs-Txid")
        return int(token[:16], 16) if token else None

    def __repr__(self):
        return f"<exit {self.code} {self.head!r} {self.body[:200]!r}>"


def curl(url, *arguments, data=None, space=None):
    """One request; `space` is a network namespace to send it from."""
    inside = ["ip", "netns", "exec", space] if space else []
    command = [*inside, "curl", "-sS", "-i", "--noproxy", "*", "--max-time", str(WAIT), *arguments, url]
    done = subprocess.run(command, input=data, stdin=None if data is not None else subprocess.DEVNULL,
                          capture_output=True, timeout=WAIT + 30)
    return Answer(done.stdout, done.returncode)


def start_curl(url, *arguments):
    """A request in the background; `answer` waits for it."""
    command = ["curl", "-sS", "-i", "-N", "--noproxy", "*", "--max-time", str(WAIT), *arguments, url]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def answer(process):
    """The answer of a request in the background."""
    output, _ = process.communicate(timeout=WAIT + 30)
    return Answer(output, process.returncode)


def nghttp(url, *arguments):
    """Status and body of requests over one HTTP/2 connection with prior knowledge."""
    done = subprocess.run(["nghttp", "-v", "--no-dep", *arguments, url], capture_output=True, text=True, timeout=WAIT,
                          stdin=subprocess.DEVNULL)
    return [int(status) for status in re.findall(r":status: (\d+)", done.stdout)], done.stdout


def websocket(url, messages):
    """Greeting and echoes of a WebSocket."""
    import websockets

    async def talk():
        async with websockets.connect(url, max_size=None, open_timeout=WAIT) as socket:
            greeting = await asyncio.wait_for(socket.recv(), WAIT)
            echoes = []
            for message in messages:
                await asyncio.wait_for(socket.send(message), WAIT)
                echoes.append(await asyncio.wait_for(socket.recv(), WAIT))
            await asyncio.wait_for(await socket.ping(), WAIT)
            return greeting, echoes

    return asyncio.run(talk())
