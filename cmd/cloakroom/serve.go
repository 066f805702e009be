package main

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cloakroom-bff/cloakroom/internal/config"
	"github.com/cloakroom-bff/cloakroom/internal/tracing"
)

func serveCommand(getenv func(string) string) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the broker",
		Long: `Run the broker. It applies a new configuration when one of its files changes, on
SIGHUP, and on "cloakroom reload". If the new configuration has mistakes, it
logs them and keeps the configuration in force. Changes of the listeners need a
restart, and those of the store, except for its user and password.

On SIGTERM or SIGINT, /readyz fails at once. The listener is closed after
server.shutdown_delay, and the process ends after the requests in flight. A
second signal ends it at once.`,
		RunE: func(c *cobra.Command, _ []string) error {
			signal.Ignore(syscall.SIGPIPE) // a log reader that exits must not end the broker
			hangup := make(chan os.Signal, 1)
			signal.Notify(hangup, syscall.SIGHUP) // during the start, it would end the process
			defer signal.Stop(hangup)
			settings := new(logSettings)
			log, stop := newLogger(c.ErrOrStderr(), settings.handler)
			defer stop()
			limitMemory(log)
			delayGC()
			from := source{
				load:  func() (*config.Config, error) { return config.Load(file, getenv) },
				files: func() []string { return config.Files(file, getenv) },
			}
			states := from.states()
			cfg, unread := from.load()
			if cfg == nil {
				return unread
			}
			settings.apply(&cfg.Log)
			v, _ := buildInfo()
			traces, stopTraces, tracesErr := tracing.Start(getenv, v, log)
			defer stopTraces()
			b, err := newBroker(cfg, extras{traces: traces}, log)
			if err := config.Merge(unread, config.Join(err, tracesErr)); err != nil {
				for _, stray := range config.StrayVariables(os.Environ()) {
					err = fmt.Errorf("%w\n%s", err, stray)
				}
				if file == "" {
					err = fmt.Errorf("%w\n(No file was read. Use --config FILE.)", err)
				}
				return err
			}
			defer b.close()
			log.Info("configuration", "in_force", cfg)
			for _, warning := range cfg.Warnings().Lines() {
				log.Warn("configuration", "warning", warning)
			}
			for _, stray := range config.StrayVariables(os.Environ()) {
				log.Warn("configuration", "warning", stray.String())
			}
			if cfg.Store.IsInMemory() {
				log.Warn("sessions are in memory (store.url is memory:); lost at restart, not shared by replicas")
			}
			var listener net.ListenConfig
			listener.SetMultipathTCP(false) // it has no filter for the shutdown, see backlog.Close
			public, err := listener.Listen(c.Context(), "tcp", cfg.Server.Listen)
			if err != nil {
				return fmt.Errorf("server.listen: %w", err)
			}
			b.source, b.read, b.logSettings = from, states, settings
			return b.run(c.Context(), public, hangup)
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "",
		"configuration `FILE` (YAML); environment variables can set every key too")
	return c
}
