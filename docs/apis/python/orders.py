"""An API that accepts access tokens of one issuer. PyJWT verifies them."""
import json
import os
import re
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import jwt

PORT, ISSUER, AUDIENCE = int(os.environ["PORT"]), os.environ["ISSUER"], os.environ["AUDIENCE"]


class Refused(Exception):
    """The response to a request without a valid token (RFC 6750 section 3). It has no part of the token."""

    def __init__(self, status, error=None, scope=None):
        self.status = status
        self.headers = {"Cache-Control": "no-store", "Content-Length": "0"}
        if status == 503:
            self.headers["Retry-After"] = "5"
        else:
            self.headers["WWW-Authenticate"] = "Bearer" + (f' error="{error}"' if error else "") + (f', scope="{scope}"' if scope else "")


INVALID_TOKEN = 401, "invalid_token"


class NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args):  # only the issuer itself names its keys
        return None


class Keys:
    """The issuer's keys.

    The URL of the keys is in the issuer's metadata. Both are fetched with the first token, so that
    this API can start while the issuer is down.
    """

    client = None
    lock = threading.Lock()  # guards client

    def find(self, kid):
        try:
            with self.lock:
                self.client = self.client or self.connect()
            self.client.get_signing_keys()  # fails only if there are no keys at all
        except Exception:
            raise Refused(503)  # the token may be valid
        try:
            return self.client.get_signing_key(kid)
        except jwt.PyJWKClientConnectionError:
            raise Refused(503)
        except jwt.PyJWKClientError:
            raise Refused(*INVALID_TOKEN)

    def connect(self):
        url = ISSUER.removesuffix("/") + "/.well-known/openid-configuration"
        with urllib.request.build_opener(NoRedirects).open(url, timeout=5) as response:
            metadata = json.load(response)
        if metadata["issuer"] != ISSUER:
            raise ValueError("the metadata is of another issuer")
        # An unknown kid causes another fetch, at most one in 30 s: a client can invent a kid.
        return jwt.PyJWKClient(metadata["jwks_uri"], lifespan=600, timeout=5, cooldown_duration=30)


keys = Keys()


def verify(token):
    """Returns the claims of a valid token (RFC 9068 section 4)."""
    try:
        if not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", token, re.ASCII):  # PyJWT ignores padding
            raise Refused(*INVALID_TOKEN)
        key = keys.find(jwt.get_unverified_header(token).get("kid"))
        decoded = jwt.decode_complete(
            token,
            key,  # only for the algorithm that it is published for
            algorithms=["RS256", "PS256", "ES256", "EdDSA"],  # no HMAC: the public key would be the secret
            issuer=ISSUER,
            audience=AUDIENCE,
            leeway=30,
            options={"require": ["exp", "iat", "sub", "client_id", "jti"], "enforce_minimum_key_length": True},
        )
    except jwt.PyJWTError:
        raise Refused(*INVALID_TOKEN)
    header, claims = decoded["header"], decoded["payload"]
    if (
        str(header.get("typ")).lower().removeprefix("application/") != "at+jwt"  # not an ID token or logout token
        or header.keys() & {"crit", "b64", "zip"}  # PyJWT supports b64
        or not all(isinstance(claims[name], str) and claims[name] for name in ("sub", "client_id", "jti"))
        or not all(isinstance(claims.get(name, 0), (int, float)) for name in ("exp", "nbf", "iat"))  # PyJWT accepts "1"
        or not all(isinstance(scope, str) for scope in scopes(claims))
        or "cnf" in claims  # bound to a key, and this API verifies no proof
    ):
        raise Refused(*INVALID_TOKEN)
    return claims


def scopes(claims):
    """Returns the scope as a list. Some providers send a list."""
    scope = claims.get("scope", "")
    return scope if isinstance(scope, list) else [scope]


class API(BaseHTTPRequestHandler):
    def authorize(self, query, scope):
        """Returns the claims of the request's token if it is valid and has the scope."""
        sent = self.headers.get_all("Authorization", [])
        if not sent:
            raise Refused(401)
        if len(sent) > 1 or "access_token" in parse_qs(query, keep_blank_values=True):  # one token, in one place (section 2)
            raise Refused(400, "invalid_request")
        if sent[0].split(" ")[0].lower() != "bearer":
            raise Refused(401)
        token = re.fullmatch(r"Bearer +([\w.~+/-]+=*)", sent[0], re.ASCII | re.IGNORECASE)
        if not token:
            raise Refused(400, "invalid_request")
        claims = verify(token[1])
        if scope not in " ".join(scopes(claims)).split(" "):  # "read" is not in "readwrite"
            raise Refused(403, "insufficient_scope", scope)
        return claims

    def do_GET(self):
        url = urlsplit(self.path)
        if url.path != "/orders":
            return self.respond(404, {"Content-Length": "0"})
        try:
            claims = self.authorize(url.query, "orders:read")
        except Refused as refused:
            return self.respond(refused.status, refused.headers)
        body = json.dumps({"sub": claims["sub"], "orders": []}).encode()
        self.respond(200, {"Content-Type": "application/json", "Cache-Control": "no-store", "Content-Length": str(len(body))}, body)

    def respond(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):  # the query may contain a token
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", PORT), API)  # behind a TLS proxy
    print("listening on", server.server_port, flush=True)
    server.serve_forever()
