// An API that accepts access tokens of one issuer. Microsoft.IdentityModel verifies them.
using System.Text.Json;
using System.Text.RegularExpressions;
using Microsoft.IdentityModel.JsonWebTokens;
using Microsoft.IdentityModel.Protocols;
using Microsoft.IdentityModel.Protocols.OpenIdConnect;
using Microsoft.IdentityModel.Tokens;

string Setting(string name) => Environment.GetEnvironmentVariable(name) ?? throw new InvalidOperationException($"{name} must be set");
string port = Setting("PORT"), issuer = Setting("ISSUER"), audience = Setting("AUDIENCE");
var leeway = TimeSpan.FromSeconds(30);

// The URL of the keys is in the issuer's metadata. Both are fetched with the first token, so that
// this API can start while the issuer is down.
var client = new HttpClient(new SocketsHttpHandler { AllowAutoRedirect = false }) { Timeout = TimeSpan.FromSeconds(5) };
var keys = new ConfigurationManager<OpenIdConnectConfiguration>(
    (issuer.EndsWith('/') ? issuer[..^1] : issuer) + "/.well-known/openid-configuration",
    new OpenIdConnectConfigurationRetriever(),
    new HttpDocumentRetriever(client) { RequireHttps = !new Uri(issuer).IsLoopback })
{
    AutomaticRefreshInterval = TimeSpan.FromMinutes(10),
    RefreshInterval = TimeSpan.FromSeconds(30), // between two fetches because of an unknown kid: a client can invent one
    UseLastKnownGoodConfiguration = false, // a withdrawn key would be valid for another hour
};
var handler = new JsonWebTokenHandler();
var parameters = new TokenValidationParameters
{
    ConfigurationManager = keys,
    TryAllIssuerSigningKeys = false, // only the key with this kid
    ValidTypes = ["at+jwt", "application/at+jwt"], // not an ID token or logout token
    ValidAlgorithms = ["RS256", "PS256", "ES256"], // no HMAC: the public key would be the secret
    ValidIssuer = issuer,
    ValidAudience = audience,
    IgnoreTrailingSlashWhenValidatingAudience = false,
    RequireExpirationTime = true,
    ClockSkew = leeway,
};

// Returns the claims of a valid token (RFC 9068 section 4).
async Task<JsonElement> Verify(string token)
{
    if (!Regex.IsMatch(token, @"\A[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\z")) throw new Refused(401, "invalid_token"); // a JWS, not a JWE
    try
    {
        var metadata = await keys.GetConfigurationAsync(CancellationToken.None);
        if (metadata.Issuer != issuer || metadata.SigningKeys.Count == 0) throw new InvalidOperationException("the metadata is of another issuer, or has no keys");
    }
    catch (Exception)
    {
        throw new Refused(503); // the token may be valid
    }
    var result = await handler.ValidateTokenAsync(token, parameters.Clone());
    if (!result.IsValid) throw new Refused(401, "invalid_token");

    var jwt = (JsonWebToken)result.SecurityToken;
    var header = JsonSerializer.Deserialize<JsonElement>(Base64UrlEncoder.Decode(jwt.EncodedHeader));
    var claims = JsonSerializer.Deserialize<JsonElement>(Base64UrlEncoder.Decode(jwt.EncodedPayload));
    bool Has(JsonElement of, string name) => of.TryGetProperty(name, out _);
    bool Text(string name) => claims.TryGetProperty(name, out var value) && value.ValueKind == JsonValueKind.String && value.GetString() != "";
    bool Date(string name) => claims.TryGetProperty(name, out var value) && value.ValueKind == JsonValueKind.Number;
    if (Has(header, "crit") || Has(header, "b64") || Has(header, "zip") // no extensions
        || !Text("sub") || !Text("client_id") || !Text("jti")
        || !Date("exp") || !Date("iat") || Has(claims, "nbf") && !Date("nbf")
        || jwt.IssuedAt > DateTime.UtcNow + leeway // the handler does not check this
        || claims.TryGetProperty("scope", out var scope) && scope.ValueKind != JsonValueKind.String
        || Has(claims, "cnf")) // bound to a key, and this API verifies no proof
        throw new Refused(401, "invalid_token");
    return claims;
}

// Returns the claims of the request's token if it is valid and has the scope.
async Task<JsonElement> Authorize(HttpRequest request, string scope)
{
    var sent = request.Headers.Authorization;
    if (sent.Count == 0) throw new Refused(401);
    if (sent.Count > 1 || request.Query.ContainsKey("access_token")) throw new Refused(400, "invalid_request"); // one token, in one place (section 2)
    var value = sent[0] ?? "";
    if (!value.Split(' ')[0].Equals("Bearer", StringComparison.OrdinalIgnoreCase)) throw new Refused(401);
    var bearer = Regex.Match(value, @"\A[^ ]+ +([A-Za-z0-9_.~+/-]+=*)\z");
    if (!bearer.Success) throw new Refused(400, "invalid_request");
    var claims = await Verify(bearer.Groups[1].Value);
    var scopes = claims.TryGetProperty("scope", out var text) ? text.GetString()! : "";
    if (!scopes.Split(' ').Contains(scope)) throw new Refused(403, "insufficient_scope", scope); // "read" is not in "readwrite"
    return claims;
}

var app = WebApplication.CreateBuilder(args).Build();
app.MapGet("/orders", async (HttpContext context) =>
{
    context.Response.Headers["Cache-Control"] = "no-store";
    try
    {
        var claims = await Authorize(context.Request, "orders:read");
        return Results.Json(new { sub = claims.GetProperty("sub").GetString(), orders = Array.Empty<string>() });
    }
    catch (Refused refused)
    {
        if (refused.Status == 503) context.Response.Headers["Retry-After"] = "5";
        else context.Response.Headers["WWW-Authenticate"] = refused.Challenge;
        return Results.StatusCode(refused.Status);
    }
});
app.Run($"http://127.0.0.1:{port}"); // behind a TLS proxy

/// <summary>The response to a request without a valid token (RFC 6750 section 3). It has no part of the token.</summary>
class Refused(int status, string? error = null, string? scope = null) : Exception
{
    public int Status => status;
    public string Challenge => "Bearer" + (error is null ? "" : $" error=\"{error}\"") + (scope is null ? "" : $", scope=\"{scope}\"");
}
