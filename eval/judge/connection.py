"""The connection to a judge: what a server answers is bounded, and holds neither key nor redirect.

- On loopback no proxy of the environment stands between; elsewhere the one that the environment
  names for that host when the connection is made.
- Wherever the server repeats the key (an error's text, a reply), `HIDDEN` stands in its place: what
  is read here ends in logs, caches and results.
- A redirect would take the prompts to another address: it is refused, as is an answer that does not
  end.
"""

from __future__ import annotations

import ipaddress
import urllib.request
from urllib.parse import urlsplit

import httpx2
import openai

from eval.judge import JudgeError

HIDDEN = "***"
"""In place of the judge's key."""

_SECRET_FROM = 8
"""A shorter key is no secret but a word that replies may hold, such as `none`."""

_MOST_BYTES = 8 << 20
"""Of an answer; a chat completion has thousands."""
_MOST_BYTES_OF_A_FILE = 1 << 30
"""Of a batch's file of 20,000 replies."""


class Misdirected(openai.OpenAIError):
    """The server sends elsewhere; the SDK does not ask again."""


class Endless(openai.OpenAIError):
    """An answer longer than any that was asked for; the SDK does not ask again."""


def is_loopback(url: str) -> bool:
    """Whether a URL is of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for a URL now; None on loopback.

    Which variable counts is as for other clients: that of the URL's scheme, else ALL_PROXY, unless
    NO_PROXY names the host.
    """
    parts = urlsplit(url)
    if is_loopback(url) or urllib.request.proxy_bypass(parts.netloc):
        return None
    proxies = urllib.request.getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all")
    return found if not found or "://" in found else f"http://{found}"


def connect(
    base_url: str,
    api_key: str,
    *,
    proxy: str | None,
    timeout_seconds: float = 600.0,
    max_retries: int = openai.DEFAULT_MAX_RETRIES,
) -> openai.OpenAI:
    """The SDK's client, through `proxy`; raises `JudgeError` for a proxy that cannot be used."""
    try:
        transport = httpx2.HTTPTransport(limits=openai.DEFAULT_CONNECTION_LIMITS, proxy=proxy)
    # SOCKS needs a package that is not installed; other schemes are none of a proxy.
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        scheme = str(proxy).partition("://")[0]
        raise JudgeError(
            f"the environment names a {scheme}:// proxy for {base_url}, which cannot be used "
            f"({str(error).partition('.')[0]}): set HTTPS_PROXY to an http:// proxy, or NO_PROXY "
            "to the judge's host"
        ) from error
    return openai.OpenAI(
        base_url=base_url,
        api_key=api_key,
        timeout=timeout_seconds,
        max_retries=max_retries,
        http_client=openai.DefaultHttpxClient(
            transport=_Guarded(transport, api_key), trust_env=False, follow_redirects=False
        ),
        # Packed, a short answer could become an endless one.
        default_headers={"Accept-Encoding": "identity"},
    )


class _Guarded(httpx2.BaseTransport):
    """Hands on whole answers only: of bounded length, from where was asked, without the key."""

    def __init__(self, transport: httpx2.BaseTransport, api_key: str) -> None:
        self._transport = transport
        self._secrets: tuple[bytes, ...] = ()
        if len(api_key) >= _SECRET_FROM:
            # As it stands, and as some servers write it within JSON.
            self._secrets = tuple({api_key.encode(), api_key.replace("/", "\\/").encode()})

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self._transport.handle_request(request)
        try:
            if response.is_redirect:
                place = urlsplit(response.headers.get("Location", ""))
                to = self._hidden(place.netloc.rpartition("@")[2].encode()) or b"another path"
                raise Misdirected(
                    f"{request.url.host} redirects to {to.decode('utf-8', 'replace')}, which is "
                    "not asked: set judge.base_url to the judge's own address"
                )
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise Endless(f"{request.url.host} packs its answers, though asked not to")
            content = self._read(request, response)
        finally:
            response.close()
        headers = [
            (name, self._hidden(value))
            for name, value in response.headers.raw
            if name.lower() not in (b"content-length", b"transfer-encoding")
        ]
        return httpx2.Response(
            response.status_code,
            headers=headers,
            content=self._hidden(content),
            extensions=response.extensions,
        )

    def _read(self, request: httpx2.Request, response: httpx2.Response) -> bytes:
        most = _MOST_BYTES_OF_A_FILE if request.url.path.endswith("/content") else _MOST_BYTES
        content = bytearray()
        for chunk in response.iter_raw():
            content += chunk
            if len(content) > most:
                raise Endless(f"{request.url.host} answers with more than {most:,} bytes")
        return bytes(content)

    def _hidden(self, text: bytes) -> bytes:
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN.encode())
        return text

    def close(self) -> None:
        self._transport.close()
