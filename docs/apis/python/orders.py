"""An API that takes access tokens of one issuer, checked by PyJWT."""
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
    """What a request without a good token gets (RFC 6750 section 3). Nothing of the token is in it."""

    def __init__(self, status, error=None, scope=None):
        self.status = status
        self.headers = {"Cache-Control": "no-store", "Content-Length": "0"}
        if status == 503:
            self.headers["Retry-After"] = "5"
        else:
            self.headers["WWW-Authenticate"] = "Bearer" + (f' error="{error}"' if error else "") + (f', scope="{scope}"' if scope else "")


INVALID_TOKEN = 401, "invalid_token"


class NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args):  # nobody but the issuer says what its keys are
        return None


class Keys:
    """The issuer's keys, which are where its metadata says. Both are fetched with the first token, so that an issuer that is down does not keep this API from starting."""

    client = None
    lock = threading.Lock()  # guards client

    def find(self, kid):
        try:
            with self.lock:
                self.client = self.client or self.connect()
            self.client.get_signing_keys()  # fails only where there are no keys to decide with
        except Exception:
            raise Refused(503)  # which says nothing about the token
        try:
            return self.client.get_signing_key(kid)
        except jwt.PyJWKClientConnectionError:
            raise Refused(503)
        except jwt.PyJWKClientError:
            raise Refused(*INVALID_TOKEN)

    def connect(self):
        url = ISSUER.removesuffix("/") + "/.well-known/openid-configuration"
        with urllib.request.build_opener(NoRedirects).open(url, timeout=5) as answer:
            metadata = json.load(answer)
        if metadata["issuer"] != ISSUER:
            raise ValueError("the metadata is of another issuer")
        # With a kid that is not among the keys they are fetched again, but only 30 s after the last time: anybody can make up a kid.
        return jwt.PyJWKClient(metadata["jwks_uri"], lifespan=600, timeout=5, cooldown_duration=30)


keys = Keys()


def verify(token):
    """Returns the claims of a good token (RFC 9068 section 4)."""
    try:
        if not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", token, re.ASCII):  # PyJWT would skip padding
            raise Refused(*INVALID_TOKEN)
        key = keys.find(jwt.get_unverified_header(token).get("kid"))
        decoded = jwt.decode_complete(
            token,
            key,  # for the algorithm that it is published for, and no other
            algorithms=["RS256", "PS256", "ES256", "EdDSA"],  # none that takes a public key for a secret
            issuer=ISSUER,
            audience=AUDIENCE,
            leeway=30,
            options={"require": ["exp", "iat", "sub", "client_id", "jti"], "enforce_minimum_key_length": True},
        )
    except jwt.PyJWTError:
        raise Refused(*INVALID_TOKEN)
    header, claims = decoded["header"], decoded["payload"]
    if (
        str(header.get("typ")).lower().removeprefix("application/") != "at+jwt"  # no ID token, no logout token
        or header.keys() & {"crit", "b64", "zip"}  # PyJWT knows b64, and we want none of them
        or not all(isinstance(claims[name], str) and claims[name] for name in ("sub", "client_id", "jti"))
        or not all(isinstance(claims.get(name, 0), (int, float)) for name in ("exp", "nbf", "iat"))  # PyJWT takes "1"
        or not all(isinstance(scope, str) for scope in scopes(claims))
        or "cnf" in claims  # it is bound to a key, and nobody has asked here for the proof
    ):
        raise Refused(*INVALID_TOKEN)
    return claims


def scopes(claims):
    """Returns the scope as a list, as some providers write it."""
    scope = claims.get("scope", "")
    return scope if isinstance(scope, list) else [scope]


class API(BaseHTTPRequestHandler):
    def authorize(self, query, scope):
        """Returns the claims of the request's token, if it is good and has the scope."""
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
        if scope not in " ".join(scopes(claims)).split(" "):  # read is not in readwrite
            raise Refused(403, "insufficient_scope", scope)
        return claims

    def do_GET(self):
        url = urlsplit(self.path)
        if url.path != "/orders":
            return self.answer(404, {"Content-Length": "0"})
        try:
            claims = self.authorize(url.query, "orders:read")
        except Refused as refused:
            return self.answer(refused.status, refused.headers)
        body = json.dumps({"sub": claims["sub"], "orders": []}).encode()
        self.answer(200, {"Content-Type": "application/json", "Cache-Control": "no-store", "Content-Length": str(len(body))}, body)

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):  # it would log the query, in which a token may be
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", PORT), API)  # what ends TLS is in front
    print("listening on", server.server_port, flush=True)
    server.serve_forever()
