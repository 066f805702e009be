// An API that takes access tokens of one issuer, checked by Microsoft.IdentityModel.
using System.Text.Json;
using System.Text.RegularExpressions;
using Microsoft.IdentityModel.JsonWebTokens;
using Microsoft.IdentityModel.Protocols;
using Microsoft.IdentityModel.Protocols.OpenIdConnect;
using Microsoft.IdentityModel.Tokens;

string Setting(string name) => Environment.GetEnvironmentVariable(name) ?? throw new InvalidOperationException($"{name} has to be set");
string port = Setting("PORT"), issuer = Setting("ISSUER"), audience = Setting("AUDIENCE");
var leeway = TimeSpan.FromSeconds(30);

// The keys are where the issuer's metadata says. Both are fetched with the first token, so that an issuer that is down does not keep this API from starting.
var client = new HttpClient(new SocketsHttpHandler { AllowAutoRedirect = false }) { Timeout = TimeSpan.FromSeconds(5) };
var keys = new ConfigurationManager<OpenIdConnectConfiguration>(
    (issuer.EndsWith('/') ? issuer[..^1] : issuer) + "/.well-known/openid-configuration",
    new OpenIdConnectConfigurationRetriever(),
    new HttpDocumentRetriever(client) { RequireHttps = !new Uri(issuer).IsLoopback })
{
    AutomaticRefreshInterval = TimeSpan.FromMinutes(10),
    RefreshInterval = TimeSpan.FromSeconds(30), // between two fetches for a kid that is not among the keys: anybody can make one up
    UseLastKnownGoodConfiguration = false, // or a key that was withdrawn would be good for another hour
};
var handler = new JsonWebTokenHandler();
var parameters = new TokenValidationParameters
{
    ConfigurationManager = keys,
    TryAllIssuerSigningKeys = false, // the one that kid names, and no other
    ValidTypes = ["at+jwt", "application/at+jwt"], // no ID token, no logout token
    ValidAlgorithms = ["RS256", "PS256", "ES256"], // none that takes a public key for a secret
    ValidIssuer = issuer,
    ValidAudience = audience,
    IgnoreTrailingSlashWhenValidatingAudience = false,
    RequireExpirationTime = true,
    ClockSkew = leeway,
};

// Returns the claims of a good token (RFC 9068 section 4).
async Task<JsonElement> Verify(string token)
{
    if (!Regex.IsMatch(token, @"\A[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\z")) throw new Refused(401, "invalid_token"); // a JWS, and no JWE
    try
    {
        var metadata = await keys.GetConfigurationAsync(CancellationToken.None);
        if (metadata.Issuer != issuer || metadata.SigningKeys.Count == 0) throw new InvalidOperationException("the metadata is of another issuer, or has no keys");
    }
    catch (Exception)
    {
        throw new Refused(503); // which says nothing about the token
    }
    var result = await handler.ValidateTokenAsync(token, parameters.Clone());
    if (!result.IsValid) throw new Refused(401, "invalid_token");

    var jwt = (JsonWebToken)result.SecurityToken;
    var header = JsonSerializer.Deserialize<JsonElement>(Base64UrlEncoder.Decode(jwt.EncodedHeader));
    var claims = JsonSerializer.Deserialize<JsonElement>(Base64UrlEncoder.Decode(jwt.EncodedPayload));
    bool Has(JsonElement of, string name) => of.TryGetProperty(name, out _);
    bool Text(string name) => claims.TryGetProperty(name, out var value) && value.ValueKind == JsonValueKind.String && value.GetString() != "";
    bool Date(string name) => claims.TryGetProperty(name, out var value) && value.ValueKind == JsonValueKind.Number;
    if (Has(header, "crit") || Has(header, "b64") || Has(header, "zip") // extensions, of which we want none
        || !Text("sub") || !Text("client_id") || !Text("jti")
        || !Date("exp") || !Date("iat") || Has(claims, "nbf") && !Date("nbf")
        || jwt.IssuedAt > DateTime.UtcNow + leeway // which the handler does not mind
        || claims.TryGetProperty("scope", out var scope) && scope.ValueKind != JsonValueKind.String
        || Has(claims, "cnf")) // it is bound to a key, and nobody has asked here for the proof
        throw new Refused(401, "invalid_token");
    return claims;
}

// Returns the claims of the request's token, if it is good and has the scope.
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
    if (!scopes.Split(' ').Contains(scope)) throw new Refused(403, "insufficient_scope", scope); // read is not in readwrite
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
app.Run($"http://127.0.0.1:{port}"); // what ends TLS is in front

/// <summary>What a request without a good token gets (RFC 6750 section 3). Nothing of the token is in it.</summary>
class Refused(int status, string? error = null, string? scope = null) : Exception
{
    public int Status => status;
    public string Challenge => "Bearer" + (error is null ? "" : $" error=\"{error}\"") + (scope is null ? "" : $", scope=\"{scope}\"");
}
