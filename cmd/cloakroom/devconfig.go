package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/config"
	"github.com/cloakroom-bff/cloakroom/internal/devtools"
	"github.com/cloakroom-bff/cloakroom/internal/scaffold"
	"github.com/cloakroom-bff/cloakroom/session"
)

// read reads and checks flags and files.
func (d *dev) read() error {
	if d.accessTokenTTL < time.Second {
		return usageError{fmt.Errorf("--access-token-ttl: %v is shorter than a second", d.accessTokenTTL)}
	}
	if d.port < 1 || d.port > 65534 {
		return usageError{fmt.Errorf("--port: %d is not a port from 1 to 65534", d.port)}
	}
	if d.app != "" {
		if err := scaffold.CheckURL(d.app, "http://localhost:5173"); err != nil {
			return usageError{fmt.Errorf("--app: %w", err)}
		}
		if strings.HasPrefix(d.app, "https:") {
			return usageError{fmt.Errorf("--app: %q is https: turn https off in the development server and write "+
				"http. Browsers treat http://localhost as secure", d.app)}
		}
	}
	if err := d.readUsers(); err != nil {
		return err
	}
	if err := d.readConfig(); err != nil {
		return err
	}
	if !isBase(d.base) {
		return usageError{fmt.Errorf("--base: %q is not a path such as /shop", d.base)}
	}
	d.base = strings.TrimSuffix(d.base, "/")
	for _, api := range d.apis {
		parsed, err := scaffold.ParseAPI(api)
		if err != nil {
			return usageError{fmt.Errorf("--api: %w", err)}
		}
		d.cfg.Routes = append(slices.DeleteFunc(d.cfg.Routes, func(r config.Route) bool {
			return r.Path == parsed.Path
		}), config.Route{Path: parsed.Path, Upstream: []string{parsed.Upstream}, Token: "user"})
	}
	return nil
}

// isBase reports whether an app can be below a path. The empty path is none.
func isBase(path string) bool {
	_, err := bff.PublicOrigin("http://localhost" + path)
	return err == nil && (path == "" || path[0] == '/')
}

// devKeys are the keys of the configuration that count. Those below a key that
// ends with a dot count too.
var devKeys = []string{
	"routes", "frontend", "session", "server.prefix", "server.page_file",
	"oidc.scopes", "oidc.resource", "oidc.audience", "oidc.authorization_parameters", "oidc.userinfo",
	"oidc.access_token_lifetime",
}

// readConfig reads the configuration. Mistakes in keys that do not count are
// ignored: the files of secrets, for example, are on another machine.
func (d *dev) readConfig() error {
	d.cfg = new(config.Config)
	if d.configFile == "" {
		return nil
	}
	read, err := config.Load(d.configFile, func(string) string { return "" })
	var relevant config.Errors
	if problems, ok := errors.AsType[config.Errors](err); ok {
		for _, problem := range problems {
			if _, unknown := errors.AsType[*config.UnknownKeyError](problem.Err); unknown || counts(problem.Key) {
				relevant = append(relevant, problem)
			}
		}
	}
	if len(relevant) > 0 {
		return relevant
	}
	if read == nil {
		return err
	}
	d.cfg.Routes, d.cfg.Frontend, d.cfg.Session = read.Routes, read.Frontend, read.Session
	d.cfg.Server.Prefix, d.cfg.Server.PageFile = read.Server.Prefix, read.Server.PageFile
	if u, err := url.Parse(read.Server.PublicURL); err == nil && d.base == "" && isBase(u.EscapedPath()) {
		d.base = u.EscapedPath()
	}
	d.cfg.OIDC = config.OIDC{
		Scopes: read.OIDC.Scopes, Resource: read.OIDC.Resource, Audience: read.OIDC.Audience,
		AuthorizationParameters: read.OIDC.AuthorizationParameters, UserInfo: read.OIDC.UserInfo,
		AccessTokenLifetime: read.OIDC.AccessTokenLifetime,
	}
	d.cfg.Frontend.Dir, d.cfg.Frontend.URL, d.cfg.Session.Keys = "", "", nil
	return nil
}

// counts reports whether a key of the configuration is used. The empty key is
// the whole file.
func counts(key string) bool {
	if key == "" {
		return true
	}
	for _, known := range devKeys {
		if rest, ok := strings.CutPrefix(key, known); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			return !strings.HasPrefix(key, "session.keys") && key != "frontend.dir" && key != "frontend.url"
		}
	}
	return false
}

// apiPorts returns the ports of upstreams on this machine. A command can start
// them too, and print their URLs.
func (d *dev) apiPorts() (ports []int) {
	for _, route := range d.cfg.Routes {
		for _, upstream := range route.Upstream {
			if u, err := url.Parse(upstream); err == nil {
				if port, err := strconv.Atoi(u.Port()); err == nil {
					ports = append(ports, port)
				}
			}
		}
	}
	return ports
}

func (d *dev) audience() string { return cmp.Or(d.cfg.OIDC.Audience, "api") }

// complete sets the keys that are not configurable.
func (d *dev) complete(app, issuer, secret string) {
	c := d.cfg
	c.Server = config.Server{
		PublicURL: app, AdminListen: "127.0.0.1:0", Prefix: cmp.Or(c.Server.Prefix, "/bff"),
		PageFile:      c.Server.PageFile,
		ShutdownGrace: time.Second, // Ctrl-C must end the process soon
		// Browser tests sign in as often as they like.
		Limits: config.Limits{Logins: config.RateLimit{Rate: 1e6, Burst: 1e6}},
	}
	// Reports go to the inspector, not to where those of production go.
	c.Frontend.CSP = maps.Clone(c.Frontend.CSP)
	if c.Frontend.CSP == nil {
		c.Frontend.CSP = make(map[string][]string)
	}
	c.Frontend.CSP["report-uri"] = []string{d.base + c.Server.Prefix + devtools.ReportPath}
	c.OIDC.Issuer, c.OIDC.ClientID, c.OIDC.ClientSecret = issuer, devClient, session.Secret(secret)
	// A new key for each run: the provider's tokens are lost at the end too.
	c.Session.Keys = []session.Secret{newKey()}
	c.SetDefaults()
}

// namingFlags replaces keys by the flags that set them.
func (d *dev) namingFlags(err error) error {
	problems, ok := errors.AsType[config.Errors](err)
	if !ok {
		return err
	}
	for _, problem := range problems {
		var i int
		switch n, _ := fmt.Sscanf(problem.Key, "routes[%d]", &i); {
		case problem.Key == "frontend.url":
			problem.Key = "--app"
		case n == 1 && i >= len(d.cfg.Routes)-len(d.apis):
			problem.Key = "--api " + path.Clean(d.cfg.Routes[i].Path)
		}
	}
	return err
}
