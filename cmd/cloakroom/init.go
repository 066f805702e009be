package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloakroom-bff/cloakroom/internal/config"
	"github.com/cloakroom-bff/cloakroom/internal/scaffold"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/web"
)

// initializer is the state of the command init.
type initializer struct {
	dir     string
	apis    []string // values of --api
	answers scaffold.Answers
	out     io.Writer
	// in reads the answers to questions. It is nil without a terminal: then a
	// missing option is an error, and the APIs are those of --api.
	in *bufio.Scanner
}

func initCommand() *cobra.Command {
	var i initializer
	c := &cobra.Command{
		Use:   "init",
		Short: "Write the configuration for a front-end project",
		Long: `Write the configuration for a front-end project: cloakroom.yaml, a session key,
settings for its development server, and the browser client with the hooks of
its framework. The framework is that of package.json. Questions that no option
answers are asked. Files that exist are kept, and the settings of a
cloakroom.yaml that exists are used. The session key is written only if that
file names it.`,
		Example: `  cloakroom init
  cloakroom init --issuer https://id.example.com --client-id spa \
    --api /api=http://localhost:3000`,
		RunE: func(c *cobra.Command, _ []string) error {
			i.out = c.OutOrStdout()
			if isTerminal(c.InOrStdin()) {
				i.in = bufio.NewScanner(io.LimitReader(interruptible{c.Context(), c.InOrStdin()}, 64<<10))
			}
			return i.run(c.Flags().Changed("api"))
		},
	}
	c.Flags().StringVar(&i.dir, "dir", ".", "`DIR` of the project, with its package.json or index.html")
	c.Flags().StringVar(&i.answers.Issuer, "issuer", "", "`URL` of the identity provider")
	c.Flags().StringVar(&i.answers.ClientID, "client-id", "", "client `ID` at the identity provider")
	c.Flags().StringVar(&i.answers.PublicURL, "public-url", "", "`URL` of the app in production")
	c.Flags().StringArrayVar(&i.apis, "api", nil,
		"`PATH=URL` of an API, such as /api=http://localhost:3000; repeatable")
	return c
}

