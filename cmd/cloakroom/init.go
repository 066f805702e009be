package main

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloakroom-bff/cloakroom/internal/scaffold"
	"github.com/cloakroom-bff/cloakroom/web"
)

func initCommand() *cobra.Command {
	var dir string
	var apis []string
	var answers scaffold.Answers
	c := &cobra.Command{
		Use:   "init",
		Short: "Write the configuration for a front-end project",
		Long: `Write the configuration for a front-end project: cloakroom.yaml, a session key,
settings for its development server, and the browser client with the hooks of its
framework. The framework is that of package.json. Questions that no option
answers are asked. Files that exist are kept.`,
		Example: `  cloakroom init
  cloakroom init --issuer https://id.example.com --client-id spa --api /api/=http://localhost:3000`,
		RunE: func(c *cobra.Command, _ []string) error {
			project, err := scaffold.Detect(dir)
			if err != nil {
				return usageError{err}
			}
			out := c.OutOrStdout()
			fmt.Fprintf(out, "Found %s; its build is in %s.\n", project.Framework, project.OutDir)
			if err := ask(c, &answers, &apis); err != nil {
				return err
			}
			answers.Key = newKey().Reveal()
			for _, text := range apis {
				api, err := scaffold.ParseAPI(text)
				if err != nil {
					return usageError{fmt.Errorf("--api: %w", err)}
				}
				answers.APIs = append(answers.APIs, api)
			}
			files, err := scaffold.Files(project, answers, web.ClientFiles())
			if err != nil {
				return err
			}
			written, kept, err := scaffold.Write(dir, files)
			for _, name := range written {
				fmt.Fprintf(out, "  wrote %s\n", name)
			}
			for _, name := range kept {
				fmt.Fprintf(out, "  kept %s, which exists\n", name)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(out, nextSteps(project, answers))
			return err
		},
	}
	c.Flags().StringVar(&dir, "dir", ".", "`DIR` of the project, with its package.json or index.html")
	c.Flags().StringVar(&answers.Issuer, "issuer", "", "`URL` of the identity provider")
	c.Flags().StringVar(&answers.ClientID, "client-id", "", "client `ID` there")
	c.Flags().StringVar(&answers.PublicURL, "public-url", "", "`URL` of the app in production")
	c.Flags().StringArrayVar(&apis, "api", nil, "`PATH=URL` of an API, such as /api/=http://localhost:3000; repeatable")
	return c
}

// ask asks for what no option says, on a terminal. Otherwise it is a mistake.
func ask(c *cobra.Command, answers *scaffold.Answers, apis *[]string) error {
	in := bufio.NewScanner(io.LimitReader(c.InOrStdin(), 64<<10))
	interactive := isTerminal(c.InOrStdin())
	isURL := func(text string) error { return scaffold.CheckURL(text, "https://id.example.com") }
	question := func(option, text, example string, answer *string, check func(string) error) error {
		for *answer == "" {
			if !interactive {
				return usageError{fmt.Errorf("--%s is required, such as --%[1]s %s", option, example)}
			}
			fmt.Fprintf(c.OutOrStdout(), "%s (such as %s): ", text, example)
			if !in.Scan() {
				return usageError{fmt.Errorf("no answer; give it as an option, such as --%s %s", option, example)}
			}
			*answer = strings.TrimSpace(in.Text())
			if err := check(*answer); *answer != "" && err != nil {
				fmt.Fprintln(c.OutOrStdout(), err)
				*answer = ""
			}
		}
		if err := check(*answer); err != nil {
			return usageError{fmt.Errorf("--%s: %w", option, err)}
		}
		return nil
	}
	if err := question("issuer", "URL of your identity provider", "https://id.example.com/realms/main",
		&answers.Issuer, isURL); err != nil {
		return err
	}
	anything := func(string) error { return nil }
	if err := question("client-id", "Client ID there", "spa", &answers.ClientID, anything); err != nil {
		return err
	}
	if err := question("public-url", "URL of the app in production", "https://app.example.com",
		&answers.PublicURL, isURL); err != nil {
		return err
	}
	for interactive && !c.Flags().Changed("api") {
		fmt.Fprint(c.OutOrStdout(), "An API, such as /api/=http://localhost:3000 (empty: no more): ")
		if !in.Scan() || strings.TrimSpace(in.Text()) == "" {
			return nil
		}
		text := strings.TrimSpace(in.Text())
		if _, err := scaffold.ParseAPI(text); err != nil {
			fmt.Fprintln(c.OutOrStdout(), err)
			continue
		}
		*apis = append(*apis, text)
	}
	return nil
}

// nextSteps returns what the team has to do.
func nextSteps(project *scaffold.Project, answers scaffold.Answers) string {
	public := strings.TrimSuffix(answers.PublicURL, "/")
	steps := []string{"", "Next:"}
	if project.DevScript != "" {
		steps = append(steps, "  cloakroom dev --config cloakroom.yaml -- "+project.DevScript,
			"      runs the app with its APIs, and users of a development provider")
	}
	steps = append(steps,
		"  Register a confidential client at "+answers.Issuer+", with",
		"      redirect URI "+public+"/bff/callback",
		"      post-logout redirect URI "+public+"/bff/logout/callback",
		"  Put its secret into secrets/client-secret.",
		"  cloakroom check --config cloakroom.yaml",
		"      finds what is missing",
		"")
	return strings.Join(steps, "\n")
}
