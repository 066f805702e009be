import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Executors;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.jose4j.http.Get;
import org.jose4j.json.JsonUtil;
import org.jose4j.jwa.AlgorithmConstraints.ConstraintType;
import org.jose4j.jwk.HttpsJwks;
import org.jose4j.jwk.JsonWebKey;
import org.jose4j.jws.JsonWebSignature;
import org.jose4j.jwt.JwtClaims;
import org.jose4j.jwt.MalformedClaimException;
import org.jose4j.jwt.consumer.InvalidJwtException;
import org.jose4j.jwt.consumer.JwtConsumer;
import org.jose4j.jwt.consumer.JwtConsumerBuilder;
import org.jose4j.jwt.consumer.JwtContext;
import org.jose4j.jwx.Headers;
import org.jose4j.keys.resolvers.HttpsJwksVerificationKeyResolver;
import org.jose4j.lang.JoseException;

/** An API that accepts access tokens of one issuer. jose4j verifies them. */
public class Orders {
    static final int PORT = Integer.parseInt(System.getenv("PORT"));
    static final String ISSUER = System.getenv("ISSUER"), AUDIENCE = System.getenv("AUDIENCE");

    /** The response to a request without a valid token (RFC 6750 section 3). It has no part of the token. */
    static class Refused extends Exception {
        final int status;
        final String challenge;

        Refused(int status, String challenge) {
            this.status = status;
            this.challenge = challenge;
        }
    }

    static final String INVALID_TOKEN = "Bearer error=\"invalid_token\"", INVALID_REQUEST = "Bearer error=\"invalid_request\"";

    static HttpsJwks keys;
    static JwtConsumer consumer;

    /**
     * Returns the verifier. The URL of the keys is in the issuer's metadata. Both are fetched with
     * the first token, so that this API can start while the issuer is down.
     */
    static synchronized JwtConsumer consumer() throws Exception {
        if (consumer == null) {
            Get get = new Get();
            get.setConnectTimeout(5000);
            get.setReadTimeout(5000);
            get.setRetries(0);
            get.setResponseBodySizeLimit(1 << 20);
            Map<String, Object> metadata = JsonUtil.parseJson(get.get(ISSUER.replaceFirst("/$", "") + "/.well-known/openid-configuration").getBody());
            if (!ISSUER.equals(metadata.get("issuer"))) throw new IOException("the metadata is of another issuer");
            keys = new HttpsJwks((String) metadata.get("jwks_uri"));
            keys.setSimpleHttpGet(get);
            keys.setDefaultCacheDuration(600); // seconds
            keys.setRefreshReprieveThreshold(30_000); // between two fetches because of an unknown kid: a client can invent one
            consumer = new JwtConsumerBuilder()
                .setVerificationKeyResolver(new HttpsJwksVerificationKeyResolver(keys) {
                    @Override
                    protected JsonWebKey select(JsonWebSignature jws, List<JsonWebKey> all) throws JoseException {
                        String alg = jws.getAlgorithmHeaderValue(); // a key with an algorithm is for this one only
                        return super.select(jws, all.stream().filter(key -> key.getAlgorithm() == null || key.getAlgorithm().equals(alg)).toList());
                    }
                })
                .setExpectedType(true, "at+jwt") // not an ID token or logout token
                .setJwsAlgorithmConstraints(ConstraintType.PERMIT, "RS256", "PS256", "ES256", "EdDSA") // no HMAC: the public key would be the secret
                .setExpectedIssuer(ISSUER)
                .setExpectedAudience(AUDIENCE)
                .setAllowedClockSkewInSeconds(30)
                .setRequireExpirationTime()
                .setRequireIssuedAt()
                .setIssuedAtRestrictions(0, Integer.MAX_VALUE) // without it jose4j accepts an iat in the future
                .setRequireSubject()
                .setRequireJwtId()
                .build();
        }
        return consumer;
    }

