"""Sign-in by an organisation's OpenID Connect provider, by Authlib: the authorization code flow with PKCE.

What Authlib checks of the ID token (OpenID Connect Core 1.0, 3.1.3.7): the signature by the provider's published keys,
issuer, audience, time and nonce. Here is what it is told, and what of the answer is believed.
"""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from authlib.integrations.base_client import BaseApp, OAuthError
from authlib.integrations.base_client.sync_app import OAuth2Mixin
from authlib.integrations.base_client.sync_openid import OpenIDMixin
from authlib.integrations.httpx_client import OAuth2Client
from httpx2 import HTTPError, HTTPStatusError
from joserfc.errors import JoseError

from plaudit.errors import UserError
from plaudit.label.identities import Identity

_SECONDS = 10.0
_DISCOVERY = "/.well-known/openid-configuration"


class NotSignedIn(RuntimeError):
    """The provider did not say who it is, or said it in a way that is not to be believed."""


class _App(OAuth2Mixin, OpenIDMixin, BaseApp):  # type: ignore[misc]
    client_cls = OAuth2Client


@dataclass(frozen=True)
class Begun:
    """A sign-in that was begun: where the browser goes, and what must fit when it comes back."""

    url: str
    state: str
    nonce: str
    code_verifier: str


class Provider:
    """One provider. `domains`: whose addresses get an account by signing in."""

    def __init__(self, issuer: str, client: str, secret: str, domains: tuple[str, ...] = ()):
        parts = urlsplit(issuer)
        here = parts.hostname in ("localhost", "127.0.0.1", "::1")
        if not parts.hostname or (parts.scheme != "https" and not (parts.scheme == "http" and here)):
            raise UserError(f"--oidc {issuer!r}: write the provider's issuer, https://HOST or https://HOST/PATH")
        self.issuer, self.client, self.domains = issuer.rstrip("/"), client, domains
        self.name = parts.hostname
        kwargs = {"scope": "openid email", "code_challenge_method": "S256", "timeout": _SECONDS}
        self._app = _App(
            None,
            "oidc",
            client_id=client,
            client_secret=secret,
            server_metadata_url=self.issuer + _DISCOVERY,
            client_kwargs=kwargs,
        )

    def look(self) -> str | None:
        """Ask the provider for its settings. What is wrong if it cannot be reached now; UserError for what will not
        mend itself."""
        try:
            self._metadata()
        except HTTPStatusError as error:
            raise UserError(
                f"--oidc {self.issuer}: {_DISCOVERY} is answered with {error.response.status_code}; is it the issuer?"
            ) from error
        except NotSignedIn as error:
            raise UserError(f"--oidc {self.issuer}: {error}") from error
        except HTTPError as error:
            return f"{self.issuer} cannot be reached ({error}); nobody can sign in by it until it can"
        return None

    def begin(self, back: str) -> Begun:
        """A new sign-in; `back` is where the provider sends the browser afterwards."""
        try:
            self._metadata()
            made = self._app.create_authorization_url(back)
        except (HTTPError, OAuthError) as error:
            raise NotSignedIn(str(error)) from error
        return Begun(made["url"], made["state"], made["nonce"], made["code_verifier"])

    def finish(self, code: str, back: str, nonce: str, code_verifier: str) -> Identity:
        """Who it is, for the code that the browser came back with. NotSignedIn otherwise."""
        try:
            metadata = self._metadata()
            token = self._app.fetch_access_token(redirect_uri=back, code=code, code_verifier=code_verifier)
            # Authlib would take another audience where the token was made for us (azp); we take our own alone.
            wanted = {"iss": metadata["issuer"], "aud": self.client}
            options = {name: {"essential": True, "value": value} for name, value in wanted.items()}
            claims = self._app.parse_id_token(token, nonce=nonce, claims_options=options)
        # ValueError: what is no JSON, or no key; KeyError: what is JSON and no answer.
        except (HTTPError, OAuthError, JoseError, ValueError, KeyError) as error:
            raise NotSignedIn(f"{type(error).__name__}: {error}") from error
        if claims is None or not isinstance(claims.get("sub"), str) or not claims["sub"]:
            raise NotSignedIn("the provider's answer has no ID token with a subject")
        email = claims.get("email")
        verified = isinstance(email, str) and claims.get("email_verified") is True
        return Identity(self.issuer, claims["sub"], email if verified else None)

    def _metadata(self) -> dict[str, Any]:
        """The provider's settings, asked for once; NotSignedIn where they are another one's."""
        found: dict[str, Any] = self._app.load_server_metadata()
        if str(found.get("issuer", "")).rstrip("/") != self.issuer:
            raise NotSignedIn(f"its issuer is {found.get('issuer')!r}; write that")
        # Keys alone sign: neither nothing, nor the client's secret, which others than the provider have.
        signed = found.get("id_token_signing_alg_values_supported") or ["RS256"]
        found["id_token_signing_alg_values_supported"] = [
            name for name in signed if name[:2] in ("RS", "ES", "PS", "Ed")
        ]
        return found
