package bff

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
)

// Reload puts the configuration of next in force: a Server that New has
// returned and that does not run. If Run has not begun, Reload waits for it. No
// session ends. Requests in flight end under the previous configuration. What
// belongs to the listeners stays as it is (Config.TLS, Config.Logger).
//
// Reload discovers the provider first. If that fails, the previous
// configuration stays in force, and the error is a *ConfigError. But if both
// have the same issuer, and discovery fails under both, the provider is down:
// next is put in force. The previous configuration also stays if ctx or Run
// ends before; then the error wraps that of ctx or is ErrStopping.
func (s *Server) Reload(ctx context.Context, next *Server) error {
	select {
	case <-s.started:
	case <-ctx.Done():
		return fmt.Errorf("bff: Reload waits for Run: %w", ctx.Err())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running.Err() != nil {
		return ErrStopping
	}
	a := next.current.Load()
	a.attach(s)
	a.start()
	err := s.checkProvider(ctx, a.provider)
	switch { // the attempt was canceled, which says nothing about the provider
	case s.running.Err() != nil:
		err = ErrStopping
	case ctx.Err() != nil:
		err = ctx.Err()
	}
	if err != nil {
		closing, cancel := context.WithTimeout(context.Background(), closeGrace)
		defer cancel()
		defer s.metrics.remove(a)
		return errors.Join(err, a.close(closing))
	}
	before := s.current.Load()
	a.keepLimiters(before)
	a.keepClientTokens(before)
	before.sessions.Keyring().ReplacedBy(a.sessions.Keyring())
	s.current.Store(a)
	s.conns.setLimit(a.limits.Connections)
	s.retired.Go(func() { s.retire(before, a.shutdownGrace) })
	return nil
}

// ErrStopping is the error of Reload during the shutdown.
var ErrStopping = errors.New("bff: Reload during the shutdown")

// retire waits until the requests of a configuration that is not in force any
// more have ended, and closes it. In the shutdown, they may take grace. It
// returns after the last refresh, because the process must not exit before.
func (s *Server) retire(before *app, grace time.Duration) {
	before.streams.end() // their clients reconnect
	before.waitIdle(s.draining)
	before.endStreams()
	within := func(end func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(s.closing, grace)
		defer cancel()
		return end(ctx)
	}
	if err := errors.Join(within(before.waitIdle), within(before.close)); err != nil {
		s.log.Warn("previous configuration closed with requests in flight", "err", err)
	}
	before.sessions.Drain(s.closing)
	s.metrics.remove(before)
}

// reloadWait is how long Reload waits for the provider.
const reloadWait = 15 * time.Second

// checkProvider returns an error if the provider of the next configuration
// cannot be discovered, and the configuration is the cause. The caller holds
// mu.
func (s *Server) checkProvider(ctx context.Context, next *oidc.Client) error {
	ctx, cancel := context.WithTimeout(ctx, reloadWait)
	defer cancel()
	defer context.AfterFunc(s.running, cancel)()
	next.WaitAttempt(ctx)
	if next.Discovered() {
		return nil
	}
	cause := next.Status()
	inForce := s.current.Load().provider
	if inForce.Config().Issuer == next.Config().Issuer && inForce.Discover(ctx) != nil {
		next.Inherit(inForce) // the token endpoint may work
		return nil            // the provider is down
	}
	return &ConfigError{Key: "Provider.Issuer", Value: next.Config().Issuer, Err: cause}
}
