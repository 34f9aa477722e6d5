"""A small OpenID Connect provider over http: discovery, keys, tokens, and a page where `person` agrees at once."""

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey, OctKey

CLIENT, SECRET = "plaudit-client", "the client's secret"


class FakeProvider:
    """`grant` what the person at the browser would: the code for an address that the browser was sent to."""

    def __init__(self, port: int, host: str):
        self.issuer = f"http://{host}:{port}"
        self.person: dict[str, Any] = {}
        self.key = ECKey.generate_key("P-256", {"kid": "one"})
        self.codes: dict[str, dict[str, Any]] = {}

    def grant(self, address: str, **claims: Any) -> dict[str, str]:
        """What the browser comes back with; `claims` are those of the ID token, None leaves one out."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        assert query["response_type"] == "code" and query["code_challenge_method"] == "S256"
        assert set(query["scope"].split()) == {"openid", "email"}
        now = int(time.time())
        told = {"iss": self.issuer, "aud": CLIENT, "sub": "s-1", "iat": now, "exp": now + 60, "nonce": query["nonce"]}
        code = secrets.token_urlsafe(8)
        self.codes[code] = {"query": query, "claims": {k: v for k, v in (told | claims).items() if v is not None}}
        return {"code": code, "state": query["state"]}

    def token(self, form: dict[str, str], authorization: str) -> dict[str, Any] | None:
        """The answer of the token endpoint; None refuses: a code works once, with secret and verifier."""
        kept = self.codes.pop(form.get("code", ""), None)
        given = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        if kept is None or authorization.removeprefix("Basic ") != given:
            return None
        challenge = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        if base64.urlsafe_b64encode(challenge).rstrip(b"=").decode() != kept["query"]["code_challenge"]:
            return None
        if form.get("redirect_uri") != kept["query"]["redirect_uri"]:
            return None
        claims = kept["claims"]
        signed_by = claims.pop("signed_by", "key")
        if signed_by == "client":  # with what others have, too
            made = jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET))
        else:
            key = self.key if signed_by == "key" else ECKey.generate_key("P-256", {"kid": "one"})
            made = jwt.encode({"alg": "ES256", "kid": "one"}, claims, key)
        return {"access_token": "a", "token_type": "Bearer", "id_token": made}

    @property
    def discovery(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "id_token_signing_alg_values_supported": ["ES256", "HS256", "none"],
        }


@contextmanager
def fake_provider(host: str = "127.0.0.1") -> Iterator[FakeProvider]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/authorize?"):
                granted = provider.grant(self.path, **provider.person)
                back = provider.codes[granted["code"]]["query"]["redirect_uri"]
                self.send_response(303)
                self.send_header("Location", f"{back}?{urlencode(granted)}")
                self.end_headers()
                return
            pages = {"/.well-known/openid-configuration": provider.discovery}
            pages["/keys"] = {"keys": [provider.key.as_dict(private=False)]}
            self._say(pages.get(self.path))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            self._say(provider.token(form, self.headers.get("Authorization", "")), refused=400)

        def _say(self, answer: dict[str, Any] | None, refused: int = 404) -> None:
            data = json.dumps({"error": "invalid_grant"} if answer is None else answer).encode()
            self.send_response(refused if answer is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider = FakeProvider(server.server_address[1], host)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield provider
    server.shutdown()
    server.server_close()
    thread.join()
