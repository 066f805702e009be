package main

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cloakroom-bff/cloakroom/session"
)

func keygenCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "keygen",
		Short: "Print a new key for session.keys",
		Long: `Print a new key for session.keys: the base64 of 32 random bytes. Keep it secret.
All replicas need the same keys. To rotate: first add the new key at the end, on
every replica. Then move it to the front. After session.max_lifetime, remove the
old key.`,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), newKey().Reveal())
			return err
		},
	}
}

// newKey returns a random key for session.keys.
func newKey() session.Secret {
	key := make([]byte, 32)
	rand.Read(key)
	return session.Secret(base64.StdEncoding.EncodeToString(key))
}