    /** Returns the claims of a valid token (RFC 9068 section 4). */
    static JwtClaims verify(String token) throws Refused {
        if (!token.matches("[\\w-]+\\.[\\w-]+\\.[\\w-]+")) throw new Refused(401, INVALID_TOKEN); // a JWS without padding
        JwtConsumer consumer;
        try {
            consumer = consumer();
            keys.getJsonWebKeys(); // fails only if there are no keys at all
        } catch (Exception e) {
            throw new Refused(503, null); // the token may be valid
        }
        try {
            JwtContext context = consumer.process(token);
            Headers header = context.getJoseObjects().get(0).getHeaders();
            JwtClaims claims = context.getJwtClaims();
            if (context.getJoseObjects().size() == 1 // not nested
                && Stream.of("crit", "b64", "zip").allMatch(name -> header.getObjectHeaderValue(name) == null) // jose4j supports b64
                && !claims.getSubject().isEmpty()
                && !claims.getJwtId().isEmpty()
                && claims.hasClaim("client_id") && !claims.getStringClaimValue("client_id").isEmpty()
                && scopes(claims).allMatch(String.class::isInstance)
                && !claims.hasClaim("cnf")) return claims; // bound to a key, and this API verifies no proof
        } catch (InvalidJwtException e) {
            for (Throwable t = e; t != null; t = t.getCause()) if (t instanceof IOException) throw new Refused(503, null); // the key may be new
        } catch (MalformedClaimException e) {
            // as below
        }
        throw new Refused(401, INVALID_TOKEN);
    }

    /** Returns the scope as a list. Some providers send a list. */
    static Stream<?> scopes(JwtClaims claims) {
        Object scope = claims.getClaimValue("scope");
        return scope instanceof List<?> list ? list.stream() : Stream.ofNullable(scope);
    }

    static final Pattern BEARER = Pattern.compile("Bearer +([\\w.~+/-]+=*)", Pattern.CASE_INSENSITIVE);

    /** Returns the claims of the request's token if it is valid and has the scope. */
    static JwtClaims authorize(HttpExchange exchange, String scope) throws Refused {
        List<String> sent = exchange.getRequestHeaders().getOrDefault("Authorization", List.of());
        if (sent.isEmpty()) throw new Refused(401, "Bearer");
        String query = exchange.getRequestURI().getRawQuery();
        boolean twice = query != null && Stream.of(query.split("&")).anyMatch(p -> URLDecoder.decode(p.split("=", 2)[0], StandardCharsets.UTF_8).equals("access_token"));
        if (sent.size() > 1 || twice) throw new Refused(400, INVALID_REQUEST); // one token, in one place (section 2)
        if (!sent.get(0).split(" ")[0].equalsIgnoreCase("Bearer")) throw new Refused(401, "Bearer");
        Matcher bearer = BEARER.matcher(sent.get(0));
        if (!bearer.matches()) throw new Refused(400, INVALID_REQUEST);
        JwtClaims claims = verify(bearer.group(1));
        if (!scopes(claims).flatMap(s -> Stream.of(s.toString().split(" "))).toList().contains(scope)) throw new Refused(403, "Bearer error=\"insufficient_scope\", scope=\"" + scope + "\""); // "read" is not in "readwrite"
        return claims;
    }

    static void listOrders(HttpExchange exchange) throws IOException {
        exchange.getResponseHeaders().set("Cache-Control", "no-store");
        int status = 404;
        byte[] body = {};
        try {
            if (exchange.getRequestMethod().equals("GET") && exchange.getRequestURI().getPath().equals("/orders")) {
                JwtClaims claims = authorize(exchange, "orders:read");
                status = 200;
                body = JsonUtil.toJson(Map.of("sub", claims.getClaimValueAsString("sub"), "orders", List.of())).getBytes(StandardCharsets.UTF_8);
                exchange.getResponseHeaders().set("Content-Type", "application/json");
            }
        } catch (Refused refused) {
            status = refused.status;
            exchange.getResponseHeaders().set(status == 503 ? "Retry-After" : "WWW-Authenticate", status == 503 ? "5" : refused.challenge);
        }
        try (exchange) {
            exchange.sendResponseHeaders(status, body.length == 0 ? -1 : body.length);
            exchange.getResponseBody().write(body);
        }
    }

    public static void main(String[] args) throws IOException {
        if (ISSUER == null || AUDIENCE == null) throw new IllegalStateException("ISSUER and AUDIENCE must be set");
        HttpURLConnection.setFollowRedirects(false); // only the issuer itself names its keys
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", PORT), 0); // behind a TLS proxy
        server.createContext("/orders", Orders::listOrders);
        server.setExecutor(Executors.newFixedThreadPool(16));
        server.start();
        System.out.println("listening on " + server.getAddress().getPort());
    }
}
