package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloakroom-bff/cloakroom/internal/config"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/devserver"
	"github.com/cloakroom-bff/cloakroom/internal/devtools"
)

func devCommand() *cobra.Command {
	var d dev
	c := &cobra.Command{
		Use:   "dev [flags] [-- COMMAND]",
		Short: "Run your app's development server behind a broker",
		Long: `Run the broker, a development identity provider without passwords and your own
development server behind one URL, which it prints. Nothing else is needed.

COMMAND starts the development server, such as npm run dev. It stops with this
process, and this process stops with it and has its exit status. The server is
found by the http://localhost:PORT that COMMAND prints, or at the default port
of Vite, Angular, Next or webpack. --app names it otherwise. Hot reload works.

The users are those of --users, or of dev-users.yaml if that file exists,
otherwise alice and bob. A change of the file takes effect within seconds:

  users:
    - sub: alice
      name: Alice Liddell
      email: alice@example.com
      roles: [admin]
      acr: gold                     # optional: the strength of each sign-in
      claims: {department: sales}

From --config FILE, the same file as for serve, it takes routes, frontend (but
for dir and url), session (but for keys), the path of server.public_url,
server.prefix, server.page_file and, of oidc, scopes, resource, audience,
authorization_parameters, userinfo and access_token_lifetime.

/bff/dev of the app shows the session and its tokens, what was refused and why,
and has buttons for what an app has to cope with: an expired token, the end of
the session, outages of provider and store. Clients sign in without a password,
so it listens on the loopback interface only.`,
		Example: `  cloakroom dev -- npm run dev
  cloakroom dev --api /api=http://localhost:3000 -- npm run dev
  cloakroom dev --app http://localhost:5173 --users users.yaml`,
		Args: func(c *cobra.Command, args []string) error {
			if n := c.ArgsLenAtDash(); len(args) > 0 && n != 0 {
				return usageError{fmt.Errorf("write the command after --, as in: cloakroom dev -- %s",
					strings.Join(args, " "))}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			d.command, d.portGiven = args, c.Flags().Changed("port")
			return d.run(c.Context(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	flags := c.Flags()
	flags.StringVar(&d.app, "app", "", "`URL` of the development server; by default, it is detected")
	flags.StringVar(&d.base, "base", "",
		"`PATH` below which the app is, such as /shop, as the development server's own base")
	flags.StringArrayVar(&d.apis, "api", nil, "`PATH=URL` of an API that gets the user's access token; repeatable")
	flags.IntVar(&d.port, "port", devPort, "`PORT` to listen on; the provider listens on the next one")
	flags.StringVar(&d.usersFile, "users", "", "YAML `FILE` with users; default: dev-users.yaml, if it exists")
	flags.StringVar(&d.configFile, "config", "", "`FILE` with routes and more, the configuration of serve")
	flags.DurationVar(&d.accessTokenTTL, "access-token-ttl", 5*time.Minute, "lifetime of access tokens")
	return c
}

const (
	devPort  = 8400
	devPorts = 10 // pairs of ports that are tried if none is given
	// devPatience is how long a command may take to start its server before a
	// message says that none was found. A server that runs already is found at
	// once.
	devPatience = 20 * time.Second
	// devGrace is how long the command may take to end.
	devGrace  = 5 * time.Second
	devClient = "dev"
)

// dev runs a development server behind a broker and a development provider.
type dev struct {
	app            string
	base           string // such as /shop; empty: none
	apis           []string
	port           int
	portGiven      bool
	usersFile      string
	configFile     string
	accessTokenTTL time.Duration
	command        []string

	cfg        *config.Config
	users      *devidp.UserFile
	usersState fileState // of the file when users were read
}

// exitError is the exit status of a command that ended, with a message or
// without.
type exitError struct {
	status int
	err    error
}

func (e *exitError) Error() string { return e.err.Error() }

func (d *dev) run(ctx context.Context, stdout, stderr io.Writer) error {
	if err := d.read(); err != nil {
		return err
	}
	public, idp, err := d.listen()
	if err != nil {
		return err
	}
	defer public.Close()
	defer idp.Close()
	signal.Ignore(syscall.SIGPIPE)

	finder := &devserver.Finder{Exclude: append(d.apiPorts(), portOf(public), portOf(idp)), Started: len(d.command) > 0}
	if !finder.Started {
		return d.serve(ctx, public, idp, finder, stdout, stderr)
	}
	finder.ExcludeListening(ctx)
	command, err := devserver.Start(d.command, d.environment(stdout), finder.Watch(stdout), finder.Watch(stderr))
	if notStarted, ok := errors.AsType[*devserver.NotStartedError](err); ok {
		return &exitError{notStarted.Status, err}
	}
	if err != nil {
		return err
	}
	serving, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // until the command ends, which Stop sees to
		<-command.Exited()
		cancel()
	}()
	stopped := make(chan struct{})
	stop := context.AfterFunc(serving, func() { // at the same time as the broker
		command.Stop(context.WithoutCancel(ctx), devGrace)
		close(stopped)
	})
	err = d.serve(serving, public, idp, finder, stdout, stderr)
	if stop() { // the broker has failed
		command.Stop(context.WithoutCancel(ctx), devGrace)
	} else {
		<-stopped
	}
	if err != nil && !errors.Is(err, context.Canceled) || ctx.Err() != nil {
		return err
	}
	return d.commandEnded(command.Status())
}

// commandEnded returns the error for the command, which has ended by itself. It
// is nil if the command had started a server and was successful.
func (d *dev) commandEnded(status int) error {
	name := strings.Join(d.command, " ")
	switch {
	case status != 0:
		return &exitError{status, fmt.Errorf("%s ended with status %d", name, status)}
	case d.cfg.Frontend.URL == "":
		return &exitError{0, fmt.Errorf("%s ended before a development server was found", name)}
	}
	return nil
}

// environment returns the environment of the command. Without a terminal of its
// own it would not use colors.
func (d *dev) environment(stdout io.Writer) []string {
	env := os.Environ()
	if isTerminal(stdout) && os.Getenv("NO_COLOR") == "" && os.Getenv("FORCE_COLOR") == "" {
		env = append(env, "FORCE_COLOR=1")
	}
	return env
}

// listen listens on a port for the app and on the next one for the provider,
// whose issuer stays the same so. If no port was given, both can be others.
func (d *dev) listen() (public, idp net.Listener, err error) {
	for i := range devPorts {
		port := d.port + 2*i
		public, err = listenLocal(port)
		if err == nil {
			if idp, err = listenLocal(port + 1); err == nil {
				return public, idp, nil
			}
			if d.portGiven {
				idp, err = listenLocal(0)
				return public, idp, err
			}
			public.Close()
		}
		if d.portGiven {
			return nil, nil, fmt.Errorf("--port: %w; choose another port", err)
		}
	}
	return nil, nil, fmt.Errorf("all ports from %d to %d are in use; choose one with --port",
		d.port, d.port+2*devPorts-1)
}

// listenLocal listens on a port of 127.0.0.1, unless something listens on ::1:
// a browser that opens localhost would reach that.
func listenLocal(port int) (net.Listener, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:"+strconv.Itoa(port))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("port %d is in use by another program", port)
	}
	if err != nil || port == 0 {
		return l, err
	}
	if conn, err := net.DialTimeout("tcp6", "[::1]:"+strconv.Itoa(port), time.Second); err == nil {
		conn.Close()
		l.Close()
		return nil, fmt.Errorf("port %d is in use by another program, on [::1]", port)
	}
	return l, nil
}

func portOf(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

// find returns the URL of the development server.
func (d *dev) find(ctx context.Context, finder *devserver.Finder, stderr io.Writer) (string, error) {
	patience := devPatience
	if !finder.Started {
		patience = time.Second
	}
	if d.app != "" {
		go func() { // until the server responds, or for patience
			if !devserver.Await(ctx, d.app, patience) && ctx.Err() == nil {
				fmt.Fprintf(stderr, "Nothing listens at %s (--app) yet. Until it does, the browser shows a page "+
					"that says so.\n", d.app)
			}
		}()
		return d.app, nil
	}
	return finder.Find(ctx, patience, func() {
		ports := make([]string, len(devserver.WellKnownPorts))
		for i, port := range devserver.WellKnownPorts {
			ports[i] = strconv.Itoa(port)
		}
		known := "the ports " + enumerate(ports, "and")
		why := "Nothing listens on " + known + "."
		hint := "Start it, pass its URL with --app, or let cloakroom start it: cloakroom dev -- npm run dev"
		if finder.Started {
			why = "The command has printed no http://localhost:PORT that responds, and nothing new listens on " +
				known + "."
			hint = "If it listens, pass its URL: cloakroom dev --app http://localhost:PORT -- " +
				strings.Join(d.command, " ")
		}
		if secure := finder.HTTPS(); secure != "" {
			hint = "It listens at " + secure + ": turn https off. Browsers treat http://localhost as secure."
		}
		if taken := finder.Excluded(); taken != "" {
			hint = "It printed " + taken + ", but an API (--api or routes) or another program has that port: " +
				"use another port for one of them."
		}
		fmt.Fprintf(stderr, "No development server found after %v. %s\n%s\nStill looking.\n", patience, why, hint)
	})
}

// serve serves app, broker and provider until ctx ends.
func (d *dev) serve(
	ctx context.Context, public, idp net.Listener, finder *devserver.Finder, stdout, stderr io.Writer,
) error {
	app := fmt.Sprintf("http://localhost:%d%s", portOf(public), d.base)
	issuer := "http://" + idp.Addr().String()
	if u, parseErr := url.Parse(d.app); parseErr == nil && u.Port() == strconv.Itoa(portOf(public)) {
		return usageError{fmt.Errorf("--app: %s has the port of this process; pass the URL of the development server",
			d.app)}
	}
	server, err := d.find(ctx, finder, stderr)
	if err != nil {
		return nil // ctx has ended
	}
	if u, err := url.Parse(server); err == nil && u.Path == "" {
		server += d.base
	}
	d.cfg.Frontend.URL = server
	secret := rand.Text()
	d.complete(app, issuer, secret)
	tools := devtools.New(devtools.Config{
		Issuer: issuer, Audience: d.audience(), Base: d.base, Prefix: d.cfg.Server.Prefix,
		Routes: toolRoutes(d.cfg.Routes),
	})
	log, stop := newDevLogger(stderr, tools)
	defer stop()
	provider, err := d.newProvider(app, issuer, secret, log)
	if err != nil {
		return err
	}
	tools.UseProvider(provider)
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	go d.watchUsers(watching, provider, stdout, stderr) // until serve returns
	if d.base != "" {
		go d.checkBase(watching, server, stderr) // until it has a response, or serve returns
	}
	b, err := newBroker(d.cfg, extras{tools: tools}, log)
	if err != nil {
		return d.namingFlags(err)
	}
	defer b.close()
	behind := map[net.Listener]http.Handler{idp: provider}
	return serveDev(ctx, b, public, behind, log, func() error { return d.greet(stdout, app, issuer) })
}

// greet prints the URL to open. It prints the issuer if that is not the usual
// one, because APIs that verify tokens have to be configured with it.
func (d *dev) greet(stdout io.Writer, app, issuer string) error {
	server := "the development server"
	if u, err := url.Parse(d.cfg.Frontend.URL); err == nil && u.Port() != "" {
		server += " on port " + u.Port()
	}
	hint := ""
	if len(d.cfg.Routes) == 0 {
		hint = " Add APIs with --api /PATH=URL."
	}
	if usual := fmt.Sprintf("http://127.0.0.1:%d", d.port+1); issuer != usual {
		hint += fmt.Sprintf("\nPort %d or %d is in use. The issuer of tokens is %s.", d.port, d.port+1, issuer)
	}
	_, err := fmt.Fprintf(stdout, "\nOpen %s and sign in as %s. No password is needed.\n"+
		"It shows %s.%s\nAn app without a sign-in of its own: open %s/login first.\n"+
		"The inspector is at %[5]s/dev. Nothing is saved. Press Ctrl-C to stop.\n\n",
		app, nameUsers(d.users.Users), server, hint, d.base+d.cfg.Server.Prefix)
	return err
}

// nameUsers names up to three users.
func nameUsers(users []devidp.User) string {
	var names []string
	for _, u := range users[:min(3, len(users))] {
		names = append(names, u.Sub)
	}
	if more := len(users) - len(names); more > 0 {
		return strings.Join(names, ", ") + fmt.Sprintf(" or %d others", more)
	}
	return enumerate(names, "or")
}

// enumerate joins words by commas, and the last one by a conjunction.
func enumerate(words []string, conjunction string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " " + conjunction + " " + words[last]
}

// newProvider returns the development provider, with the app as a client.
func (d *dev) newProvider(app, issuer, secret string, log *slog.Logger) (*devidp.Provider, error) {
	prefix := app + d.cfg.Server.Prefix
	return devidp.New(devidp.Config{
		Issuer: issuer, Users: d.users.Users, ACRValues: d.users.ACRValues, Audience: d.audience(),
		AccessTokenTTL: d.accessTokenTTL, Logger: log,
		Clients: []devidp.Client{{
			ID: devClient, Secret: secret,
			RedirectURIs:           []string{prefix + "/callback"},
			PostLogoutRedirectURIs: []string{prefix + "/logout/callback"},
			BackchannelLogoutURI:   prefix + "/backchannel-logout",
		}},
	})
}

// toolRoutes returns the routes as the inspector shows them.
func toolRoutes(routes []config.Route) (all []devtools.Route) {
	for _, r := range routes {
		all = append(all, devtools.Route{
			Path: r.Path, Upstream: strings.Join(r.Upstream, ", "), Token: cmp.Or(r.Token, "user"),
		})
	}
	return all
}