// run writes the files. With hasAPIs, it does not ask for APIs.
func (i *initializer) run(hasAPIs bool) error {
	project, err := scaffold.Detect(i.dir)
	if err != nil {
		return usageError{err}
	}
	fmt.Fprintf(i.out, "Found %s. Its files for the browser belong in %s.\n", project.Framework, folder(project.OutDir))
	known, err := i.readExisting()
	if err == nil && !known {
		err = i.ask(hasAPIs)
	}
	if err != nil {
		return err
	}
	i.answers.Key = newKey().Reveal()
	files, err := scaffold.Files(project, i.answers, web.ClientFiles())
	if err != nil {
		return err
	}
	written, kept, err := scaffold.Write(i.dir, files)
	for _, name := range written {
		fmt.Fprintf(i.out, "  wrote %s\n", name)
	}
	for _, name := range kept {
		fmt.Fprintf(i.out, "  kept %s, which exists\n", name)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(i.out, i.nextSteps(project))
	return err
}

// folder returns the name of a directory as messages show it.
func folder(dir string) string { return strings.TrimSuffix(dir, "/") + "/" }

// readExisting reports whether there is a cloakroom.yaml already, and takes the
// answers from it: it will be kept. It is an error if it is not YAML.
func (i *initializer) readExisting() (bool, error) {
	file := filepath.Join(i.dir, "cloakroom.yaml")
	if _, err := os.Lstat(file); err != nil {
		return false, nil // Write reports other errors
	}
	if info, err := os.Stat(file); err == nil && !info.Mode().IsRegular() { // to read a pipe would wait for ever
		return false, usageError{fmt.Errorf("%s is not a regular file: remove it", file)}
	}
	cfg, err := config.Load(file, func(string) string { return "" })
	if cfg == nil {
		return false, usageError{fmt.Errorf("%w\ncloakroom.yaml exists and is kept: correct it, or remove it", err)}
	}
	i.answers = scaffold.Answers{
		Issuer: cfg.OIDC.Issuer, ClientID: cfg.OIDC.ClientID, PublicURL: cfg.Server.PublicURL,
		Named: make(map[string]string),
	}
	for key, name := range config.NamedFiles(file, func(string) string { return "" }) {
		i.answers.Named[key] = i.inProject(name)
	}
	for _, r := range cfg.Routes {
		i.answers.APIs = append(i.answers.APIs, scaffold.API{Path: r.Path})
	}
	return true, nil
}

// inProject returns the name of a file that a configuration names, relative to
// the project if it is in it. A relative name is relative to the folder where
// the broker will run, which is that of the project or this one.
func (i *initializer) inProject(name string) string {
	dir, err := filepath.Abs(i.dir)
	file, wrong := filepath.Abs(name)
	if err == nil && wrong == nil {
		if below, err := filepath.Rel(dir, file); err == nil && filepath.IsLocal(below) {
			return filepath.ToSlash(below)
		}
	}
	return filepath.ToSlash(filepath.Clean(name))
}

// question is a question that an option can answer.
type question struct {
	option, text, example string
	key                   string // of the configuration
	answer                *string
}

// check returns what is wrong with the answer.
func (q *question) check(i *initializer) error {
	if strings.Contains(q.example, "://") {
		if err := scaffold.CheckURL(*q.answer, q.example); err != nil {
			return err
		}
	}
	return i.check(q.key)
}

// ask asks for what no option says, on a terminal. Otherwise it is a mistake.
func (i *initializer) ask(hasAPIs bool) error {
	for _, q := range []question{
		{"issuer", "URL of your identity provider", "https://id.example.com/realms/main", "oidc.issuer",
			&i.answers.Issuer},
		{"client-id", "Client ID there", "spa", "oidc.client_id", &i.answers.ClientID},
		{"public-url", "URL of the app in production", "https://app.example.com", "server.public_url",
			&i.answers.PublicURL},
	} {
		for *q.answer == "" {
			if i.in == nil {
				return usageError{fmt.Errorf("--%s is required, such as --%[1]s %s", q.option, q.example)}
			}
			text, ok := i.prompt(fmt.Sprintf("%s (such as %s): ", q.text, q.example))
			if errors.Is(i.in.Err(), errInterrupted) {
				return errInterrupted
			}
			if !ok {
				return usageError{fmt.Errorf("no answer; give it as an option, such as --%s %s", q.option, q.example)}
			}
			*q.answer = text
			if err := q.check(i); text != "" && err != nil {
				fmt.Fprintln(i.out, err)
				*q.answer = ""
			}
		}
		if err := q.check(i); err != nil {
			return usageError{fmt.Errorf("--%s: %w", q.option, err)}
		}
	}
	for _, text := range i.apis {
		if err := i.addAPI(text); err != nil {
			return usageError{fmt.Errorf("--api: %w", err)}
		}
	}
	for i.in != nil && !hasAPIs {
		text, ok := i.prompt("An API, such as /api=http://localhost:3000 (empty: no more): ")
		if errors.Is(i.in.Err(), errInterrupted) {
			return errInterrupted
		}
		if !ok || text == "" {
			return nil
		}
		if err := i.addAPI(text); err != nil {
			fmt.Fprintln(i.out, err)
		}
	}
	return nil
}

// prompt asks a question. ok is false at the end of the input.
func (i *initializer) prompt(question string) (answer string, ok bool) {
	fmt.Fprint(i.out, question)
	if !i.in.Scan() {
		fmt.Fprintln(i.out)
		return "", false
	}
	return strings.TrimSpace(i.in.Text()), true
}

// addAPI adds the API that a text such as /api=http://localhost:3000 names.
func (i *initializer) addAPI(text string) error {
	api, err := scaffold.ParseAPI(text)
	if err != nil {
		return err
	}
	before := i.answers.APIs
	i.answers.APIs = append(slices.Clip(before), api)
	if err = i.check(fmt.Sprintf("routes[%d]", len(before))); err != nil {
		i.answers.APIs = before
	}
	return err
}

// check returns what serve and check would say about a key, or about one below
// it, with the answers so far.
func (i *initializer) check(key string) error {
	cfg := &config.Config{
		Server:  config.Server{PublicURL: i.answers.PublicURL},
		OIDC:    config.OIDC{Issuer: i.answers.Issuer, ClientID: i.answers.ClientID, ClientSecret: "not known yet"},
		Session: config.Session{Keys: []session.Secret{newKey()}},
	}
	for _, api := range i.answers.APIs {
		cfg.Routes = append(cfg.Routes, config.Route{Path: api.Path, Upstream: []string{api.Upstream}, Token: "user"})
	}
	cfg.SetDefaults()
	problems, _ := errors.AsType[config.Errors](cfg.Validate(slog.New(slog.DiscardHandler)))
	for _, problem := range problems {
		if problem.Key == key || strings.HasPrefix(problem.Key, key+".") {
			return problem.Err
		}
	}
	return nil
}

// nextSteps returns what the team has to do.
func (i *initializer) nextSteps(project *scaffold.Project) string {
	answers := i.answers
	public := strings.TrimSuffix(answers.PublicURL, "/")
	steps := []string{"", "Next:"}
	if dir := filepath.Clean(i.dir); dir != "." { // the names below are relative to it
		steps[1] = "Next, in the folder " + dir + ":"
	}
	if project.MustMove {
		steps = append(steps, "  Move index.html and all other files of the app to "+folder(project.OutDir),
			"      (frontend.dir). Clients can download every file in it: never cloakroom.yaml or secrets/.")
	}
	if project.Export != "" {
		steps = append(steps, "  Build with "+project.Export+".",
			"      Otherwise the browser's files are not in "+folder(project.OutDir)+" (frontend.dir).")
	}
	if project.DevScript != "" {
		steps = append(steps, "  cloakroom dev --config cloakroom.yaml -- "+project.DevScript,
			"      runs the app with its APIs, and users of a development provider")
	}
	steps = append(steps,
		"  Register a confidential client at "+answers.Issuer+", with",
		"      redirect URI "+public+"/bff/callback",
		"      post-logout redirect URI "+public+"/bff/logout/callback",
		"      back-channel logout URI, if it has one: "+public+"/bff/backchannel-logout")
	secret := scaffold.ClientSecretFile
	if answers.Named != nil {
		secret = answers.Named["oidc.client_secret_file"]
	}
	if secret != "" {
		steps = append(steps, "  Put its secret into "+secret+", with mode 600.")
	}
	if secret == scaffold.ClientSecretFile {
		steps = append(steps, "      Keep the name: a development server may serve files with other names.")
	}
	steps = append(steps,
		"  cloakroom check --config cloakroom.yaml",
		"      finds what is missing",
		"")
	return strings.Join(steps, "\n")
}
